"""Places at work, and a fair queue before them: the shell around `queue` that lets callers wait.

No lane has all the places, so that one user's work that hangs holds nobody else up.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from time import monotonic
from typing import TYPE_CHECKING

from session_service.errors import ProviderRateLimited
from session_service.lifecycle.queue import FairQueue

if TYPE_CHECKING:
    from session_service.lifecycle.queue import Path

_log = logging.getLogger(__name__)

#: The longest that a caller who finds the queue full is told to wait, in s.
LONGEST_RETRY = 60.0
#: A queue that stays full says so once in so many s.
TELL_EVERY = 10.0


class Places:
    """So many places at work, and a fair queue before them."""

    def __init__(
        self,
        name: str,
        places: int,
        length: int,
        rate: float | None = None,
        *,
        moving: bool = False,
    ) -> None:
        """`rate` is about how many a second are served; as many as there are places, if None.

        With `moving` patience is counted anew whenever somebody was served.
        """
        self._name = name
        self._moving = moving
        self._served = 0.0
        self._rate = float(places) if rate is None else rate
        self._places = places
        self._length = length
        #: The most that one lane may have: some are left for the others, one in eight.
        self._most = max(1, places - max(1, places // 8))
        self._at_work: Counter[Path] = Counter()
        self._taken = 0
        self._queue: FairQueue[tuple[Path, asyncio.Future[None]]] = FairQueue()
        self._refused = 0
        self._told = 0.0

    @property
    def idle(self) -> bool:
        """Whether nobody is at work and nobody waits."""
        return not self._taken and not self._at_work and not len(self._queue)

    @property
    def figures(self) -> tuple[int, int]:
        """How many are at work, and how many wait."""
        return self._taken, len(self._queue)

    def check_room(self, path: Path) -> None:
        """Raise ProviderRateLimited where one more of this lane cannot even wait."""
        if self._is_free(path) or self._queue.has_room(path, self._length):
            return
        self._tell_full()
        delay = min(LONGEST_RETRY, max(1.0, len(self._queue) / self._rate))
        raise ProviderRateLimited(
            "too many sessions wait for the provider already; try again",
            retry_after=delay * random.uniform(1.0, 1.5),
        )

    async def enter(self, path: Path, patience: float) -> bool:
        """Take a place, waiting for one up to `patience` s; whether it had to be waited for.

        Raises ProviderRateLimited where there is no room to wait or the time is over.
        """
        # Where a place is free, all who wait are of a lane that has its most already.
        if self._is_free(path):
            self._seat(path)
            return False
        self.check_room(path)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        ticket = self._queue.put(path, (path, turn))
        try:
            await self._comes(turn, patience)
        except BaseException as error:
            # Given up, or cancelled. The turn may have come in the same moment: the next has it.
            if turn.done() and not turn.cancelled():
                self.leave(path)
            else:
                self._queue.leave(ticket)
            if not isinstance(error, TimeoutError):
                raise
            raise ProviderRateLimited(
                "the provider was busy with other sessions for as long as a transition may take; "
                "try again"
            ) from None
        return True

    async def _comes(self, turn: asyncio.Future[None], patience: float) -> None:
        """Wait for the turn. Raises TimeoutError."""
        began = monotonic()
        while not turn.done():
            since = max(began, self._served) if self._moving else began
            if (left := since + patience - monotonic()) <= 0:
                raise TimeoutError
            await asyncio.wait({turn}, timeout=left)

    def leave(self, path: Path, *, served: bool = True) -> None:
        """Give a place of this lane back: it is the next one's. `served`: what it was for was done,
        or refused for a reason of its own.
        """
        if served:
            self._served = monotonic()
        self._taken -= 1
        self._at_work[path] -= 1
        if not self._at_work[path]:
            del self._at_work[path]
        # No two can have their most when a place has just come free.
        satisfied = next((p for p, n in self._at_work.items() if n >= self._most), None)
        while (waiting := self._queue.take(but_not=satisfied)) is not None:
            next_path, turn = waiting
            # One that was cancelled just now has not yet left.
            if not turn.done():
                self._seat(next_path)
                turn.set_result(None)
                return

    def _is_free(self, path: Path) -> bool:
        return self._taken < self._places and self._at_work[path] < self._most

    def _seat(self, path: Path) -> None:
        self._taken += 1
        self._at_work[path] += 1

    def _tell_full(self) -> None:
        self._refused += 1
        if monotonic() - self._told < TELL_EVERY:
            return
        _log.warning(
            "the queue for %s is full: %d at work, %d waiting, %d refused",
            self._name,
            self._taken,
            len(self._queue),
            self._refused,
            extra={"action": "queue_full", "at_work": self._taken, "waiting": len(self._queue)},
        )
        self._refused, self._told = 0, monotonic()
