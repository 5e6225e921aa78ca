"""Interceptors of every RPC: request id, log line, and the conversion of errors to statuses."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from abc import abstractmethod
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
import grpc.aio

from container_service.containers.errors import (
    FieldViolation,
    InvalidRequest,
    OutcomeUnknown,
    ServiceError,
    StreamNotRead,
)
from container_service.logs import request_id
from container_service.rpc.status import row_of, shorten, status_of
from grpc_edge.handlers import Wrapping, rebuilt
from grpc_edge.messages import MalformedMessage, is_unimplemented, parsing
from grpc_edge.readers import ReaderStalled
from grpc_edge.retry import pushback

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable

    from grpc_edge.handlers import Context, Handler

    Around = Callable[[Context], AbstractAsyncContextManager[None]]

log = logging.getLogger(__name__)

REQUEST_ID_HEADER = "x-request-id"
DETAILS_HEADER = "grpc-status-details-bin"
_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
#: Health checks come every few seconds: they are logged at DEBUG.
_QUIET = "/grpc.health."


class CallInterceptor(Wrapping):
    """Base of interceptors that run every RPC, unary or streaming, inside a context manager."""

    @abstractmethod
    def around(self, method: str, context: Context) -> AbstractAsyncContextManager[None]:
        """The context manager that the RPC runs inside."""

    def wrap(self, method: str, handler: Handler) -> Handler:
        """Run the method's calls inside `around`."""

        def around(context: Context) -> AbstractAsyncContextManager[None]:
            return self.around(method, context)

        return rebuilt(
            self.prepared(handler),
            lambda behavior: _unary(behavior, around),
            lambda behavior: _streaming(behavior, around),
        )

    def prepared(self, handler: Handler) -> Handler:
        """The handler that `around` is to enclose: by default the same."""
        return handler


class RequestLog(CallInterceptor):
    """Gives each RPC a request id and logs it at its end."""

    @asynccontextmanager
    async def around(self, method: str, context: Context) -> AsyncGenerator[None]:
        """Use the caller's request id if it is valid; return it in the trailing metadata."""
        # Each RPC has a task and therefore a context of its own, which ends with it. A reset would
        # fail for a stream that its client cancels: its generator is closed in another context.
        request_id.set(_incoming_request_id(context) or uuid.uuid4().hex)
        context.set_trailing_metadata(((REQUEST_ID_HEADER, request_id.get()),))
        began = time.monotonic()
        code = "CANCELLED"
        try:
            yield
            code = "OK"
        except Exception:
            code = _code_name(context)
            raise
        finally:
            milliseconds = round((time.monotonic() - began) * 1000, 1)
            log.log(
                logging.DEBUG if method.startswith(_QUIET) else logging.INFO,
                "Answered %s with %s in %s ms",
                method.rpartition("/")[2],
                code,
                milliseconds,
                extra={"action": "rpc", "method": method, "code": code, "ms": milliseconds},
            )


class ErrorStatus(CallInterceptor):
    """Ends a failed RPC with the status of its error. A request that cannot be parsed is one.

    An unexpected exception is logged, and the caller gets INTERNAL without details.

    A handler can raise CancelledError although its RPC was not cancelled: another task, which the
    handler waited for, was cancelled. grpc.aio sends no status for CancelledError, so that the
    caller would wait for its whole deadline. Such an RPC ends with UNAVAILABLE.
    """

    def prepared(self, handler: Handler) -> Handler:
        """Parse requests inside the handler, so that this interceptor sees bytes that are none."""
        return parsing(handler)

    @asynccontextmanager
    async def around(self, method: str, context: Context) -> AsyncGenerator[None]:
        """Turn every exception into an abort, except an abort and the RPC's own cancellation."""
        try:
            yield
        except grpc.aio.AbortError:
            raise
        except asyncio.CancelledError:
            if _is_cancelled(context):
                raise
            await abort(
                context, OutcomeUnknown("the service stopped working on the call; try again")
            )
        except ServiceError as error:
            await abort(context, error)
        except ReaderStalled as error:
            await abort(context, StreamNotRead(str(error)))
        except MalformedMessage as error:
            await abort(context, InvalidRequest(FieldViolation("request", str(error))))
        except Exception as error:
            if is_unimplemented(error, context):
                await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{method} is not implemented")
            log.exception("Unexpected error in %s", method, extra={"action": "internal_error"})
            await context.abort(
                grpc.StatusCode.INTERNAL,
                "internal error",
                ((REQUEST_ID_HEADER, request_id.get()),),
            )


def _is_cancelled(context: Context) -> bool:
    """Whether the RPC itself was cancelled, by its client or because the server stops: grpc then
    cancels the task that runs the handler.
    """
    task = asyncio.current_task()
    return context.cancelled() or (task is not None and bool(task.cancelling()))


async def abort(context: Context, error: ServiceError) -> NoReturn:
    """End an RPC with the status of an error."""
    status = status_of(error)
    await context.abort(
        row_of(error).code,
        shorten(status.message, 400),
        (
            (REQUEST_ID_HEADER, request_id.get()),
            (DETAILS_HEADER, status.SerializeToString()),
            pushback(status),
        ),
    )


def _unary(behavior: Any, around: Around) -> Any:
    async def call(request: Any, context: Context) -> Any:
        async with around(context):
            return await behavior(request, context)

    return call


def _streaming(behavior: Any, around: Around) -> Any:
    async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
        async with around(context), aclosing(behavior(request, context)) as responses:
            async for response in responses:
                yield response

    return stream


def _incoming_request_id(context: Context) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID_HEADER and isinstance(value, str) and _REQUEST_ID.fullmatch(value):
            return value
    return ""


def _code_name(context: Context) -> str:
    # Typed as StatusCode, but an int at run time.
    code: Any = context.code()
    number = code.value[0] if isinstance(code, grpc.StatusCode) else code
    return next((known.name for known in grpc.StatusCode if known.value[0] == number), "UNKNOWN")
