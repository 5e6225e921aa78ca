"""File system work on one thread, in order, so that the event loop never blocks on it."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class Disk:
    """Runs file work on one thread, in the order in which it was enqueued.

    A caller changes an object in memory and enqueues the write of it in the same step of the event
    loop, so that the writes of one object keep the order of its changes. The API awaits `flush`
    before it answers, so that every change that an answer reports is on disk.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fly-disk")
        self._last: Future[None] | None = None
        self._failure: OSError | None = None

    def enqueue(self, work: Callable[[], None]) -> None:
        """Enqueue work. If it fails, every later `flush` raises the error."""
        self._last = self._thread.submit(self._keep_failure, work)

    async def run(self, work: Callable[[], _T]) -> _T:
        """Enqueue work and wait for its result. Cancelling the caller does not cancel the work."""
        return await asyncio.wrap_future(self._thread.submit(work))

    async def flush(self) -> None:
        """Wait until all enqueued work is done. Raises the first OSError that any of it raised."""
        if self._last is not None and not self._last.done():
            await asyncio.shield(asyncio.wrap_future(self._last))
        if self._failure is not None:
            raise self._failure

    async def close(self) -> None:
        """Finish the enqueued work and end the thread."""
        await self.run(lambda: None)
        self._thread.shutdown(wait=False)

    def _keep_failure(self, work: Callable[[], None]) -> None:
        try:
            work()
        except OSError as error:
            _log.exception("cannot write")
            self._failure = self._failure or error
