"""The file system behind one thread, so that the event loop never waits for it."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class Disk:
    """Does file work one piece after the other, in the order it was asked for.

    So a change can be made in memory and handed over in one step, and an answer that tells of it
    is held until `settled`: what was answered is on disk, and nobody blocked.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fly-disk")
        self._last: Future[None] | None = None
        self._failure: OSError | None = None

    def later(self, work: Callable[[], None]) -> None:
        """Do it in turn; a failure shows at every `settled` from then on."""
        self._last = self._thread.submit(self._keep_failure, work)

    async def run(self, work: Callable[[], _T]) -> _T:
        """Do it in turn and wait for what it gives. Being cancelled does not undo it."""
        return await asyncio.wrap_future(self._thread.submit(work))

    async def settled(self) -> None:
        """Wait until all that was handed over is done; raises the first failure there was."""
        if self._last is not None and not self._last.done():
            await asyncio.shield(asyncio.wrap_future(self._last))
        if self._failure is not None:
            raise self._failure

    async def close(self) -> None:
        """Finish what was handed over."""
        await self.run(lambda: None)
        self._thread.shutdown(wait=False)

    def _keep_failure(self, work: Callable[[], None]) -> None:
        try:
            work()
        except OSError as error:
            _log.exception("cannot write")
            self._failure = self._failure or error
