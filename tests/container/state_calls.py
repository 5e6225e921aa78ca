"""Shared by the tests of captures and restores: the calls, and applications with state."""

from __future__ import annotations

import hashlib
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest

from roost.container.v1 import container_service_pb2 as pb
from tests.container.harness import Service, read_failure

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from tests.container.harness import Failure

MB = 1024 * 1024
# A hook whose state is one file. Roost appends the word `capture` or `restore`.
FILE = "h() { case $1 in capture) cat state;; restore) cat >state;; esac; }; h"


def http(path: str = "/state") -> pb.StateHook:
    return pb.StateHook(http_path=path)


def command(line: str = FILE) -> pb.StateHook:
    return pb.StateHook(command=line)


def capturing(service: Service, container_id: str, hook: pb.StateHook, timeout: float = 50) -> Any:
    request = pb.CaptureStateRequest(container_id=container_id, state_hook=hook)
    return service.stub.CaptureState(request, timeout=timeout)


async def capture(service: Service, container_id: str, hook: pb.StateHook) -> bytes:
    """Capture a state and check that it is complete."""
    parts: list[pb.CaptureStateResponse] = [
        part async for part in capturing(service, container_id, hook)
    ]
    state = b"".join(part.chunk for part in parts)
    assert all(len(part.chunk) <= 256 * 1024 for part in parts)
    assert not any(part.sha256 or part.total_bytes for part in parts[:-1])
    assert parts[-1].total_bytes == len(state)
    assert parts[-1].sha256 == hashlib.sha256(state).digest()
    return state


async def capture_fails(
    service: Service, container_id: str, hook: pb.StateHook, timeout: float = 50
) -> tuple[Failure, list[pb.CaptureStateResponse]]:
    """Run a capture that must fail; return the failure and the messages before it."""
    parts: list[pb.CaptureStateResponse] = []
    with pytest.raises(grpc.aio.AioRpcError) as rejected:
        async for part in capturing(service, container_id, hook, timeout):
            parts.append(part)  # noqa: PERF401
    assert not any(part.sha256 for part in parts)
    return read_failure(rejected.value), parts


def messages(
    container_id: str, hook: pb.StateHook, chunks: Iterable[bytes]
) -> AsyncIterator[pb.RestoreStateRequest]:
    async def each() -> AsyncIterator[pb.RestoreStateRequest]:
        yield pb.RestoreStateRequest(container_id=container_id, state_hook=hook)
        for chunk in chunks:
            yield pb.RestoreStateRequest(chunk=chunk)

    return each()


def restoring(
    service: Service, container_id: str, hook: pb.StateHook, chunks: Iterable[bytes]
) -> Any:
    return service.stub.RestoreState(messages(container_id, hook, chunks), timeout=50)


async def restore(service: Service, container_id: str, hook: pb.StateHook, state: bytes) -> None:
    """Restore a state in pieces that are not aligned to any block size."""
    pieces = [state[start : start + 99_999] for start in range(0, len(state), 99_999)]
    answer = await restoring(service, container_id, hook, pieces)
    assert answer.bytes_written == len(state)
    assert answer.sha256 == hashlib.sha256(state).digest()


async def counter(service: Service, name: str = "roost-wren-1", **env: str) -> str:
    return await service.create(name, image="roost/counter", env=env)


async def run(service: Service, container_id: str, *words: str) -> str:
    request = pb.ExecContainerRequest(container_id=container_id, command=words)
    done = await service.stub.ExecContainer(request, timeout=30)
    assert done.exit_code == 0, done.stderr
    return str(done.stdout)


# An application of a test. `{body}` is replaced by code that handles one connection: `ask` is the
# head of the request, `body` a file with the rest of it, and `say(bytes)` sends bytes.
SERVER = """
import os, socket, time
taken = b""
server = socket.create_server(("127.0.0.1", int(os.environ["PORT"])))
while True:
    line, _ = server.accept()
    body, say = line.makefile("rb"), line.sendall
    ask = b""
    try:
        while (head := body.readline()).strip():
            ask += head
        if ask:
            {body}
    except OSError:
        pass
    body.close()
    line.close()
"""


async def served(service: Service, code: str) -> str:
    """Create a container whose application runs this code in SERVER."""
    body = textwrap.indent(textwrap.dedent(code).strip(), " " * 12).strip()
    return await service.create(command=[sys.executable, "-c", SERVER.format(body=body)])
