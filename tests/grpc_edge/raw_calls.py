"""Calls with plain bytes, of methods of every kind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from tests.grpc_edge.conftest import Method

#: The longest that one call may take, in s.
TIMEOUT = 20.0


def path_of(method: Method) -> str:
    """The method's path in HTTP/2."""
    return f"/{method.containing_service.full_name}/{method.name}"


async def call(
    channel: grpc.aio.Channel,
    path: str,
    messages: Sequence[bytes],
    *,
    client_streaming: bool,
    server_streaming: bool,
    timeout: float = TIMEOUT,
) -> grpc.aio.AioRpcError | None:
    """Send these bytes as the method's request, and read its whole answer. Returns its error."""

    async def each() -> AsyncIterator[bytes]:
        for message in messages:
            yield message

    # Any: requests and answers are bytes here.
    request: Any = each() if client_streaming else messages[0]
    kind = ("stream" if client_streaming else "unary", "stream" if server_streaming else "unary")
    multi: Any = getattr(channel, f"{kind[0]}_{kind[1]}")(path)
    try:
        if server_streaming:
            async for _ in multi(request, timeout=timeout):
                pass
        else:
            await multi(request, timeout=timeout)
    except grpc.aio.AioRpcError as error:
        return error
    return None


async def call_method(
    channel: grpc.aio.Channel, method: Method, *messages: bytes, timeout: float = TIMEOUT
) -> grpc.aio.AioRpcError | None:
    """The same for a method of a descriptor."""
    return await call(
        channel,
        path_of(method),
        messages,
        client_streaming=method.client_streaming,
        server_streaming=method.server_streaming,
        timeout=timeout,
    )
