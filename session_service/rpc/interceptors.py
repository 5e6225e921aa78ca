"""The interceptor of every call: maps errors to gRPC statuses by one table.

An unexpected exception is logged with its traceback, and the caller gets INTERNAL without details.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing
from datetime import timedelta
from time import monotonic
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
from google.rpc import error_details_pb2, status_pb2

from grpc_edge.handlers import Wrapping, rebuilt
from grpc_edge.messages import MalformedMessage, is_unimplemented, parsing
from grpc_edge.readers import ReaderStalled
from grpc_edge.retry import pushback
from session_service import errors
from session_service.errors import InvalidField, RoostError
from session_service.metrics.sink import MetricsSink
from session_service.rpc.policy.render import choice_required

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from grpc_edge.handlers import Context, Handler


_log = logging.getLogger(__name__)

#: The domain of ErrorInfo.
DOMAIN = "roost"
#: The trailing metadata that holds the serialized google.rpc.Status.
DETAILS_HEADER = "grpc-status-details-bin"
#: The reason under which an unexpected exception is counted.
UNEXPECTED = "INTERNAL"
#: gRPC limits trailing metadata to 8 KiB by default, and the status is in it. Texts that come from
#: the caller or from the provider can be long, and are therefore shortened.
_MESSAGE_LIMIT = 400
_VALUE_LIMIT = 200
_VIOLATION_LIMIT = 10

_Code = grpc.StatusCode

#: The entry of the most specific class decides.
TABLE: dict[type[errors.RoostError], grpc.StatusCode] = {
    errors.InvalidField: _Code.INVALID_ARGUMENT,
    errors.RequestIdReused: _Code.INVALID_ARGUMENT,
    errors.SessionNotFound: _Code.NOT_FOUND,
    errors.LiveSessionExists: _Code.ALREADY_EXISTS,
    errors.SessionStateConflict: _Code.FAILED_PRECONDITION,
    errors.ContinuityUnavailable: _Code.FAILED_PRECONDITION,
    errors.SuspendUnsupported: _Code.FAILED_PRECONDITION,
    errors.SuspendFailedStillRunning: _Code.FAILED_PRECONDITION,
    errors.ProviderRefused: _Code.FAILED_PRECONDITION,
    errors.EtagMismatch: _Code.ABORTED,
    errors.AgentSessionNotFound: _Code.NOT_FOUND,
    errors.AgentSessionExists: _Code.ALREADY_EXISTS,
    errors.AgentSessionExpired: _Code.FAILED_PRECONDITION,
    errors.TurnConflict: _Code.ABORTED,
    errors.CheckpointMissing: _Code.NOT_FOUND,
    errors.CheckpointNotReady: _Code.FAILED_PRECONDITION,
    errors.CheckpointCorrupt: _Code.DATA_LOSS,
    errors.CheckpointPinned: _Code.FAILED_PRECONDITION,
    errors.CheckpointInUse: _Code.FAILED_PRECONDITION,
    errors.CheckpointUnsupported: _Code.FAILED_PRECONDITION,
    errors.CheckpointTooLarge: _Code.RESOURCE_EXHAUSTED,
    errors.StateHookFailed: _Code.FAILED_PRECONDITION,
    errors.PolicyForbids: _Code.FAILED_PRECONDITION,
    errors.FingerprintChanged: _Code.FAILED_PRECONDITION,
    errors.ChoiceRequired: _Code.FAILED_PRECONDITION,
    errors.ChoiceTokenInvalid: _Code.INVALID_ARGUMENT,
    errors.ChoiceTokenExpired: _Code.FAILED_PRECONDITION,
    errors.ChoiceTokenUsed: _Code.FAILED_PRECONDITION,
    errors.ChoiceStale: _Code.FAILED_PRECONDITION,
    errors.ProviderCapacity: _Code.RESOURCE_EXHAUSTED,
    errors.ProviderRateLimited: _Code.RESOURCE_EXHAUSTED,
    errors.QuotaExceeded: _Code.RESOURCE_EXHAUSTED,
    errors.Retryable: _Code.UNAVAILABLE,
}


def code_of(error: errors.RoostError) -> grpc.StatusCode:
    """The error's gRPC code; INTERNAL if the table has no class of the error."""
    for kind in type(error).__mro__:
        if kind in TABLE:
            return TABLE[kind]
    return _Code.INTERNAL


def status_of(error: errors.RoostError) -> status_pb2.Status:
    """The complete status: code, message, ErrorInfo, and the details of the error's class
    (BadRequest, ChoiceRequired, RetryInfo).
    """
    status = status_pb2.Status(
        code=code_of(error).value[0], message=shorten(error.message, _MESSAGE_LIMIT)
    )
    metadata = {key: shorten(value, _VALUE_LIMIT) for key, value in error.metadata.items()}
    status.details.add().Pack(
        error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata)
    )
    if isinstance(error, errors.InvalidField):
        status.details.add().Pack(_bad_request(error))
    if isinstance(error, errors.ChoiceRequired):
        status.details.add().Pack(choice_required(error))
    if isinstance(error, errors.Retryable):
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromTimedelta(timedelta(seconds=error.retry_after))
        status.details.add().Pack(retry)
    return status


def shorten(text: str, limit: int) -> str:
    """The text, cut to at most `limit` characters."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _bad_request(error: errors.InvalidField) -> error_details_pb2.BadRequest:
    return error_details_pb2.BadRequest(
        field_violations=[
            error_details_pb2.BadRequest.FieldViolation(
                field=shorten(violation.field, _VALUE_LIMIT),
                description=shorten(violation.description, _VALUE_LIMIT),
            )
            for violation in error.violations[:_VIOLATION_LIMIT]
        ]
    )


class ErrorInterceptor(Wrapping):
    """If a call raises an error: ends the call with the status of the error, counts the error, and
    logs it.

    Details of an unexpected exception are in the log only.
    """

    def __init__(self, metrics: MetricsSink | None = None) -> None:
        super().__init__()
        self._metrics = metrics or MetricsSink()

    def wrap(self, method: str, handler: Handler) -> Handler:
        """The method's handler with its errors mapped. Raises TypeError for an unknown kind."""
        return rebuilt(
            parsing(handler),
            lambda behavior: _unary(behavior, method, self._metrics),
            lambda behavior: _streaming(behavior, method, self._metrics),
        )


def _unary(behavior: Any, method: str, metrics: MetricsSink) -> Any:
    async def answer(request: Any, context: Context) -> Any:
        began = monotonic()
        try:
            response = await behavior(request, context)
        except asyncio.CancelledError as error:
            await _abort_interrupted(context, method, error, began, metrics)
        except Exception as error:  # noqa: BLE001  # answered and logged by _abort
            await _abort(context, method, error, began, metrics)
        _log.debug("answered %s", method, extra={"action": "rpc", "ms": _milliseconds_since(began)})
        return response

    return answer


def _streaming(behavior: Any, method: str, metrics: MetricsSink) -> Any:
    async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
        began = monotonic()
        try:
            async with aclosing(behavior(request, context)) as responses:
                async for response in responses:
                    yield response
        except asyncio.CancelledError as error:
            await _abort_interrupted(context, method, error, began, metrics)
        except Exception as error:  # noqa: BLE001  # answered and logged by _abort
            await _abort(context, method, error, began, metrics)

    return stream


async def _abort_interrupted(
    context: Context,
    method: str,
    error: asyncio.CancelledError,
    began: float,
    metrics: MetricsSink,
) -> NoReturn:
    """End a call whose handler raised CancelledError although the call was not cancelled: another
    task, which the handler waited for, was cancelled. grpc.aio sends no status for CancelledError.
    Without this the client would wait for its whole deadline.

    If the client or the server's stop cancelled the call, grpc has cancelled this task, and the
    error is raised again.
    """
    task = asyncio.current_task()
    if context.cancelled() or (task is not None and task.cancelling()):
        raise error
    stopping = errors.ServiceStopping("this replica stopped working on the call; try again")
    stopping.__cause__ = error
    await _abort(context, method, stopping, began, metrics)


async def _abort(
    context: Context, method: str, error: Exception, began: float, metrics: MetricsSink
) -> NoReturn:
    """End a call with the status of an error. No other code of session_service aborts a call.

    An AbortError comes from a handler of grpc, such as the health service, that has aborted the
    call itself. It is raised again, since the call has its status already.
    """
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if is_unimplemented(error, context):
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{method} is not implemented")
    if isinstance(error, MalformedMessage):
        error = InvalidField.of("request", str(error))
    if isinstance(error, ReaderStalled):
        error = errors.StreamNotRead(str(error))
    reason = error.reason if isinstance(error, RoostError) else UNEXPECTED
    metrics.refused(method.rpartition("/")[2], reason)
    keys = {"action": "rpc", "method": method, "ms": _milliseconds_since(began)}
    if not isinstance(error, RoostError):
        _log.error("unexpected error in %s", method, exc_info=error, extra=keys)
        await context.abort(grpc.StatusCode.INTERNAL, "internal error")
    level = logging.DEBUG if isinstance(error, InvalidField) else logging.INFO
    _log.log(
        level,
        "rejected %s: %s",
        method,
        error.message,
        exc_info=error.__cause__ if _log.isEnabledFor(logging.DEBUG) else None,
        extra={**keys, "reason": reason, "details": error.metadata},
    )
    status = status_of(error)
    await context.abort(
        code_of(error),
        status.message,
        ((DETAILS_HEADER, status.SerializeToString()), pushback(status)),
    )


def _milliseconds_since(began: float) -> float:
    return round((monotonic() - began) * 1000, 1)
