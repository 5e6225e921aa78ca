"""A call whose handler ends with CancelledError, although its client did not cancel it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from roost.session.v1 import session_service_pb2 as pb
from roost.session.v1 import session_service_pb2_grpc as rpc
from session_service.rpc.interceptors import ErrorInterceptor
from tests.container.harness import failing, read_failure
from tests.eventually import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from tests.container.harness import Failure

#: The clients' deadline, in s. A call that the server does not answer ends with it, and its code is
#: DEADLINE_EXCEEDED.
DEADLINE = 30.0


async def interrupted() -> None:
    """Wait for another task, which is cancelled meanwhile."""
    inner = asyncio.ensure_future(asyncio.Event().wait())
    asyncio.get_running_loop().call_soon(inner.cancel)
    await inner


class Interrupted(rpc.SessionServiceServicer):
    """GetSession and WatchSession are interrupted; PauseSession waits for ever."""

    def __init__(self) -> None:
        self.ended: list[BaseException] = []
        self.waiting = asyncio.Event()

    async def GetSession(self, request: Any, context: Any) -> Any:
        await interrupted()

    async def WatchSession(self, request: Any, context: Any) -> AsyncIterator[Any]:
        yield pb.WatchSessionResponse()
        await interrupted()

    async def PauseSession(self, request: Any, context: Any) -> Any:
        self.waiting.set()
        try:
            await asyncio.Event().wait()
        except BaseException as error:
            self.ended.append(error)
            raise


def interrupted_servicer() -> Interrupted:
    return Interrupted()  # type: ignore[abstract]


@asynccontextmanager
async def served(servicer: Interrupted) -> AsyncGenerator[rpc.SessionServiceStub]:
    server = grpc.aio.server(interceptors=(ErrorInterceptor(),))
    rpc.add_SessionServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield rpc.SessionServiceStub(channel)
    finally:
        await server.stop(None)


def check(failure: Failure) -> None:
    assert failure.code == grpc.StatusCode.UNAVAILABLE
    assert failure.reason == "SERVICE_STOPPING"
    assert failure.retry_seconds


async def test_a_unary_call_that_is_interrupted_is_answered() -> None:
    async with served(interrupted_servicer()) as stub:
        failure = await failing(stub.GetSession(pb.GetSessionRequest(), timeout=DEADLINE))
        check(failure)


async def test_a_stream_that_is_interrupted_is_answered() -> None:
    async with served(interrupted_servicer()) as stub:
        stream = stub.WatchSession(pb.WatchSessionRequest(), timeout=DEADLINE)
        with pytest.raises(grpc.aio.AioRpcError) as broken:
            async for _ in stream:
                pass
        check(read_failure(broken.value))


async def test_a_call_that_its_client_cancels_is_not_answered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "session_service")
    servicer = interrupted_servicer()
    async with served(servicer) as stub:
        call = stub.PauseSession(pb.PauseSessionRequest(), timeout=DEADLINE)
        await servicer.waiting.wait()
        call.cancel()
        await eventually(lambda: bool(servicer.ended))
    assert isinstance(servicer.ended[0], asyncio.CancelledError)
    assert not [each for each in caplog.records if "rejected" in each.getMessage()]
