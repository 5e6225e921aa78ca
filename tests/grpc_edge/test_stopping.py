"""A stop fails no call that waits: callers that have another server go there."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from container_service.main import serve as serve_containers
from grpc_edge import stopping
from tests.container.harness import config_for
from tests.eventually import eventually
from tests.session.harness import replica, session_config

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from local.fly.emulator import Emulator

    #: Opens a server. Any: a Running of container_service, or a Replica.
    Open = Callable[[], AbstractAsyncContextManager[Any]]

#: Callers that each send their next call when they have an answer.
CALLERS = 100
TIMEOUT = 30.0
CHECK = "/grpc.health.v1.Health/Check"
#: Calls without arguments, which are refused.
REFUSED = {
    "session_service": "/roost.session.v1.SessionService/GetSession",
    "container_service": "/roost.container.v1.ContainerService/GetContainer",
}


@pytest.fixture(params=["session_service", "container_service"])
def service(request: pytest.FixtureRequest) -> str:
    """Each of the services."""
    return str(request.param)


@pytest.fixture
async def opener(service: str, emulator: Emulator, database_url: str) -> AsyncIterator[Open]:
    """Opens servers of the service, with the same parts behind them and a long grace."""
    if service == "container_service":
        yield lambda: serve_containers(config_for(emulator, grace=TIMEOUT))
        return
    async with serve_containers(config_for(emulator, grace=0.1)) as containers:
        config = session_config(database_url, containers.target, emulator.proxy_url, grace=TIMEOUT)
        yield lambda: replica(config)


def target_of(server: Any) -> str:
    """Its address. Any: as for Open."""
    return str(getattr(server, "running", server).target)


class Callers:
    """Callers in closed loops on one channel, half of whose calls are refused."""

    def __init__(self, channel: grpc.aio.Channel, refused: str) -> None:
        # Any: requests and answers are bytes.
        self._methods: list[Any] = [channel.unary_unary(CHECK), channel.unary_unary(refused)]
        self.answered = 0
        self.failures: list[str] = []
        self._ending = False
        self._tasks = [asyncio.create_task(self._calls(n % 2)) for n in range(CALLERS)]

    async def until_all_called(self) -> None:
        """Wait until all of them have called again, and more than once."""
        answered = self.answered
        assert await eventually(lambda: self.answered > answered + 3 * CALLERS, timeout=TIMEOUT)

    async def end(self) -> None:
        """End when the calls under way have ended."""
        self._ending = True
        await asyncio.gather(*self._tasks)

    async def _calls(self, kind: int) -> None:
        expected = (grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT)[kind]
        while not self._ending:
            code = grpc.StatusCode.OK
            try:
                await self._methods[kind](b"", timeout=TIMEOUT)
            except grpc.aio.AioRpcError as error:
                code = error.code()
            self.answered += 1
            if code != expected:
                self.failures.append(code.name)


async def test_no_call_fails_when_one_of_two_servers_stops(
    service: str, opener: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither an answered one nor a refused one, by callers that repeat nothing.

    Without our order of steps, nine of ten of the calls in flight at that server are CANCELLED.
    """
    # On a machine whose cores are taken, gRPC's threads get none for longer than the usual looks.
    monkeypatch.setattr(stopping, "QUIET_LOOKS", 50)
    monkeypatch.setattr(stopping, "LONGEST_HOLD", 10.0)
    options = (("grpc.lb_policy_name", "round_robin"), ("grpc.enable_retries", 0))
    async with AsyncExitStack() as stack:
        staying = await stack.enter_async_context(opener())
        leaving = await stack.enter_async_context(AsyncExitStack())
        other = await leaving.enter_async_context(opener())
        target = f"ipv4:{target_of(staying)},{target_of(other)}"
        channel = grpc.aio.insecure_channel(target, options=options)
        await stack.enter_async_context(channel)
        callers = Callers(channel, REFUSED[service])
        await callers.until_all_called()
        await leaving.aclose()
        await callers.until_all_called()
        await callers.end()
    assert callers.failures == []


async def test_a_stream_of_the_health_service_ends_with_its_server(opener: Open) -> None:
    """It says NOT_SERVING before. It held a stop up for the whole grace."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(AsyncExitStack())
        running = await server.enter_async_context(opener())
        channel = grpc.aio.insecure_channel(target_of(running))
        await stack.enter_async_context(channel)
        watch: Any = channel.unary_stream(
            "/grpc.health.v1.Health/Watch",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )(health_pb2.HealthCheckRequest())
        while (await watch.read()).status != health_pb2.HealthCheckResponse.SERVING:
            pass
        closing = asyncio.create_task(server.aclose())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert await watch.read() is grpc.aio.EOF
        await closing
