"""How much work a replica does at once: slots, and a fair queue for the work that waits for one.

There are three kinds of slots for work at the provider:

- for transitions that a caller waits for;
- for background transitions. They have a few slots of their own: many at once (idle pauses, for
  example) cannot take the slots of starts, and many starts cannot starve them;
- for create calls, for each app: the provider allows an app about one create call a second.

A transition that waits for a slot is owned like one that runs: its lease is renewed, and its
deadline does not move. A slot is for calls of the provider. A start returns its slot when it must
wait for something else: a create slot, an image that is being pulled, or a preview that does not
answer yet.

A fourth kind, the database slots, limits the first statements of starts. A start runs about six
statements before it waits for a slot at the provider. Without a limit, five hundred starts at once
would all share the connection pool, and each would wait for nearly all the others. A database slot
is for statements only: a start that waits for another one returns its slot.

If there is more than one slot of a kind, no lane can hold all of them: calls of one user that hang
do not block the others.
"""

from __future__ import annotations

import asyncio
import logging
import random
from asyncio import CancelledError
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING

from session_service.admission.fair_queue import FairQueue
from session_service.errors import ProviderRateLimited, StorageUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from types import TracebackType

    from session_service.admission.fair_queue import Path
    from session_service.domain.session import Key, Session
    from session_service.transition.ownership import Owned


_log = logging.getLogger(__name__)

#: The longest retry delay that a caller gets if the queue is full, in s.
LONGEST_RETRY = 60.0
#: A queue that stays full is logged at most once in this time, in s.
WARN_EVERY = 10.0


class FairSlots:
    """A number of slots, and a fair queue of the work that waits for one."""

    def __init__(
        self,
        name: str,
        slots: int,
        length: int,
        rate: float | None = None,
        *,
        moving: bool = False,
    ) -> None:
        """`slots`: how much runs at once. `length`: about how much may wait (`FairQueue.has_room`).

        `rate` is the expected number of slots returned per second, from which the retry delay is
        computed; None: `slots`. With `moving`, the time limit of all waiting work starts again each
        time that a slot is returned with `served`.
        """
        self._name = name
        self._moving = moving
        self._last_served = 0.0
        self._rate = float(slots) if rate is None else rate
        self._slots = slots
        self._length = length
        #: The most slots that one lane may have: one slot in eight is left for other lanes.
        self._lane_limit = max(1, slots - max(1, slots // 8))
        self._running: Counter[Path] = Counter()
        self._taken = 0
        self._queue: FairQueue[tuple[Path, asyncio.Future[None]]] = FairQueue()
        self._rejected = 0
        self._last_warning = 0.0

    @property
    def idle(self) -> bool:
        """Whether no work runs and none waits."""
        return not self._taken and not self._running and not len(self._queue)

    @property
    def figures(self) -> tuple[int, int]:
        """How many slots are taken, and how much work waits."""
        return self._taken, len(self._queue)

    def check_room(self, path: Path) -> None:
        """Raise ProviderRateLimited if work of this lane gets no slot now and may not wait."""
        if self._can_take(path) or self._queue.has_room(path, self._length):
            return
        self._warn_full()
        delay = min(LONGEST_RETRY, max(1.0, len(self._queue) / self._rate))
        raise ProviderRateLimited(
            "too many sessions already wait for the provider; try again",
            retry_after=delay * random.uniform(1.0, 1.5),
        )

    async def enter(self, path: Path, patience: float) -> bool:
        """Take a slot, waiting up to `patience` s for one; return whether it had to wait.

        Raises ProviderRateLimited if the queue has no room, or if no slot came free in time.
        """
        # Work can wait although a slot is free: its lane is then at its limit. To take the slot
        # here overtakes no work that could run.
        if self._can_take(path):
            self._take(path)
            return False
        self.check_room(path)
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        ticket = self._queue.put(path, (path, granted))
        try:
            await self._wait(granted, patience)
        except BaseException as error:
            # Out of time, or cancelled. A slot may have been granted at the same moment: the call
            # owns it then, and must return it, or the replica would have one slot less for ever.
            if granted.done() and not granted.cancelled():
                self.leave(path, served=False)
            else:
                self._queue.leave(ticket)
            if not isinstance(error, TimeoutError):
                raise
            raise ProviderRateLimited(
                "the provider was busy with other sessions for as long as a transition may take; "
                "try again"
            ) from None
        return True

    async def _wait(self, granted: asyncio.Future[None], patience: float) -> None:
        """Wait until the slot is granted. Raises TimeoutError."""
        began = monotonic()
        while not granted.done():
            since = max(began, self._last_served) if self._moving else began
            if (left := since + patience - monotonic()) <= 0:
                raise TimeoutError
            await asyncio.wait({granted}, timeout=left)

    def leave(self, path: Path, *, served: bool = True) -> None:
        """Return a slot of this lane, and grant it to the next waiting work. `served`: the work was
        done or failed for its own reason; False if the database did not answer, or on cancellation.
        """
        if served:
            self._last_served = monotonic()
        self._taken -= 1
        self._running[path] -= 1
        if not self._running[path]:
            del self._running[path]
        # At most one lane can be at its limit now: a slot has just come free, and two lanes at the
        # limit would need more slots than are left. (With one slot the limit is that slot, and no
        # lane is at it.)
        full = next((p for p, n in self._running.items() if n >= self._lane_limit), None)
        while (waiting := self._queue.take(but_not=full)) is not None:
            next_path, granted = waiting
            # A call that was cancelled a moment ago may still be in the queue.
            if not granted.done():
                self._take(next_path)
                granted.set_result(None)
                return

    def _can_take(self, path: Path) -> bool:
        return self._taken < self._slots and self._running[path] < self._lane_limit

    def _take(self, path: Path) -> None:
        self._taken += 1
        self._running[path] += 1

    def _warn_full(self) -> None:
        self._rejected += 1
        if monotonic() - self._last_warning < WARN_EVERY:
            return
        _log.warning(
            "the queue for %s is full: %d running, %d waiting, %d rejected",
            self._name,
            self._taken,
            len(self._queue),
            self._rejected,
            extra={"action": "queue_full", "at_work": self._taken, "waiting": len(self._queue)},
        )
        self._rejected, self._last_warning = 0, monotonic()


#: If no start was served for this time, in s, all starts that wait fail at once. Otherwise each of
#: them in turn would take a slot and wait for a database that hangs.
PATIENCE = 3.0
#: About how many starts per second return a database slot.
RATE = 50.0


class DatabaseSlot:
    """A start's database slot, until the start has a transition: an async context manager.

    The start returns it while it waits for another transition, and takes it again afterwards.
    """

    def __init__(self, slots: FairSlots, path: Path, patience: float = PATIENCE) -> None:
        self._slots = slots
        self._path = path
        self._patience = patience
        self._taken = False

    async def __aenter__(self) -> DatabaseSlot:
        """Wait for a slot; see `take`."""
        await self.take()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Return the slot."""
        self.give_back(served=not isinstance(error, StorageUnavailable | CancelledError))

    async def take(self) -> None:
        """Take a slot, unless it has one. Raises ProviderRateLimited if the queue has no room,
        StorageUnavailable if no start was served for PATIENCE.
        """
        if self._taken:
            return
        self._slots.check_room(self._path)
        try:
            await self._slots.enter(self._path, self._patience)
        except ProviderRateLimited as error:
            raise StorageUnavailable("the database does not answer; try again") from error
        self._taken = True

    def give_back(self, *, served: bool = True) -> None:
        """Return the slot, if it has one. `served`: see `FairSlots.leave`."""
        if self._taken:
            self._taken = False
            self._slots.leave(self._path, served=served)


#: Create calls that the provider allows an app, per second.
CREATE_RATE = 1.0


@dataclass(frozen=True, slots=True)
class Limits:
    """How much work a replica does at once, and how much may wait."""

    starts: int = 64
    """Transitions that a caller waits for."""

    background: int = 16
    """Background transitions, in addition to those."""

    creates: int = 4
    """Create calls in flight for each app. More than one, so that the next call is ready when
    the provider's rate limit allows it."""

    database_slots: int = 12
    """Starts that read their session, decide, and commit the decision: the database slots."""

    length: int = 1024
    """About how much may wait for each kind of slot; a full queue still accepts lanes that have few
    items in it."""

    creates_length: int = 120
    """How many may wait for a create call, for each app: about as many calls as the provider allows
    within the time of a transition."""


class Permit:
    """One transition's slot: an async context manager, which holds the slot while it is open."""

    def __init__(self, limiter: Limiter, slots: FairSlots, path: Path, owned: Owned) -> None:
        self._limiter = limiter
        self._slots = slots
        self._path = path
        self._owned = owned
        self._taken = False
        #: Whether it had to wait. What the caller read before may be out of date then.
        self.waited = False

    async def __aenter__(self) -> Permit:
        """Wait for the slot, at most until the transition's deadline.

        Raises ProviderRateLimited, and ProviderUnavailable if the deadline has passed.
        """
        self.waited = await self._slots.enter(self._path, self._owned.left)
        self._taken = True
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Return the slot."""
        self.step_back()

    def step_back(self) -> None:
        """Return the slot early, if it has one: the rest of the work only waits."""
        if self._taken:
            self._taken = False
            self._slots.leave(self._path)

    @asynccontextmanager
    async def creating(self, app: str) -> AsyncGenerator[None]:
        """Return the slot, and hold one of the app's create slots. Raises as entering does."""
        self.step_back()
        async with self._limiter.create_slot(app, self._path, self._owned):
            yield


class Limiter:
    """All slots of one replica."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._starts = FairSlots("starts", limits.starts, limits.length)
        self._background = FairSlots("background work", limits.background, limits.length)
        self._database = FairSlots(
            "database slots", limits.database_slots, limits.length, RATE, moving=True
        )
        self._creates: dict[str, FairSlots] = {}

    def check_room(self, key: Key, creates_in: str | None = None) -> None:
        """Before a start is committed: raise ProviderRateLimited if it may not wait for a slot.

        `creates_in` is the app that it will create a container in; None if it will resume one.
        """
        self._starts.check_room(_path(key))
        if creates_in is not None and creates_in in self._creates:
            self._creates[creates_in].check_room(_path(key))

    @property
    def figures(self) -> dict[str, tuple[int, int]]:
        """How many slots are taken and how much work waits, by kind of slot."""
        creates = {f"creates in {app}": slots.figures for app, slots in self._creates.items()}
        return {
            "starts": self._starts.figures,
            "background": self._background.figures,
            **creates,
        }

    def database_slot(self, key: Key) -> DatabaseSlot:
        """A database slot for a start, to be entered."""
        return DatabaseSlot(self._database, _path(key))

    def permit(self, session: Session, owned: Owned) -> Permit:
        """A slot for a transition's work, to be entered."""
        slots = self._background if is_background(session) else self._starts
        return Permit(self, slots, _path(session.key), owned)

    @asynccontextmanager
    async def create_slot(self, app: str, path: Path, owned: Owned) -> AsyncGenerator[None]:
        """Hold a slot for one create call in the app. Raises as `Permit` does."""
        slots = self._creates.get(app)
        if slots is None:
            limits = self._limits
            name = f"creates in {app}"
            slots = FairSlots(name, limits.creates, limits.creates_length, CREATE_RATE)
            self._creates[app] = slots
        try:
            await slots.enter(path, owned.left)
            try:
                yield
            finally:
                slots.leave(path)
        finally:
            if slots.idle and self._creates.get(app) is slots:
                del self._creates[app]


def is_background(session: Session) -> bool:
    """Whether no caller waits for the session's transition."""
    return session.decision_id is None or session.cause is not None


def _path(key: Key) -> Path:
    return key.tenant, key.project_id, key.user_id
