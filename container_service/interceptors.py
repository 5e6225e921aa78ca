"""What surrounds every call: its request id and log line, and errors turned into statuses."""

from __future__ import annotations

import inspect
import logging
import re
import time
import uuid
from abc import ABC, abstractmethod
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
import grpc.aio

from container_service.errors import ServiceError
from container_service.logs import request_id
from container_service.status import row_of, shorten, status_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

    Handler = grpc.RpcMethodHandler[Any, Any]
    Context = grpc.aio.ServicerContext[Any, Any]
    Around = Callable[[Context], AbstractAsyncContextManager[None]]

log = logging.getLogger(__name__)

REQUEST_ID_HEADER = "x-request-id"
DETAILS_HEADER = "grpc-status-details-bin"
_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
#: Asked every few seconds by whoever watches over the service: not worth a line at INFO.
_QUIET = "/grpc.health."


class Surrounding(grpc.aio.ServerInterceptor, ABC):
    """An interceptor that runs every call, of whichever of the four kinds, inside `around`."""

    @abstractmethod
    def around(self, method: str, context: Context) -> AbstractAsyncContextManager[None]:
        """What the call runs inside of."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Wrap the method's handler; an unknown method has none."""
        handler = await continuation(handler_call_details)
        method = str(handler_call_details.method)
        if handler is None:
            return handler
        return surround(handler, lambda context: self.around(method, context))


class RequestLog(Surrounding):
    """Gives each call a request id and, at its end, one line."""

    @asynccontextmanager
    async def around(self, method: str, context: Context) -> AsyncGenerator[None]:
        """The caller's request id counts where it is sound; it goes back in the trailers."""
        token = request_id.set(_incoming_request_id(context) or uuid.uuid4().hex)
        context.set_trailing_metadata(((REQUEST_ID_HEADER, request_id.get()),))
        begun = time.monotonic()
        outcome = "CANCELLED"
        try:
            yield
            outcome = "OK"
        except Exception:
            outcome = _code_name(context)
            raise
        finally:
            milliseconds = round((time.monotonic() - begun) * 1000, 1)
            log.log(
                logging.DEBUG if method.startswith(_QUIET) else logging.INFO,
                "Answered %s with %s in %s ms",
                method.rpartition("/")[2],
                outcome,
                milliseconds,
                extra={"action": "rpc", "method": method, "code": outcome, "ms": milliseconds},
            )
            request_id.reset(token)


class ErrorAnswer(Surrounding):
    """Answers errors by their status; of one that nobody foresaw only the log tells."""

    @asynccontextmanager
    async def around(self, method: str, context: Context) -> AsyncGenerator[None]:
        """Everything but an abort that was made already becomes an abort here."""
        try:
            yield
        except grpc.aio.AbortError:
            raise
        except ServiceError as error:
            await abort(context, error)
        except Exception:
            log.exception("Failed unforeseen in %s", method, extra={"action": "internal_error"})
            await context.abort(
                grpc.StatusCode.INTERNAL,
                "internal error",
                ((REQUEST_ID_HEADER, request_id.get()),),
            )


async def abort(context: Context, error: ServiceError) -> NoReturn:
    """End a call with an error's status. The only place that does."""
    status = status_of(error)
    await context.abort(
        row_of(error).code,
        shorten(status.message, 400),
        (
            (REQUEST_ID_HEADER, request_id.get()),
            (DETAILS_HEADER, status.SerializeToString()),
        ),
    )


def surround(handler: Handler, around: Around) -> Handler:
    """The same handler, its behaviour inside `around`. Any new kind of handler fails loudly."""
    serializers = (handler.request_deserializer, handler.response_serializer)
    if handler.unary_unary:
        return grpc.unary_unary_rpc_method_handler(
            _answering(handler.unary_unary, around), *serializers
        )
    if handler.stream_unary:
        return grpc.stream_unary_rpc_method_handler(
            _answering(handler.stream_unary, around), *serializers
        )
    if handler.unary_stream:
        return grpc.unary_stream_rpc_method_handler(
            _streaming(handler.unary_stream, around), *serializers
        )
    if handler.stream_stream:
        return grpc.stream_stream_rpc_method_handler(
            _streaming(handler.stream_stream, around), *serializers
        )
    raise TypeError("a method handler of no known kind")


def _answering(behavior: Any, around: Around) -> Any:
    async def answer(request: Any, context: Context) -> Any:
        async with around(context):
            return await behavior(request, context)

    return answer


def _streaming(behavior: Any, around: Around) -> Any:
    """A streaming method is a generator, or writes by itself: the health service's Watch does."""
    if not inspect.isasyncgenfunction(behavior):
        return _answering(behavior, around)

    async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
        async with around(context):
            async for response in behavior(request, context):
                yield response

    return stream


def _incoming_request_id(context: Context) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID_HEADER and isinstance(value, str) and _REQUEST_ID.fullmatch(value):
            return value
    return ""


def _code_name(context: Context) -> str:
    # An int here, whatever its stub says.
    code: Any = context.code()
    number = code.value[0] if isinstance(code, grpc.StatusCode) else code
    return next((known.name for known in grpc.StatusCode if known.value[0] == number), "UNKNOWN")
