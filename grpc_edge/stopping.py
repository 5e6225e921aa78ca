"""End a server so that no call fails which waits for its turn.

grpc.aio takes one call at a time from gRPC's core. A call that lies in the core when `Server.stop`
begins ends with CANCELLED, and no handler ever sees it: of 100 callers on one connection 98. So
the server stops when nothing lies there. For a moment answers that are ready are held back, so that
callers that wait for them send nothing new, and calls that come are taken and not yet handled, so
that the rest of the queue is taken soon. When none comes any more, `Server.stop` tells the clients
(GOAWAY), and only then the answers go out: the next calls go to another server.
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

#: The longest time for which calls are held, in s. Callers that do not wait for answers send new
#: ones all the time.
LONGEST_HOLD = 0.5
#: How often it is looked whether a handler has begun, in s, and how often in a row none must have.
#: They are counted because a look takes longer where gRPC's threads wait for a core: a call passes
#: four of them.
LOOK = 0.01
QUIET_LOOKS = 10
#: The looks in which the clients are told before the answers go out.
TELL_LOOKS = 4
#: Streams that no client ends as long as it is content. They would hold a stop up for its grace.
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

        `end_streams` ends the streams that would not end by themselves; it is called when their
        callers will not come back to this server.
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
                # Becomes the status of the call further out, which is an answer too.
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
        """A behavior that writes to its context, and ends when the server stops."""

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
