"""Trace one call inside a replica that runs in this process: its tasks, statements and modules.

A gRPC interceptor, put before the service's own, marks the task that answers the call. The mark is
a context variable, so every task that the call creates carries it, and background loops, the health
check and the listener for notifications do not. Nothing here names a module of the service.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import types
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import psycopg

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Iterator
    from types import FrameType

#: Calls of other services in this process (container_service, health) are not traced.
FOLLOWED = ("/roost.session.", "/roost.agent.")
#: How long the trace waits for tasks that outlive their call, in s. The task that renews leases
#: sleeps for longer where the lease is long, and does nothing meanwhile.
SETTLED = 0.5

#: A point at which a task waits: functions with their lines, each called by the one before.
Place = tuple[str, ...]
_trace: ContextVar[Trace | None] = ContextVar("trace", default=None)


@dataclass(eq=False)
class Trace:
    """The trace of one call."""

    package: str = ""
    """Modules below this package are counted; empty: none, which costs nothing."""
    cancel_at: Place | None = None
    """The call's own task is cancelled where it waits here for the first time."""
    late: bool = False
    """Whether it is cancelled once its awaited result is ready, before it resumes."""
    modules: set[str] = field(default_factory=set)
    statements: list[str] = field(default_factory=list)
    """Every statement of the call's tasks but BEGIN, COMMIT and ROLLBACK."""
    places: dict[Place, None] = field(default_factory=dict)
    """Where the call's own task has waited, in order, each once."""
    cancelled: bool = False
    """Whether the call reached the point at which it was to be cancelled."""
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)
    own: asyncio.Task[Any] | None = None
    """The call's own task, once a server has taken it."""
    over: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the call's own task has ended."""

    async def settled(self, seconds: float = SETTLED) -> None:
        """Wait for the tasks that outlive the call."""
        others = {task for task in self.tasks if task is not asyncio.current_task()}
        if others:
            await asyncio.wait(others, timeout=seconds)


class Tracer:
    """Traces calls to servers that are built while it is active."""

    def __init__(self) -> None:
        self._next: Trace | None = None

    @contextmanager
    def tracing_next(self, trace: Trace) -> Iterator[Trace]:
        """Trace the next call that a server accepts."""
        self._next = trace
        loop = asyncio.get_running_loop()
        former = loop.get_task_factory()
        loop.set_task_factory(_noting)
        try:
            with _profiled(trace) if trace.package else _nothing():
                yield trace
        finally:
            self._next = None
            loop.set_task_factory(former)

    def take(self, method: str) -> Trace | None:
        """The trace for an incoming call, if it is to be traced."""
        if not method.startswith(FOLLOWED):
            return None
        trace, self._next = self._next, None
        return trace


@contextmanager
def tracing() -> Iterator[Tracer]:
    """Put the interceptor into servers that are built meanwhile, and record statements."""
    tracer = Tracer()
    server, execute = grpc.aio.server, psycopg.AsyncCursor.execute

    # Any: the arguments of both wrapped functions.
    def marking(*, interceptors: Any = (), **more: Any) -> grpc.aio.Server:
        return server(interceptors=(_Marking(tracer), *interceptors), **more)

    async def noted(self: Any, query: Any, *arguments: Any, **more: Any) -> Any:
        trace = _trace.get()
        if trace is not None:
            text = query.decode() if isinstance(query, bytes) else str(query)
            trace.statements.append(text)
        return await execute(self, query, *arguments, **more)

    grpc.aio.server = marking  # type: ignore[assignment]  # its arguments are all named here
    psycopg.AsyncCursor.execute = noted  # type: ignore[method-assign]
    try:
        yield tracer
    finally:
        grpc.aio.server = server
        psycopg.AsyncCursor.execute = execute  # type: ignore[method-assign]


class _Marking(grpc.aio.ServerInterceptor):
    """Runs before the service's own interceptors, in the task that answers the call."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    # Any: methods of every request and response.
    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        trace = self._tracer.take(str(handler_call_details.method))
        if trace is None:
            return await continuation(handler_call_details)
        task = asyncio.current_task()
        assert task is not None
        trace.tasks.add(task)
        trace.own = task
        task.add_done_callback(lambda done: trace.over.set())
        _trace.set(trace)
        handler = await continuation(handler_call_details)

        async def behave(request: Any, context: Any) -> Any:
            return await _watched(handler.unary_unary(request, context), trace)

        return grpc.unary_unary_rpc_method_handler(
            behave, handler.request_deserializer, handler.response_serializer
        )


@types.coroutine
def _watched(call: Any, trace: Trace) -> Generator[Any, Any, Any]:
    """Run the coroutine, record where it waits, cancel its task at one point. Any: of any call.

    What it awaits is passed on unchanged, so that the event loop sees no difference. The task is
    cancelled as gRPC cancels it when the client hangs up: the wait ends with CancelledError.
    """
    steps = call.__await__()
    error: BaseException | None = None
    while True:
        try:
            waited_for = steps.send(None) if error is None else steps.throw(error)
        except StopIteration as over:
            return over.value
        place = _place(call)
        trace.places[place] = None
        here = place == trace.cancel_at and not trace.cancelled
        trace.cancelled |= here
        if here and not trace.late:
            assert trace.own is not None
            trace.own.cancel()
        error = None
        try:
            yield waited_for
            if here and trace.late:
                raise asyncio.CancelledError
        except BaseException as raised:  # noqa: BLE001  # passed on to the coroutine
            error = raised


def _place(call: Any) -> Place:
    """Where the coroutine waits: the lines of the service's functions, and their callees.

    The number of times that a statement waits for its socket varies; this point does not. Any: of
    any call.
    """
    lines = []
    while call is not None:
        frame = getattr(call, "cr_frame", None) or getattr(call, "gi_frame", None)
        if frame is not None:
            module = frame.f_globals.get("__name__", "")
            within = module.startswith("session_service")
            # A driver's function name is enough: it tells a transaction's BEGIN from its COMMIT.
            lines.append(f"{module}:{frame.f_lineno if within else frame.f_code.co_name}")
        call = getattr(call, "cr_await", None) or getattr(call, "gi_yieldfrom", None)
    return tuple(lines)


# Any: coroutines and options of every kind.
def _noting(loop: asyncio.AbstractEventLoop, coro: Any, **more: Any) -> asyncio.Task[Any]:
    """A task factory that records the tasks that a traced call creates."""
    task: asyncio.Task[Any] = asyncio.Task(coro, loop=loop, **more)
    trace = _trace.get()
    if trace is not None:
        trace.tasks.add(task)
    return task


@contextmanager
def _profiled(trace: Trace) -> Iterator[None]:
    below = trace.package + "."

    # Any: the hook's argument is unused.
    def hook(frame: FrameType, event: str, argument: Any) -> None:
        if event != "call" or _trace.get() is not trace:
            return
        name = frame.f_globals.get("__name__", "")
        code = frame.f_code
        if (
            name.startswith(below)
            # Code that runs at an import is not part of the call, and the methods generated for a
            # dataclass (their file is "<string>") are no code to read.
            and code.co_name != "<module>"
            and code.co_filename.endswith(".py")
            and not code.co_filename.endswith("__init__.py")
        ):
            trace.modules.add(name)

    former = sys.getprofile()
    threading.setprofile(hook)
    sys.setprofile(hook)
    try:
        yield
    finally:
        sys.setprofile(former)
        threading.setprofile(former)


@contextmanager
def _nothing() -> Iterator[None]:
    yield
