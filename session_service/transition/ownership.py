"""The ownership of a transition: its work runs in a task of its own, under a lease that is renewed.

A caller that is cancelled does not stop the work: the task belongs to the replica, not to the call.
The lease is held while the worker runs and its outcome is committed, and ends with the task.

Three rules keep two replicas from working on the same transition:

1. The row's `lease_until` is renewed while the task runs, so that no other replica claims the row.
2. An owner whose lease was not confirmed for as long as a lease lasts stops its work. It measures
   this by its own monotonic clock from before the last confirming statement, so that it stops
   before another replica may claim the row by the database's clock.
3. Every write is fenced by `epoch`, which a claim advances. A process that was suspended for longer
   than its lease, and does not know it yet, writes nothing.

One loop renews all leases of a replica, many in one statement. The loss of each lease is decided
separately: a statement that hangs costs only the leases in it.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from time import monotonic
from typing import TYPE_CHECKING, Any

from session_service import loops
from session_service.errors import ProviderUnavailable, StorageUnavailable
from session_service.storage.session import change as changes
from session_service.storage.session.change import NOW, Change, Renewal, Terms
from session_service.transition.changes import refused

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from uuid import UUID

    #: What is to be done after a transition, without its lease: the commit of the outcome has
    #: advanced the epoch, so that there is no lease to renew. Its result is not read.
    Rest = Callable[[], Awaitable[object]]
    #: The work on a transition. It is called with the monotonic time at which its budget ends.
    Work = Callable[[float], Awaitable[Rest | None]]

    from session_service.domain.session import Record, Session
    from session_service.ports import Address, Containers
    from session_service.storage.database import Database


_log = logging.getLogger(__name__)

#: How many times a job that is to end is cancelled, once a second.
STOP_TRIES = 5
#: The pause between tries to renew while the database does not answer, or while another statement
#: has the row locked, in s.
RENEW_PAUSE = 0.1
#: The most leases in one statement.
BATCH = 500
#: How many rounds the loop makes per renewal interval; a round renews the leases that are due.
ROUNDS = 4


class OwnershipLost(Exception):
    """The epoch has advanced, as by a claim of another replica; the work here must stop."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How long a lease lasts, how often it is renewed, and how long a transition may take."""

    lease: timedelta = timedelta(seconds=10)
    renew_every: timedelta = timedelta(seconds=3)
    budget: timedelta = timedelta(seconds=120)
    margin: timedelta = timedelta(seconds=5)
    """The deadline in the row is this much later than the owner's own, so that the owner can still
    commit its outcome."""


@dataclass(frozen=True, slots=True)
class Owned:
    """A transition that this process owns: the input of its worker."""

    record: Record
    """The session and its container as the first read under the lease returned them."""
    until: float
    """The monotonic time at which the owner's budget ends. The budget began before the commit that
    made this replica the owner, so that it ends before the deadline in the row."""
    taken_over: bool = False
    """Whether an earlier owner may have begun the work: the worker must then read the actual state
    first."""

    @property
    def session_id(self) -> UUID:
        """The session whose transition it is."""
        return self.record.session.session_id

    @property
    def epoch(self) -> int:
        """The epoch that fences every write of this owner."""
        return self.record.session.epoch

    @property
    def left(self) -> float:
        """The time left of the budget, in s. Raises ProviderUnavailable if none is left."""
        left = self.until - monotonic()
        if left <= 0:
            raise ProviderUnavailable("the provider took longer than a transition may; try again")
        return left


class Ownership:
    """Runs the work on transitions, and renews their leases while it runs."""

    def __init__(self, database: Database, replica_id: UUID, pace: Pace) -> None:
        self._database = database
        self._replica_id = replica_id
        self._pace = pace
        self._tasks: set[asyncio.Task[None]] = set()
        self._renewal = LeaseRenewal(database, pace.lease, pace.renew_every)

    @property
    def terms(self) -> Terms:
        """The columns with which a commit makes this replica the owner of a transition."""
        pace = self._pace
        return Terms(self._replica_id, pace.lease, pace.budget + pace.margin)

    def start_work(self, session: Session, began: float, work: Work) -> asyncio.Task[None]:
        """Start the work on a transition that was just committed or claimed, under its lease.

        `session` is the row as that commit left it; `began` is the monotonic time before the
        commit. The task also does what `work` leaves to be done. It raises nothing but
        CancelledError: the result of the work is in the rows.
        """
        task = asyncio.create_task(self._run(session, began, work), name=session.transition)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def drain(self, grace: float) -> None:
        """Wait up to `grace` s for the work in flight, then cancel it; other replicas take over."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=grace)
        for task in set(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=5)
        await self._renewal.close()

    async def _run(self, session: Session, began: float, work: Work) -> None:
        """Run the work until it ends or the lease is lost, whichever is first; then what it left.

        If this is cancelled, which only `drain` does, it ends the lease in the row, so that the
        next owner does not have to wait until it runs out. A lease that was lost is not ended in
        the row, since it may belong to another replica.
        """
        job = asyncio.ensure_future(work(began + self._pace.budget.total_seconds()))
        lost = asyncio.create_task(
            self._renewal.until_lost(session.session_id, session.epoch, began), name="lease"
        )
        try:
            await asyncio.wait({job, lost}, return_when=asyncio.FIRST_COMPLETED)
            if job.done():
                await self._job_ended(session, job)
        except asyncio.CancelledError:
            await self._stop(job)
            await asyncio.shield(self._release_lease(session))
            raise
        finally:
            lost.cancel()
            await self._stop(job)
        if job.cancelled() or job.exception() is not None or (rest := job.result()) is None:
            return
        try:
            await rest()
        except Exception as error:  # noqa: BLE001  # logged; a later pass does it again
            self._log_error(session, error, "what follows a transition was not done yet")

    async def _job_ended(self, session: Session, job: asyncio.Future[Rest | None]) -> None:
        """Log an error that ended the work; OwnershipLost is not one.

        After a fault the lease is left to run out. The next owner would probably meet the same
        fault, and the lease is the pause between the replicas' attempts.
        """
        error = job.exception()
        if error is None or isinstance(error, OwnershipLost):
            return
        self._log_error(
            session,
            error,
            "the work on a transition ended by an error; another replica may take it over",
        )
        if not isinstance(error, StorageUnavailable):
            await self._fail_decision(session)

    def _log_error(self, session: Session, error: BaseException, message: str) -> None:
        level = logging.WARNING if isinstance(error, StorageUnavailable) else logging.ERROR
        _log.log(
            level,
            message,
            exc_info=error,
            extra={
                "action": "run_transition",
                "session_id": str(session.session_id),
                "epoch": session.epoch,
            },
        )

    async def _fail_decision(self, session: Session) -> None:
        """Finish the decision with an error. The caller would otherwise wait for work that fails at
        each owner.
        """
        error = ProviderUnavailable("an internal error ended this; try again later")
        change = Change(
            session.session_id,
            session.epoch,
            {"decision_id": None},
            decision=refused(error),
            decision_id=session.decision_id,
            advance=False,
        )
        with suppress(StorageUnavailable):
            await changes.write(self._database, change)

    async def _release_lease(self, session: Session) -> None:
        change = Change(session.session_id, session.epoch, {"lease_until": NOW}, advance=False)
        with suppress(StorageUnavailable):
            await changes.write(self._database, change)

    async def _stop(self, job: asyncio.Future[Rest | None]) -> None:
        # More than once, since a cancellation can be swallowed: see `loops.end`.
        for _ in range(STOP_TRIES):
            if job.done():
                return
            job.cancel()
            await asyncio.wait({job}, timeout=1)


@dataclass(eq=False, slots=True)
class _Lease:
    """A lease of this replica. Times are monotonic."""

    session_id: UUID
    epoch: int
    confirmed: float
    """The time just before the statement that last confirmed it. The row's lease began later, so
    that it lasts at least from then on."""
    in_flight: bool = False
    """Whether a statement that renews it is in flight."""
    lost: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the database says that it ran out or that the epoch has advanced."""


class LeaseRenewal:
    """Renews the leases of this replica. Its loop runs only while there is a lease."""

    def __init__(self, database: Database, lease: timedelta, every: timedelta) -> None:
        """Leases last for `lease`; each is renewed `every` after its last confirmation."""
        self._database = database
        self._lease = lease
        self._every = every.total_seconds()
        self._held: set[_Lease] = set()
        self._loop: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def until_lost(self, session_id: UUID, epoch: int, began: float) -> None:
        """Renew the lease, which lasts from the monotonic time `began`; return when it is lost.

        It is lost if the database refuses to renew it, or has not renewed it for as long as a lease
        lasts. After a cancellation it is not renewed any more.
        """
        lease = _Lease(session_id, epoch, began)
        self._held.add(lease)
        if self._loop is None:
            self._loop = self._create_task(self._renew())
        try:
            await self._wait_until_lost(lease)
        finally:
            self._held.discard(lease)
        _log.warning(
            "the lease on a transition was lost; its work here is stopped",
            extra={"action": "renew", "session_id": str(session_id)},
        )

    async def close(self) -> None:
        """Stop renewing."""
        await loops.end(set(self._tasks))

    async def _wait_until_lost(self, lease: _Lease) -> None:
        while (left := lease.confirmed + self._lease.total_seconds() - monotonic()) > 0:
            try:
                async with asyncio.timeout(left):
                    await lease.lost.wait()
            except TimeoutError:
                continue  # it may have been renewed meanwhile
            return

    async def _renew(self) -> None:
        """Renew the leases that are due, until there is no lease any more.

        The loop waits for no statement: one that hangs must not cost the leases of the others.
        """
        try:
            while self._held:
                due = monotonic() - self._every
                batch = [
                    each for each in self._held if not each.in_flight and each.confirmed <= due
                ]
                for start in range(0, len(batch), BATCH):
                    self._send(batch[start : start + BATCH])
                await asyncio.sleep(self._every / ROUNDS)
        finally:
            self._loop = None

    def _send(self, batch: list[_Lease]) -> None:
        for each in batch:
            each.in_flight = True
        self._create_task(self._renew_batch(batch))

    async def _renew_batch(self, batch: list[_Lease]) -> None:
        """Send statements until the database has answered for each lease that is still held."""
        unknown = {(each.session_id, each.epoch): each for each in batch}
        try:
            while True:
                unknown = {key: each for key, each in unknown.items() if each in self._held}
                if not unknown:
                    return
                asked = monotonic()
                try:
                    answers = await changes.renew(self._database, list(unknown), self._lease)
                except StorageUnavailable:
                    answers = {}
                for key, answer in answers.items():
                    self._record(unknown, key, answer, asked)
                if unknown:
                    await asyncio.sleep(RENEW_PAUSE)
        finally:
            for each in unknown.values():
                each.in_flight = False

    def _record(
        self,
        unknown: dict[tuple[UUID, int], _Lease],
        key: tuple[UUID, int],
        answer: Renewal,
        asked: float,
    ) -> None:
        if answer is Renewal.BUSY:
            return
        lease = unknown.pop(key)
        lease.in_flight = False
        if answer is Renewal.KEPT:
            lease.confirmed = asked
        else:
            lease.lost.set()

    def _create_task(self, steps: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run the coroutine as a task. Any: the types that it sends and receives, unused."""
        task = asyncio.create_task(steps, name="renewing")
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)
        return task

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("leases were not renewed", exc_info=error, extra={"action": "renew"})


#: How long to wait for the machine lease of another owner, in addition to the duration of a lease
#: of this service, in s. A lease that is still held then is not of this service.
LEASE_PATIENCE = 5.0


async def lease_machine(
    containers: Containers, where: Address, owned: Owned, lease: timedelta
) -> str:
    """Acquire the machine's lease at the provider, for `lease`. Returns its nonce, which requests
    to the machine must carry from then on.

    If an earlier owner of the transition holds the lease, this waits until it runs out. A request
    of that owner that has not arrived yet is rejected from then on. Raises LeaseHeld if another
    party holds it for longer.
    """
    ttl, left = lease.total_seconds(), owned.left
    return await containers.acquire_lease(
        where, ttl=ttl, wait=min(ttl + LEASE_PATIENCE, left), timeout=left
    )
