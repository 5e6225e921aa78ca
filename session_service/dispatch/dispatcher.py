"""The dispatcher commits transitions and runs their workers.

It runs the transitions that this replica committed, and those that it took over from an owner that
is gone. A worker returns its outcome as a `Commit` and does not know the dispatcher. An outcome can
begin a follow-on transition: the end of a session that was replaced, or the pause of a container
that runs although its start failed. The follow-on is a value in the `Commit`, and is started here
like any other transition.

ARCHITECTURE.md ("Taking over") has a table of what the next owner of each transition does.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from session_service.domain.next_action import deepens
from session_service.errors import StorageUnavailable
from session_service.storage.session import change as changes
from session_service.storage.session import reads
from session_service.storage.session.commit import Commit, Committed, Conflict, commit
from session_service.transition.ownership import Owned, OwnershipLost

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping
    from uuid import UUID

    from session_service.domain.session import Record, Session
    from session_service.domain.states import Transition
    from session_service.observe.discard import Discarder
    from session_service.storage.database import Database
    from session_service.storage.session.commit import Observer
    from session_service.transition.ownership import Ownership, Rest

_log = logging.getLogger(__name__)
T = TypeVar("T")

#: The pause between tries to commit an outcome after StorageUnavailable, in s: the first, which
#: doubles with each try, and the longest.
FIRST_RETRY = 0.1
LAST_RETRY = 1.0


class Worker(Protocol):
    """Carries transitions out at the provider."""

    async def __call__(self, owned: Owned) -> Commit:
        """Do the work, and return the outcome, which the dispatcher commits.

        An error of the provider or of the application is an outcome too. Raises OwnershipLost if
        the epoch has advanced, and StorageUnavailable if the worker could not read the rows that
        decide the outcome: the transition then waits for its next owner.
        """
        ...


class Dispatcher:
    """Runs the workers of transitions, and commits their outcomes."""

    def __init__(
        self,
        database: Database,
        ownership: Ownership,
        workers: Mapping[Transition, Worker],
        discarder: Discarder,
        observer: Observer | None = None,
    ) -> None:
        """`workers` has one for every transition that can have an owner; a REPLACE has none.
        `observer` is told of all commits.
        """
        self._database = database
        self._ownership = ownership
        self._workers = workers
        self._discarder = discarder
        self._observer = observer
        # Strong references, without which a task can be garbage-collected. Any: results, unread.
        self._committing: set[asyncio.Task[Any]] = set()

    @property
    def terms(self) -> changes.Terms:
        """The columns with which a commit makes this replica the owner of a transition."""
        return self._ownership.terms

    async def commit(
        self, wanted: Commit
    ) -> tuple[Committed | Conflict, asyncio.Task[None] | None]:
        """Commit, and start the work of the commit: both or neither, also if the caller is
        cancelled. The task is None if nothing was committed, or if the commit begins no work.

        Both steps are shielded from the caller's cancellation. A cancellation between the two would
        leave a transition that has an owner but no work, and the next caller would have to wait
        until its lease runs out.
        """
        began = monotonic()

        async def commit_and_begin() -> tuple[Committed | Conflict, asyncio.Task[None] | None]:
            done = await commit(self._database, wanted, "intent", self._observer)
            if isinstance(done, Conflict) or wanted.begins is None:
                return done, None
            return done, self.begin(done.session(wanted.begins), began)

        return await self._uninterrupted(commit_and_begin())

    async def take_over(self, record: Record, *, wanted: bool = False) -> asyncio.Task[None] | None:
        """Take over the record's transition if its lease or deadline has passed: finish or undo it.

        `wanted` says that the caller wants to use the session; a pause is then not deepened. None
        if there is nothing to take over, or if another replica claimed the transition first.
        """
        if not record.lapsed:
            return None
        return await self._uninterrupted(self._claim(record, wanted=wanted))

    async def take_over_session(self, session_id: UUID) -> bool:
        """Take over this session's transition, and wait for its work. Returns False if it could not
        be taken over.
        """
        record = await reads.find(self._database, session_id)
        task = None if record is None else await self.take_over(record)
        if task is None:
            return False
        # Not `await task`, with which the caller's cancellation would cancel the work too.
        await asyncio.wait({task})
        return True

    async def _claim(self, record: Record, *, wanted: bool) -> asyncio.Task[None] | None:
        began = monotonic()
        session = await changes.claim(
            self._database, record.session.session_id, record.session.epoch, self.terms
        )
        if session is None:
            return None
        _log.warning(
            "took over a transition whose owner is gone",
            extra={
                "action": "take_over",
                "session_id": str(session.session_id),
                "transition": session.transition,
                "epoch": session.epoch,
            },
        )
        if wanted and deepens(session):
            # Touch it after the claim: the worker counts only later activity. The work must begin
            # even if this write fails: the row names this replica as its owner.
            with suppress(StorageUnavailable):
                await reads.touch(self._database, session.tenant, session.session_id)
        return self.begin(session, began, taken_over=True)

    def begin(
        self, session: Session, began: float, *, taken_over: bool = False
    ) -> asyncio.Task[None]:
        """Start the work on a transition that this replica has just committed or claimed. `began`
        is the monotonic time before the commit or claim.
        """
        work = partial(self._carry_out, session, taken_over=taken_over)
        return self._ownership.start_work(session, began, work)

    async def _carry_out(self, session: Session, until: float, *, taken_over: bool) -> Rest | None:
        """Run the transition's worker and commit its outcome, both under the row's lease. Returns
        what is left to do after it: to discard a container.

        When the worker returns, it has released its slot and, unless that must fence a late
        request, the machine lease: the next start may resume the machine as soon as the outcome is
        committed. The row's lease is renewed until this method ends.

        The lease and the budget of a follow-on count from just before the successful try of the
        commit, so that they end before the times that this commit wrote into the row. If they
        counted from before the first try, the lease of a follow-on could be over when it begins.

        Raises OwnershipLost if another replica owns the transition now.
        """
        record = await reads.find(self._database, session.session_id)
        if record is None or record.session.epoch != session.epoch:
            raise OwnershipLost
        worker = self._workers[_transition(session)]
        outcome = await worker(Owned(record, until, taken_over))
        written, began = await self._write(outcome, session)
        if outcome.begins is not None:
            self.begin(written.session(outcome.begins), began)
        if outcome.discards is None:
            return None
        return partial(self._discarder.discard, outcome.discards)

    async def _write(self, outcome: Commit, session: Session) -> tuple[Committed, float]:
        """Commit the outcome. After StorageUnavailable, commit the same outcome again while the
        lease is held; the loss of the lease cancels this. Returns the committed rows, and the
        monotonic time before the try that succeeded.

        The work at the provider is done and stays done: a container that runs must not be paused
        because the database did not answer for a moment. To try again is safe, since the writes are
        fenced by the epoch, which the first commit advances. If an earlier try was committed and
        only its answer was lost, the next try changes nothing and returns CHANGED. This case cannot
        be distinguished from a lost ownership, and is handled as one. The caller reads its
        decision, which the earlier try finished. A follow-on of the earlier try has an owner but no
        work; it is taken over when its lease has run out. A container that is to be discarded is
        found by the pass over unwanted containers.
        """
        pause = FIRST_RETRY
        while True:
            began = monotonic()
            try:
                done = await commit(self._database, outcome, "outcome", self._observer)
            except StorageUnavailable as error:
                _log.warning(
                    "the outcome of a transition was not committed yet: %s",
                    error,
                    extra={
                        "action": "run_transition",
                        "session_id": str(session.session_id),
                        "epoch": session.epoch,
                    },
                )
                await asyncio.sleep(pause)
                pause = min(2 * pause, LAST_RETRY)
                continue
            if done is Conflict.CHANGED:
                raise OwnershipLost
            if isinstance(done, Conflict):
                # An outcome makes a session live only if it ends the live session of the same key.
                raise AssertionError(f"an outcome met a conflict: {done}")
            return done, began

    async def _uninterrupted(self, steps: Coroutine[Any, Any, T]) -> T:
        """Run the steps to their end, also if the caller is cancelled meanwhile."""
        task = asyncio.create_task(steps)
        self._committing.add(task)
        task.add_done_callback(self._committing.discard)
        return await to_the_end(task)


async def to_the_end(task: asyncio.Task[T]) -> T:
    """The task's result. A caller that is cancelled does not cancel the task; its error, which
    nobody waits for then, is a line in the log.
    """
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(_log_error)
        raise


def _log_error(task: asyncio.Task[T]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.warning(
            "what a caller began and did not wait for failed: %s",
            error,
            extra={"action": "run_transition"},
        )


def _transition(session: Session) -> Transition:
    assert session.transition is not None, "a settled session has no work"
    return session.transition
