"""Wrap the handlers of a server's methods: each once, in all layers, and not at every call."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import grpc

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    # Any: messages of every type.
    Handler = grpc.RpcMethodHandler[Any, Any]
    Context = grpc.aio.ServicerContext[Any, Any]
    #: Makes a behavior of another one. Any: behaviors of four kinds.
    Change = Callable[[Any], Any]


class Wrapping(grpc.aio.ServerInterceptor, ABC):
    """Base of interceptors that wrap the handler of each method once, and keep the wrapped one."""

    def __init__(self) -> None:
        self._wrapped: dict[str, Handler] = {}

    @abstractmethod
    def wrap(self, method: str, handler: Handler) -> Handler:
        """The handler that takes the place of the method's."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """The wrapped handler; None for a method that does not exist."""
        method = str(handler_call_details.method)
        wrapped = self._wrapped.get(method)
        if wrapped is None:
            handler = await continuation(handler_call_details)
            if handler is None:
                return None
            wrapped = self._wrapped[method] = self.wrap(method, handler)
        return wrapped


class Layers(Wrapping):
    """Several of them as one, which has the only table. The first is the outermost."""

    def __init__(self, *layers: Wrapping) -> None:
        super().__init__()
        self._layers = layers

    def for_another_server(self) -> Layers:
        """The same layers. A server has a table of its own: with another's it would serve what the
        other serves.
        """
        return Layers(*self._layers)

    def wrap(self, method: str, handler: Handler) -> Handler:
        """The handler in all layers."""
        for layer in reversed(self._layers):
            handler = layer.wrap(method, handler)
        return handler


def is_generator(behavior: Any) -> bool:
    """Whether a streaming behavior is an async generator. Else it is a coroutine function that
    writes to the context, as Watch of the health service is.
    """
    return not inspect.iscoroutinefunction(behavior)


def rebuilt(handler: Handler, one: Change, many: Change, *, parses: bool = True) -> Handler:
    """A handler of the same kind with another behavior: made by `many` of an async generator, else
    by `one`. `parses` False: gRPC gives it the bytes of requests.

    Raises TypeError for an unknown kind of handler.
    """
    serializers = (handler.request_deserializer if parses else None, handler.response_serializer)
    if handler.unary_unary:
        return grpc.unary_unary_rpc_method_handler(one(handler.unary_unary), *serializers)
    if handler.stream_unary:
        return grpc.stream_unary_rpc_method_handler(one(handler.stream_unary), *serializers)
    if handler.unary_stream:
        change = many if is_generator(handler.unary_stream) else one
        return grpc.unary_stream_rpc_method_handler(change(handler.unary_stream), *serializers)
    if handler.stream_stream:
        change = many if is_generator(handler.stream_stream) else one
        return grpc.stream_stream_rpc_method_handler(change(handler.stream_stream), *serializers)
    raise TypeError("unknown kind of method handler")
