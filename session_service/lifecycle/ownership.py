"""Owning a transition: its work runs in a task of its own, under a lease that is renewed.

The caller going away does not undo the work. An owner whose lease ran out stops by itself; what it
would still write is refused by the epoch.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from time import monotonic
from typing import TYPE_CHECKING

from session_service.errors import ProviderUnavailable, StorageUnavailable
from session_service.lifecycle.outcomes import refused
from session_service.lifecycle.renewing import Renewing
from session_service.storage import transitions
from session_service.storage.assignments import NOW
from session_service.storage.leases import Terms
from session_service.storage.transitions import Change

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from uuid import UUID

    from session_service.domain.session import Session
    from session_service.storage.database import Database

_log = logging.getLogger(__name__)

#: How often work that was stopped is told so, once a second.
STOP_TRIES = 5


class OwnershipLost(Exception):
    """The transition is another's now; whatever was being done for it must stop."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How long an owner may be silent, how often it speaks, and how long a transition may take."""

    lease: timedelta = timedelta(seconds=10)
    renew_every: timedelta = timedelta(seconds=3)
    budget: timedelta = timedelta(seconds=120)
    margin: timedelta = timedelta(seconds=5)
    """The deadline in the row is this much later than the owner's own, so that it can still write
    its outcome."""


@dataclass(frozen=True, slots=True)
class Held:
    """A transition that this process owns. Its time is monotonic and began before its commit."""

    session_id: UUID
    epoch: int
    decision_id: UUID | None
    until: float
    taken_over: bool

    @property
    def left(self) -> float:
        """How long it may still work, in s. Raises ProviderUnavailable when that is over."""
        left = self.until - monotonic()
        if left <= 0:
            raise ProviderUnavailable("the provider took longer than a transition may; try again")
        return left


class Ownership:
    """Carries transitions out, and keeps hold of them meanwhile."""

    def __init__(self, database: Database, replica_id: UUID, pace: Pace) -> None:
        self._database = database
        self._replica_id = replica_id
        self._pace = pace
        self._tasks: set[asyncio.Task[None]] = set()
        self._renewing = Renewing(database, pace.lease, pace.renew_every)

    @property
    def terms(self) -> Terms:
        """What an intent of this replica says of its owner."""
        pace = self._pace
        return Terms(self._replica_id, pace.lease, pace.budget + pace.margin)

    def carry(
        self,
        session: Session,
        began: float,
        work: Callable[[Held], Awaitable[None]],
        *,
        taken_over: bool = False,
    ) -> asyncio.Task[None]:
        """Begin the work on a transition whose intent was just committed.

        `began` is the monotonic time from before the commit. The task never raises: what came of
        the work is in the rows.
        """
        until = began + self._pace.budget.total_seconds()
        held = Held(session.session_id, session.epoch, session.decision_id, until, taken_over)
        task = asyncio.create_task(self._run(held, began, work), name=f"{session.transition}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def drain(self, grace: float) -> None:
        """Let the work in flight finish for `grace` s, then stop it and let others take it over."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=grace)
        for task in set(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=5)
        await self._renewing.close()

    async def _run(self, held: Held, began: float, work: Callable[[Held], Awaitable[None]]) -> None:
        job = asyncio.ensure_future(work(held))
        lost = asyncio.create_task(
            self._renewing.until_lost(held.session_id, held.epoch, began), name="lease"
        )
        try:
            await asyncio.wait({job, lost}, return_when=asyncio.FIRST_COMPLETED)
            if job.done():
                await self._ended(held, job)
        except asyncio.CancelledError:
            await self._stop(job)
            await asyncio.shield(self._let_go(held))
            raise
        finally:
            lost.cancel()
            await self._stop(job)

    async def _ended(self, held: Held, job: asyncio.Future[None]) -> None:
        """The work is over: well, fenced off, or by a fault.

        A fault leaves the lease to run out: it would strike the next owner as well, and the lease
        is what keeps them from taking turns without a pause.
        """
        error = job.exception()
        if error is None or isinstance(error, OwnershipLost):
            return
        level = logging.WARNING if isinstance(error, StorageUnavailable) else logging.ERROR
        _log.log(
            level,
            "a transition's work broke off; another may take it over",
            exc_info=error,
            extra={"action": "carry", "session_id": str(held.session_id), "epoch": held.epoch},
        )
        if not isinstance(error, StorageUnavailable):
            await self._answer_fault(held)

    async def _answer_fault(self, held: Held) -> None:
        """Answer whoever waits for the work, so that nobody waits for what goes wrong each time."""
        error = ProviderUnavailable("an internal fault broke this off; try again later")
        change = Change(
            held.session_id,
            held.epoch,
            {"decision_id": None},
            decision=refused(error),
            decision_id=held.decision_id,
            advance=False,
        )
        with suppress(StorageUnavailable):
            await transitions.write(self._database, change)

    async def _let_go(self, held: Held) -> None:
        """Give the lease up, so that nobody has to wait for it to run out."""
        change = Change(held.session_id, held.epoch, {"lease_until": NOW}, advance=False)
        with suppress(StorageUnavailable):
            await transitions.write(self._database, change)

    async def _stop(self, job: asyncio.Future[None]) -> None:
        # Again and again, since one can be dropped: see `loops.running`.
        for _ in range(STOP_TRIES):
            if job.done():
                return
            job.cancel()
            await asyncio.wait({job}, timeout=1)
