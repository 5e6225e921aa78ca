"""Parse requests inside the handler, where an error becomes a status of ours.

gRPC parses a request before any interceptor sees the call. Bytes that are no message then end the
call with UNKNOWN and the name of a Python class (INTERNAL for a client's stream), and each leaves a
traceback in the log.
"""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import DecodeError

from grpc_edge.handlers import rebuilt

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from grpc_edge.handlers import Context, Handler

    #: Any: the message of the method.
    Parse = Callable[[bytes], Any]


class MalformedMessage(Exception):
    """The bytes of a request are not a message of the method's type. Nothing was done."""

    def __init__(self) -> None:
        super().__init__(
            "must be a message of the method's type, but its bytes cannot be parsed as one"
        )


def parsing(handler: Handler) -> Handler:
    """The same handler, which parses its requests itself: bytes that are no message raise
    MalformedMessage where the handler reads them. Raises TypeError for an unknown kind of handler.
    """
    # Generated handlers always have one; the generic ones of grpcio may take plain bytes.
    parse = handler.request_deserializer
    if parse is None:
        return handler
    one, many = _answers_one, _answers_many
    if handler.request_streaming:
        one, many = _reads_many, _reads_and_answers_many
    return rebuilt(
        handler,
        lambda behavior: one(behavior, parse),
        lambda behavior: many(behavior, parse),
        parses=False,
    )


def is_unimplemented(error: Exception, context: Context) -> bool:
    """Whether the error comes from a generated method that nobody has overridden: it sets the
    status UNIMPLEMENTED and raises NotImplementedError.
    """
    if not isinstance(error, NotImplementedError):
        return False
    # Typed as StatusCode, but an int at run time.
    code: Any = context.code()
    unimplemented = grpc.StatusCode.UNIMPLEMENTED
    return code in (unimplemented, unimplemented.value[0])


def _parsed(parse: Parse, data: bytes) -> Any:
    try:
        return parse(data)
    except DecodeError as error:
        raise MalformedMessage from error


def _answers_one(behavior: Any, parse: Parse) -> Any:
    async def call(request: bytes, context: Context) -> Any:
        return await behavior(_parsed(parse, request), context)

    return call


def _answers_many(behavior: Any, parse: Parse) -> Any:
    async def stream(request: bytes, context: Context) -> AsyncIterator[Any]:
        # Closed with this generator: what it holds must not outlive the call.
        async with aclosing(behavior(_parsed(parse, request), context)) as answers:
            async for answer in answers:
                yield answer

    return stream


def _reads_many(behavior: Any, parse: Parse) -> Any:
    async def call(requests: AsyncIterator[bytes], context: Context) -> Any:
        return await behavior(_each(requests, parse), context)

    return call


def _reads_and_answers_many(behavior: Any, parse: Parse) -> Any:
    async def stream(requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[Any]:
        async with aclosing(behavior(_each(requests, parse), context)) as answers:
            async for answer in answers:
                yield answer

    return stream


async def _each(requests: AsyncIterator[bytes], parse: Parse) -> AsyncIterator[Any]:
    async for request in requests:
        yield _parsed(parse, request)
