"""What surrounds every call: errors turned into statuses, and a line in the log.

A call that goes well leaves a line at DEBUG only: at INFO it would be a tenth of a reuse's price,
and its decision row tells more.
"""

from __future__ import annotations

import inspect
import logging
from time import monotonic
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
import grpc.aio

from session_service.errors import InvalidField, RoostError
from session_service.meters import Meter
from session_service.rpc.status import code_of, shorten, status_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    # Any: one interceptor stands around methods of every request and response.
    Handler = grpc.RpcMethodHandler[Any, Any]
    Context = grpc.aio.ServicerContext[Any, Any]

_log = logging.getLogger(__name__)
DETAILS_HEADER = "grpc-status-details-bin"
MESSAGE_LIMIT = 400
#: The reason that an error is counted by which nobody foresaw.
UNFORESEEN = "INTERNAL"


class ErrorAnswer(grpc.aio.ServerInterceptor):
    """Answers refusals by their status; of an error that nobody foresaw only the log tells."""

    def __init__(self, meter: Meter | None = None) -> None:
        self._wrapped: dict[str, Handler] = {}
        self._meter = meter or Meter()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Wrap the method's handler, once for all its calls; an unknown method has none."""
        method = str(handler_call_details.method)
        wrapped = self._wrapped.get(method)
        if wrapped is None:
            handler = await continuation(handler_call_details)
            if handler is None:
                return None
            wrapped = self._wrapped[method] = surround(handler, method, self._meter)
        return wrapped


def surround(handler: Handler, method: str, meter: Meter) -> Handler:
    """The same handler, its errors answered. A handler of a new kind fails loudly."""
    serializers = (handler.request_deserializer, handler.response_serializer)
    if handler.unary_unary:
        return grpc.unary_unary_rpc_method_handler(
            _answering(handler.unary_unary, method, meter), *serializers
        )
    if handler.unary_stream:
        return grpc.unary_stream_rpc_method_handler(
            _streaming(handler.unary_stream, method, meter), *serializers
        )
    if handler.stream_unary:
        return grpc.stream_unary_rpc_method_handler(
            _answering(handler.stream_unary, method, meter), *serializers
        )
    if handler.stream_stream:
        return grpc.stream_stream_rpc_method_handler(
            _streaming(handler.stream_stream, method, meter), *serializers
        )
    raise TypeError(f"a method handler of no known kind: {method}")


def _answering(behavior: Any, method: str, meter: Meter) -> Any:
    async def answer(request: Any, context: Context) -> Any:
        began = monotonic()
        try:
            response = await behavior(request, context)
        except Exception as error:  # noqa: BLE001  # answered and logged by _abort
            await _abort(context, method, error, began, meter)
        _log.debug("answered %s", method, extra={"action": "rpc", "ms": _since(began)})
        return response

    return answer


def _streaming(behavior: Any, method: str, meter: Meter) -> Any:
    """A streaming method is a generator, or writes by itself: the health service's Watch does."""
    if inspect.iscoroutinefunction(behavior):
        return _answering(behavior, method, meter)

    async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
        began = monotonic()
        try:
            async for response in behavior(request, context):
                yield response
        except Exception as error:  # noqa: BLE001  # answered and logged by _abort
            await _abort(context, method, error, began, meter)

    return stream


async def _abort(
    context: Context, method: str, error: Exception, began: float, meter: Meter
) -> NoReturn:
    """End a call with an error's status. The only place that does."""
    if isinstance(error, grpc.aio.AbortError):
        raise error
    reason = error.reason if isinstance(error, RoostError) else UNFORESEEN
    meter.refused(method.rpartition("/")[2], reason)
    keys = {"action": "rpc", "method": method, "ms": _since(began)}
    if not isinstance(error, RoostError):
        _log.error("failed unforeseen in %s", method, exc_info=error, extra=keys)
        await context.abort(grpc.StatusCode.INTERNAL, "internal error")
    level = logging.DEBUG if isinstance(error, InvalidField) else logging.INFO
    _log.log(
        level,
        "refused %s: %s",
        method,
        error.message,
        exc_info=error.__cause__ if _log.isEnabledFor(logging.DEBUG) else None,
        extra={**keys, "reason": reason, "details": error.metadata},
    )
    details = status_of(error).SerializeToString()
    await context.abort(
        code_of(error), shorten(error.message, MESSAGE_LIMIT), ((DETAILS_HEADER, details),)
    )


def _since(began: float) -> float:
    return round((monotonic() - began) * 1000, 1)
