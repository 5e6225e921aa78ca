"""Turns at the provider: so many transitions at work at once, and who waits waits fairly.

The shell around `queue`. A transition that waits is owned like one that works: its lease is
renewed, and its time goes on. Three kinds of places: for what somebody waits for; for background
work, which has few of its own, so that a wave of it neither takes a start's place nor is starved;
and, for each app, for create calls, since the provider lets an app create one machine a second.

A place is for asking the provider. A start gives its own back where others must be waited for: the
app's create calls, an image that is being pulled, a preview that does not answer yet. And no lane
has all the places, so that one user's machines that hang hold nobody else up.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING

from session_service.errors import ProviderRateLimited
from session_service.lifecycle.queue import FairQueue

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from types import TracebackType

    from session_service.domain.session import Key, Session
    from session_service.lifecycle.ownership import Held
    from session_service.lifecycle.queue import Path

_log = logging.getLogger(__name__)

#: The longest that a caller who finds the queue full is told to wait, in s.
LONGEST_RETRY = 60.0
#: Create calls that the provider lets an app make, a second.
CREATE_RATE = 1.0
#: A queue that stays full says so once in so many s.
TELL_EVERY = 10.0


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of a replica's work goes on at once, and how much may wait."""

    starts: int = 64
    """Transitions at work that somebody waits for."""

    background: int = 16
    """Transitions at work that nobody waits for, beside those."""

    creates: int = 4
    """Create calls under way for each app: more than one, so that the next is there in time."""

    length: int = 1024
    """Waiting for either; whoever has few waiting finds room in a queue that others filled."""

    creates_length: int = 120
    """Waiting for a create call, for each app: as many as can come in a transition's time."""


class Places:
    """So many places at work, and a fair queue before them."""

    def __init__(self, name: str, places: int, length: int, rate: float | None = None) -> None:
        """`rate` is about how many a second are served; as many as there are places, if None."""
        self._name = name
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
            async with asyncio.timeout(patience):
                await turn
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

    def leave(self, path: Path) -> None:
        """Give a place of this lane back: it is the next one's."""
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


class Turn:
    """One transition's turn: an async context manager, inside of which it is at work."""

    def __init__(self, turns: Turns, places: Places, path: Path, held: Held) -> None:
        self._turns = turns
        self._places = places
        self._path = path
        self._held = held
        self._at_work = False
        #: Whether it had to wait: what was read before may not be so any more.
        self.waited = False

    async def __aenter__(self) -> Turn:
        """Wait for the turn. Raises ProviderRateLimited, ProviderUnavailable."""
        self.waited = await self._places.enter(self._path, self._held.left)
        self._at_work = True
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the place to the next."""
        self.step_back()

    def step_back(self) -> None:
        """Give the place to the next already: what is left to do is to wait for others."""
        if self._at_work:
            self._at_work = False
            self._places.leave(self._path)

    @asynccontextmanager
    async def creating(self, app: str) -> AsyncGenerator[None]:
        """Step back, and wait for one of the app's create calls. Raises as entering does."""
        self.step_back()
        async with self._turns.create_call(app, self._path, self._held):
            yield


class Turns:
    """All the places of one replica."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._starts = Places("starts", limits.starts, limits.length)
        self._background = Places("background work", limits.background, limits.length)
        self._creates: dict[str, Places] = {}

    def check_room(self, key: Key, creates_in: str | None = None) -> None:
        """Raise ProviderRateLimited where a start could not even wait, before it is committed.

        `creates_in` is the app that it will create in, None where it will resume.
        """
        self._starts.check_room(_path(key))
        if creates_in is not None and creates_in in self._creates:
            self._creates[creates_in].check_room(_path(key))

    @property
    def figures(self) -> dict[str, tuple[int, int]]:
        """How many are at work and how many wait, by kind of place."""
        creates = {f"creates in {app}": places.figures for app, places in self._creates.items()}
        return {
            "starts": self._starts.figures,
            "background": self._background.figures,
            **creates,
        }

    def turn(self, session: Session, held: Held) -> Turn:
        """A turn for a transition's work, to be entered."""
        places = self._background if is_background(session) else self._starts
        return Turn(self, places, _path(session.key), held)

    @asynccontextmanager
    async def create_call(self, app: str, path: Path, held: Held) -> AsyncGenerator[None]:
        """The place of one create call."""
        places = self._creates.get(app)
        if places is None:
            limits = self._limits
            what = f"creates in {app}"
            places = Places(what, limits.creates, limits.creates_length, CREATE_RATE)
            self._creates[app] = places
        try:
            await places.enter(path, held.left)
            try:
                yield
            finally:
                places.leave(path)
        finally:
            if places.idle and self._creates.get(app) is places:
                del self._creates[app]


def is_background(session: Session) -> bool:
    """Whether nobody waits for the session's transition."""
    return session.decision_id is None or session.cause is not None


def _path(key: Key) -> Path:
    return key.tenant, key.project_id, key.user_id
