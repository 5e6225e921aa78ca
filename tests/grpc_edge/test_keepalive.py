"""A connection on which nothing happens stays open, also if its client pings often."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

if TYPE_CHECKING:
    from tests.grpc_edge.conftest import Server

#: The interval of a client that keeps its connection open through proxies, in ms.
PING_MS = 10_000
#: Without the settings under test, the server closes such a connection after 30 s.
QUIET_SECONDS = 45.0


@pytest.mark.proof
@pytest.mark.timeout(120)
async def test_a_client_that_pings_each_ten_seconds_is_not_thrown_out(
    servers: tuple[Server, Server],
) -> None:
    """Beside a stream on which nothing comes; the stream and the connection are still there."""
    await asyncio.gather(*(_stays_connected(server.target) for server in servers))


async def _stays_connected(target: str) -> None:
    options = (
        ("grpc.keepalive_time_ms", PING_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    )
    async with grpc.aio.insecure_channel(target, options=options) as channel:
        # Any: grpcio's stubs do not know the type of the answers.
        watch: Any = channel.unary_stream(
            "/grpc.health.v1.Health/Watch",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )(health_pb2.HealthCheckRequest())
        first = await watch.read()
        while first.status != health_pb2.HealthCheckResponse.SERVING:
            first = await watch.read()
        reading = asyncio.ensure_future(watch.read())
        done, _ = await asyncio.wait({reading}, timeout=QUIET_SECONDS)
        assert not done, reading.exception() or reading.result()
        assert channel.get_state() == grpc.ChannelConnectivity.READY
        watch.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
