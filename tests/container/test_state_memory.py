"""A large state is streamed and never held in memory."""

from __future__ import annotations

import hashlib
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import grpc.aio

from roost.container.v1 import container_service_pb2_grpc as rpc
from tests.container.harness import Service, running
from tests.container.state_calls import (
    MB,
    capture,
    capturing,
    counter,
    http,
    restoring,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable


async def test_64_mb_are_captured_and_restored_in_bounded_memory(service: Service) -> None:
    container_id = await counter(service, COUNTER_STATE_BYTES=str(64 * MB))
    template = service.emulator.proxy_url
    async with one_process(service, ROOST_URL_TEMPLATE=template) as (pid, elsewhere):
        warm = await served_by(elsewhere, container_id)
        before = memory_kb(pid, "VmRSS")
        forget_high_water(pid)
        digest, size = hashlib.sha256(), 0
        async for part in capturing(elsewhere, container_id, http()):
            digest.update(part.chunk)
            size += len(part.chunk)
        assert (part.total_bytes, part.sha256) == (size, digest.digest())
        assert size == warm + 64 * MB
        captured = memory_kb(pid, "VmHWM") - before

        filler = filler_of(64 * MB)
        answer = await restoring(elsewhere, container_id, http(), filler)
        assert (answer.bytes_written, answer.sha256) == (size, digest.digest())
        restored = memory_kb(pid, "VmHWM") - before
    print(f"memory grew by {captured} kB over a capture, {restored} kB with a restore")
    assert captured < 12_000
    assert restored < 16_000


def filler_of(size: int) -> Iterable[bytes]:
    """The state of a counter at 0 with `size` bytes of filler."""
    yield b"0\n"
    for number in range(size // 65_536):
        yield number.to_bytes(8, "big") + (bytes(range(256)) * 256)[8:]


async def served_by(service: Service, container_id: str) -> int:
    """Run one small capture, to warm up the process; return the size of the count in bytes."""
    return len(await capture(service, container_id, http("/?small"))) + 1  # plus the newline


@asynccontextmanager
async def one_process(service: Service, **env: str) -> AsyncGenerator[tuple[int, Service]]:
    """The same emulator behind a container_service in a process of its own; yields its pid."""
    async with (
        running(service.emulator, **env) as (process, target),
        grpc.aio.insecure_channel(target) as channel,
    ):
        stub = rpc.ContainerServiceStub(channel)
        yield process.pid, Service(target, stub, channel, service.admin, service.emulator)


def forget_high_water(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def memory_kb(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))
