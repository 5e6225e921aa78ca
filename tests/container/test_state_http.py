"""Capture and restore over HTTP."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import grpc
import grpc.aio
import pytest

from roost.container.v1 import container_service_pb2 as pb
from tests.container.harness import Service, failing, http_to, serving, until
from tests.container.state_calls import (
    MB,
    capture,
    capture_fails,
    capturing,
    counter,
    http,
    restore,
    restoring,
    run,
    served,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator


async def test_a_state_is_captured_and_restored_over_http(service: Service) -> None:
    one = await counter(service, COUNTER_STATE_BYTES="300000")
    for _ in range(2):
        await click(service, one)
    state = await capture(service, one, http())
    assert state.startswith(b"2\n")
    assert len(state) == 300_002
    two = await counter(service, "roost-wren-2", COUNTER_FILE="count")
    await restore(service, two, http(), state)
    assert await capture(service, two, http()) == state
    # This application stores the count in a file.
    assert await run(service, two, "cat", "count") == "2"


async def click(service: Service, container_id: str) -> None:
    headers = {"fly-force-instance-id": container_id}
    async with http_to(service.emulator.proxy_url) as client:
        (await client.get("/click", headers=headers)).raise_for_status()


async def test_an_empty_state_is_a_state(service: Service) -> None:
    container_id = await served(
        service,
        """
        if ask.startswith(b"PUT"):
            taken = body.readline()
        say(b"HTTP/1.1 200 OK\\r\\ncontent-length: 0\\r\\n\\r\\n")
        """,
    )
    assert await capture(service, container_id, http()) == b""
    await restore(service, container_id, http(), b"")


CUT_SHORT = {
    "a length": 'say(b"HTTP/1.1 200 OK\\r\\ncontent-length: 500000\\r\\n\\r\\n" + b"x" * 200000)',
    "chunks": (
        'say(b"HTTP/1.1 200 OK\\r\\ntransfer-encoding: chunked\\r\\n\\r\\n"'
        ' + b"30d40\\r\\n" + b"x" * 200000 + b"\\r\\n")'
    ),
}


@pytest.mark.parametrize("form", CUT_SHORT)
async def test_a_capture_that_is_cut_off_fails(service: Service, form: str) -> None:
    container_id = await served(service, CUT_SHORT[form])
    failure, parts = await capture_fails(service, container_id, http())
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.UNAVAILABLE,
        "PROVIDER_UNAVAILABLE",
    )
    assert failure.retry_seconds
    assert sum(len(part.chunk) for part in parts) < 500_000


async def test_a_capture_of_a_container_that_is_killed_fails(service: Service) -> None:
    container_id = await counter(service, COUNTER_STATE_BYTES=str(64 * MB))
    call = capturing(service, container_id, http())
    await anext(aiter(call))
    request = pb.DestroyContainerRequest(container_id=container_id, force=True)
    await service.stub.DestroyContainer(request, timeout=30)
    with pytest.raises(grpc.aio.AioRpcError) as rejected:
        async for part in call:
            assert not part.sha256
    assert rejected.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_cancelled_restore_changes_nothing(service: Service) -> None:
    one = await counter(service)
    sent = asyncio.Event()

    async def half() -> AsyncIterator[pb.RestoreStateRequest]:
        yield pb.RestoreStateRequest(container_id=one, state_hook=http(), chunk=b"41\n")
        sent.set()
        await asyncio.Event().wait()

    call = service.stub.RestoreState(half(), timeout=50)
    await sent.wait()
    await until(lambda: service.asked("get"))
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await capture(service, one, http()) == b"0\n"


async def test_a_restore_into_a_container_that_is_killed_is_unavailable(service: Service) -> None:
    container_id = await served(service, "body.read(100_000); os._exit(0)")
    failure = await failing(restoring(service, container_id, http(), [bytes(MB)] * 8))
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.UNAVAILABLE,
        "PROVIDER_UNAVAILABLE",
    )


@asynccontextmanager
async def gateway(service: Service, answer: bytes) -> AsyncGenerator[Service]:
    """A service whose containers are behind a gateway with this answer to every request."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        # The rest of the request is not read, so further writes of the caller fail.
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with (
        server,
        serving(service.emulator, url_template=f"http://127.0.0.1:{port}") as behind,
    ):
        yield behind


async def test_a_body_without_a_length_fails(service: Service) -> None:
    container_id = await service.create()
    async with gateway(service, b"HTTP/1.1 200 OK\r\n\r\nall, or half?") as behind:
        failure, parts = await capture_fails(behind, container_id, http())
    assert parts == []
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "STATE_HOOK_FAILED",
    )


async def test_an_ok_before_the_end_of_the_state_is_a_failure(service: Service) -> None:
    container_id = await service.create()
    async with gateway(service, b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n") as behind:
        failure = await failing(restoring(behind, container_id, http(), [bytes(MB)] * 64))
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.UNAVAILABLE,
        "PROVIDER_UNAVAILABLE",
    )


# Reads the body to its end first, because closing before that would reset the connection.
REFUSES = r"""
while ask.startswith(b"PUT") and body.readline() != b"0\r\n":
    pass
say(b"HTTP/1.1 {status} No\r\n{more}content-length: 13\r\n\r\nno state here")
"""


@pytest.mark.parametrize("status", [400, 404, 500, 501])
async def test_the_error_of_a_hook_is_quoted(service: Service, status: int) -> None:
    code = REFUSES.format(status=status, more="")
    container_id = await served(service, code)
    failure, parts = await capture_fails(service, container_id, http())
    assert parts == []
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "STATE_HOOK_FAILED",
    )
    assert failure.metadata["http_status"] == str(status)
    assert failure.metadata["said"] == "no state here"
    failure = await failing(restoring(service, container_id, http(), [b"x"]))
    assert (failure.reason, failure.metadata["http_status"]) == ("STATE_HOOK_FAILED", str(status))


async def test_a_long_error_of_a_hook_is_quoted_in_part(service: Service) -> None:
    container_id = await served(
        service, 'say(b"HTTP/1.1 500 No\\r\\n\\r\\n" + b"rave\\r\\n" * 300000)'
    )
    failure, _ = await capture_fails(service, container_id, http())
    assert failure.reason == "STATE_HOOK_FAILED"
    assert 100 < len(failure.message) <= 400


@pytest.mark.parametrize("status", [502, 503, 504])
async def test_a_gateway_error_is_unavailable(service: Service, status: int) -> None:
    container_id = await served(service, REFUSES.format(status=status, more=""))
    failure, _ = await capture_fails(service, container_id, http())
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.UNAVAILABLE,
        "PROVIDER_UNAVAILABLE",
    )


async def test_no_redirect_is_followed(service: Service) -> None:
    other = await counter(service, "roost-wren-2")
    more = rf"location: http://{other}.birds.localhost/state\r\n"
    container_id = await served(service, REFUSES.format(status=307, more=more))
    failure, _ = await capture_fails(service, container_id, http())
    assert (failure.reason, failure.metadata["http_status"]) == ("STATE_HOOK_FAILED", "307")


async def test_a_body_with_a_content_encoding_is_rejected(service: Service) -> None:
    head = r"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 1\r\n\r\nx"
    container_id = await served(service, f'say(b"{head}")')
    failure, _ = await capture_fails(service, container_id, http())
    assert failure.reason == "STATE_HOOK_FAILED"


async def test_a_stream_above_the_limit_is_cut_off(service: Service) -> None:
    chunks = r'say(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")'
    endless = chunks + '\nwhile True: say(b"1000\\r\\n" + bytes(4096) + b"\\r\\n")'
    container_id = await served(service, endless)
    async with serving(service.emulator, state_limit=1_000_000) as tight:
        failure, parts = await capture_fails(tight, container_id, http())
        assert failure.reason == "STATE_TOO_LARGE"
        assert sum(len(part.chunk) for part in parts) <= 1_000_000


async def test_a_slow_hook_fails_by_the_deadline(service: Service) -> None:
    container_id = await served(service, "time.sleep(30)")
    failure, _ = await capture_fails(service, container_id, http(), timeout=1)
    assert failure.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
