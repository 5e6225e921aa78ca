"""The health check of a gRPC server, from a client's side."""

from __future__ import annotations

import asyncio

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

#: By default gRPC waits a second after a refused connection, and channels share that wait.
OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
    ("grpc.use_local_subchannel_pool", 1),
)
#: The errors of a server that does not accept calls yet.
_AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


async def serving(target: str) -> None:
    """Wait, without a time limit, until the server answers SERVING."""
    async with grpc.aio.insecure_channel(target, options=OPTIONS) as channel:
        while not await _serves(channel):  # noqa: ASYNC110  (no event to wait for)
            await asyncio.sleep(0.05)


async def _serves(channel: grpc.aio.Channel) -> bool:
    # Called by its path: the stub of this package has no types.
    check = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=HealthCheckRequest.SerializeToString,
        response_deserializer=HealthCheckResponse.FromString,
    )
    try:
        answer = await check(HealthCheckRequest(), timeout=2)
    except grpc.aio.AioRpcError as error:
        if error.code() in _AWAY:
            return False
        raise
    return answer.status == HealthCheckResponse.SERVING
