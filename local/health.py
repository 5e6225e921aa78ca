"""Asking a gRPC server whether it serves."""

from __future__ import annotations

import asyncio

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

#: gRPC's own first pause after a refused connection is a second, and its channels share it.
OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
    ("grpc.use_local_subchannel_pool", 1),
)
#: What it says while it cannot be reached.
_AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


async def serving(target: str) -> None:
    """Return once the server says SERVING, however long it takes."""
    async with grpc.aio.insecure_channel(target, options=OPTIONS) as channel:
        while not await _serves(channel):  # noqa: ASYNC110  (a server says only by answering)
            await asyncio.sleep(0.05)


async def _serves(channel: grpc.aio.Channel) -> bool:
    # The call by its name: the typed stub of this package has no typed methods.
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
