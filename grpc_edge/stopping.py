"""Stop a server so that the calls that wait in gRPC's queue do not fail.

grpc.aio takes one call at a time from the queue of gRPC's core. When `Server.stop` begins, each
call that is still in the queue ends with CANCELLED, and no handler ever sees it. With 100 callers
on one connection, up to 98 calls ended so.

So the server empties the queue before it stops. It holds back its answers, so that callers that
wait for an answer send no new call. It takes new calls from the queue and does not handle them yet,
so that the queue is soon empty. When no new call comes any more, `Server.stop` tells the clients to
leave (GOAWAY). Only then the answers go out, and the clients send their next calls to another
server.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from grpc_edge.handlers import Wrapping, rebuilt

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    import grpc

    from grpc_edge.handlers import Context, Handler

#: The longest wait for an empty queue, in s. It needs a limit because callers that do not wait for
#: answers send new calls all the time.
LONGEST_HOLD = 0.5
#: The time between two looks at the number of handlers that have begun, in s; and the number of
#: looks in a row without a new handler after which the queue counts as empty. It is a number of
#: looks and not a time: a call passes four threads of gRPC, and on a machine whose cores are busy
#: both those threads and the looks take longer.
LOOK = 0.01
QUIET_LOOKS = 10
#: The time that GOAWAY has to reach the clients before the answers go out, as a number of `LOOK`.
TELL_LOOKS = 4
#: Streams that stay open as long as the client wants. Each would delay a stop by its whole grace.
ENDLESS = ("/grpc.health.v1.Health/Watch",)


class GracefulStop(Wrapping):
    """The innermost layer of a server, and the way to stop that server."""

    def __init__(self) -> None:
        super().__init__()
        self._begun = 0
        self._released: asyncio.Event | None = None
        self._stopping = asyncio.Event()

    def wrap(self, method: str, handler: Handler) -> Handler:
        """Count and hold the method's calls."""
        if method in ENDLESS:
            return rebuilt(handler, lambda behavior: self._one(self._ended(behavior)), self._many)
        return rebuilt(handler, self._one, self._many)

    async def stop(
        self, server: grpc.aio.Server, grace: float, end_streams: Callable[[], None] | None = None
    ) -> None:
        """Stop the server. Calls in flight have `grace` seconds to finish, and are cancelled then.

        `end_streams` ends the streams that would not end by themselves. It is called first; the
        ends of the streams are held back as answers are, so that the callers open the next stream
        at another server.
        """
        self._released = asyncio.Event()
        try:
            self._stopping.set()
            if end_streams is not None:
                end_streams()
            await self._until_quiet()
            stopped = asyncio.ensure_future(server.stop(grace))
            for _ in range(TELL_LOOKS):
                await asyncio.sleep(LOOK)
        finally:
            self._released.set()
        await stopped

    async def _until_quiet(self) -> None:
        """Wait until no handler begins any more, for LONGEST_HOLD at most."""
        quiet, begun = 0, self._begun
        for _ in range(round(LONGEST_HOLD / LOOK)):
            await asyncio.sleep(LOOK)
            quiet = quiet + 1 if begun == self._begun else 0
            begun = self._begun
            if quiet == QUIET_LOOKS:
                return

    async def _begin(self) -> None:
        """Called by each handler before it begins."""
        self._begun += 1
        await self._hold()

    async def _hold(self) -> None:
        """Called by each handler before it answers."""
        if self._released is not None:
            await self._released.wait()

    # Any: behaviors take and give messages of every type.

    def _one(self, behavior: Any) -> Any:
        async def call(request: Any, context: Context) -> Any:
            await self._begin()
            try:
                answer = await behavior(request, context)
            except Exception:
                # An outer interceptor turns this error into the status of the call. A status is an
                # answer too.
                await self._hold()
                raise
            await self._hold()
            return answer

        return call

    def _many(self, behavior: Any) -> Any:
        async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
            await self._begin()
            try:
                async with aclosing(behavior(request, context)) as answers:
                    async for answer in answers:
                        yield answer
            except Exception:
                await self._hold()
                raise
            await self._hold()

        return stream

    def _ended(self, behavior: Any) -> Any:
        """A streaming behavior that writes its answers to the context. When the server stops, the
        behavior is cancelled, and the stream ends without an error.
        """

        async def call(request: Any, context: Context) -> None:
            running = asyncio.ensure_future(behavior(request, context))
            stopping = asyncio.ensure_future(self._stopping.wait())
            try:
                await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                stopping.cancel()
                running.cancel()
            await asyncio.wait({running})
            await self._hold()
            if not running.cancelled():
                running.result()

        return call
