"""The cost of checkpoints: throughput against a plain copy of the same bytes, and memory.

The whole stack as processes, fsync on; state that no compression makes smaller, 16 MB of it through
PostgreSQL and 64 MB through an S3-compatible bucket, which is the tests' own and in this process.
The plain copy reads the same state through the same proxy into a file, and syncs it.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import statistics
import sys
import uuid
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import grpc.aio
import httpx
import psutil

from local.stack.stack import Stack
from local.stack.stack_settings import StackSettings
from roost.container.v1 import container_service_pb2 as container_pb
from roost.session.v1 import checkpoint_service_pb2 as pb
from roost.session.v1 import session_pb2, session_service_pb2
from roost.session.v1.checkpoint_service_pb2_grpc import CheckpointServiceStub
from roost.session.v1.session_service_pb2_grpc import SessionServiceStub
from tests.session import stateful_app
from tests.session.s3_store import store

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

DATA = Path(".roost/bench-checkpoints")
MB = 1_000_000
#: Stored bytes may exceed the state's size slightly: incompressible data grows by 0.03 %.
SIZES = {"PostgreSQL": 16 * MB, "bucket": 64 * MB}
ROUNDS = 5
TIMEOUT = 300.0
SERVICES = ("session_service", "container_service")


class Memory:
    """The services' resident memory, sampled every few milliseconds."""

    def __init__(self) -> None:
        self._processes = {
            name: process
            for process in psutil.Process().children(recursive=True)
            for name in SERVICES
            if process.cmdline()[1:3] == ["-m", name]
        }
        self.growth = dict.fromkeys(SERVICES, 0)

    @asynccontextmanager
    async def watched(self) -> AsyncGenerator[None]:
        """Sample and keep the largest increase since the beginning."""
        before = {name: self._resident(name) for name in SERVICES}

        async def look() -> None:
            while True:
                for name in SERVICES:
                    growth = self._resident(name) - before[name]
                    self.growth[name] = max(self.growth[name], growth)
                await asyncio.sleep(0.005)

        looking = asyncio.create_task(look())
        try:
            yield
        finally:
            looking.cancel()

    def _resident(self, name: str) -> int:
        return int(self._processes[name].memory_info().rss)


async def started(sessions: SessionServiceStub, size: int) -> session_pb2.Session:
    """Start a session whose application has a state of this many bytes."""
    spec = container_pb.ContainerSpec(
        image="roost/base",
        command=(sys.executable, stateful_app.__file__),
        env={"STATE_BYTES": str(size)},
        state_hook=container_pb.StateHook(http_path="/state"),
        guest=container_pb.Guest(memory_mb=1024),
    )
    request = session_service_pb2.StartSessionRequest(
        key=session_pb2.SessionKey(project_id="bench", user_id=uuid.uuid4().hex), spec=spec
    )
    return (await sessions.StartSession(request, timeout=TIMEOUT)).session


async def plain(session: session_pb2.Session, file: Path) -> float:
    """Seconds for a plain copy of the state into a file, with fsync."""
    url = httpx.URL(session.container.url).join("state")
    began = perf_counter()
    async with httpx.AsyncClient(trust_env=False, timeout=TIMEOUT) as http:
        host = {"host": url.netloc.decode()}
        there = url.copy_with(host="127.0.0.1")
        async with http.stream("GET", there, headers=host) as answer:
            with file.open("wb") as kept:
                async for part in answer.aiter_raw():
                    kept.write(part)
                kept.flush()
                os.fsync(kept.fileno())
    return perf_counter() - began


async def measure(name: str, channel: grpc.aio.Channel) -> None:
    """Save and restore one state several times; print time and memory."""
    size = SIZES[name]
    session = await started(SessionServiceStub(channel), size)
    checkpoints = CheckpointServiceStub(channel)
    create = pb.CreateCheckpointRequest(session_id=session.session_id)
    # A first round, so that imports, connections and first allocations do not count.
    first = (await checkpoints.CreateCheckpoint(create, timeout=TIMEOUT)).checkpoint
    await checkpoints.PinCheckpoint(
        pb.PinCheckpointRequest(checkpoint_id=first.checkpoint_id, pinned=True), timeout=TIMEOUT
    )
    restore = pb.RestoreCheckpointRequest(
        session_id=session.session_id, checkpoint_id=first.checkpoint_id
    )
    saving, restoring = [], []
    memory = Memory()
    async with memory.watched():
        for _ in range(ROUNDS):
            began = perf_counter()
            await checkpoints.CreateCheckpoint(create, timeout=TIMEOUT)
            saving.append(perf_counter() - began)
    for _ in range(2):
        async with memory.watched():
            began = perf_counter()
            # RestoreCheckpoint first saves the current state: one save and one restore.
            await checkpoints.RestoreCheckpoint(restore, timeout=TIMEOUT)
            restoring.append(perf_counter() - began)
    copying = [await plain(session, DATA / "copy") for _ in range(ROUNDS)]
    save, both, copy = (statistics.median(each) for each in (saving, restoring, copying))
    mb = size / MB
    print(f"{mb:.0f} MB through the {name}".replace("the Post", "Post"))
    print(f"  save (capture, compress, store, read back)  {mb / save:6.1f} MB/s, {save:.2f} s")
    print(f"  roll back (a save, checks, a restore)        {mb / both:6.1f} MB/s, {both:.2f} s")
    print(f"  plain copy of the state into a file          {mb / copy:6.1f} MB/s, {copy:.2f} s")
    print(f"  a save's throughput to the plain copy's      {copy / save:6.2f}")
    for service, growth in memory.growth.items():
        print(f"  most resident memory more, {service:<18}{growth / MB:6.1f} MB")


async def run() -> None:
    """Measure and print."""
    shutil.rmtree(DATA, ignore_errors=True)
    async with store() as bucket:
        settings = replace(
            StackSettings.on_free_ports(DATA),
            environment={
                "ROOST_CHECKPOINT_BUCKET_URL": bucket.url,
                "ROOST_START_BUDGET": "300",
                "ROOST_SWEEP": "off",
            },
            emulator_options=("--no-limits",),
        )
        async with (
            Stack(settings) as stack,
            grpc.aio.insecure_channel(stack.session_targets[0]) as channel,
        ):
            for name in SIZES:
                await measure(name, channel)
        assert not bucket.rejected, bucket.rejected
    shutil.rmtree(DATA, ignore_errors=True)
