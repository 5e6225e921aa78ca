"""The driver runs starts, stops and saves, from the request to the answer.

A use case supplies a `Call`: how to decide the next step, and how to build the answer. The driver
does the rest in the same manner for all of them: it answers a repeated request id from the earlier
decision, waits, commits, waits for the work, and answers.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol, TypeVar

from session_service import errors
from session_service.dispatch.wait import Join, Observe, Settle
from session_service.domain.decision import Decision
from session_service.storage.session import decisions
from session_service.storage.session.commit import Commit, Conflict, commit
from session_service.transition.decision_record import (
    earlier,
    quota_exceeded,
    raise_recorded,
    refused,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType

    from session_service.dispatch.wait import Observation, Recover, Wait, Waiter
    from session_service.domain.decision import Request
    from session_service.domain.session import Record
    from session_service.storage.database import Database
    from session_service.storage.session.commit import Committed, Observer

A_co = TypeVar("A_co", covariant=True)
A = TypeVar("A")


class Slot(Protocol):
    """A database slot. A call holds it while it reads, decides and commits."""

    async def __aenter__(self) -> object:
        """Take the slot; wait until one is free."""

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the slot back, if it is held."""

    async def take(self) -> None:
        """Take the slot again, unless it is held."""

    def give_back(self) -> None:
        """Give the slot to the next call in the queue, if it is held."""


class _NoSlot:
    """The slot of calls that do not queue for the database."""

    async def __aenter__(self) -> None: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    async def take(self) -> None: ...

    def give_back(self) -> None: ...


#: Only starts take a slot: a storm of starts must not keep a stop waiting.
NO_SLOT: Slot = _NoSlot()


class Call(Protocol[A_co]):
    """One call: the part of it that the use case supplies."""

    @property
    def request(self) -> Request:
        """The caller's tenant, method, request id, and the hash of the body."""

    @property
    def slot(self) -> Slot:
        """The call's database slot, or NO_SLOT."""

    async def step(self, wait_result: Decision | Observation | None) -> Wait | Commit | None:
        """Read the rows, check the etag, and decide: wait, or commit. None: read again.

        `wait_result` is the result of the last wait, None before the first one. Raises the errors
        that are never recorded: InvalidField, SessionNotFound, EtagMismatch, a full queue.
        """

    async def answer(self, decision: Decision, record: Record | None, *, replayed: bool) -> A_co:
        """The answer to a finished decision that is not a refusal. `record` is the session as the
        commit left it; None means that it must be read. Raises SessionNotFound.
        """


class Driver:
    """Runs starts, stops and saves."""

    def __init__(
        self,
        database: Database,
        begin: Callable[
            [Commit], Awaitable[tuple[Committed | Conflict, asyncio.Task[None] | None]]
        ],
        waiter: Waiter,
        recover: Recover | None = None,
        observer: Observer | None = None,
    ) -> None:
        """`begin` makes the commit and starts its work: both or neither. `recover` takes over work
        whose owner is gone; with None, the session's transition is taken over. `observer` is told
        of the commits that only answer a call, because `begin` does not make these.
        """
        self._database = database
        self._begin = begin
        self._waiter = waiter
        self._recover = recover
        self._observer = observer

    async def run(self, call: Call[A]) -> A:
        """Read, decide and commit, in rounds, until a decision answers the call.

        **Replay first.** Every round begins with a search for the call's own request id. A commit
        that failed with CHANGED may have lost against a repeat of this call at another replica;
        then the repeat's decision is the answer, and to decide again would do the work twice. A
        round after a Join is the exception: it has waited for another call's decision and inserts
        only its own decision row, whose unique index detects a repeat.

        **The slot** is held for statements only. It is given back before each wait: the call that
        is waited for may itself need a slot to go on, and if callers that wait held all slots, no
        call would ever go on. It is given back after the commit for the same reason, and taken
        again in the next round. A joiner's last round takes none: it writes one row.

        **Cancellation** (the caller hung up) may interrupt every wait and every read here. Nothing
        has to be undone then, since nothing is half done. Cancellation does not interrupt `begin`,
        which is shielded: the commit and the start of its work are one step. After that the work
        goes on without the caller, and a repeat of the call finds its decision.
        """
        async with call.slot:
            wait_result: Decision | Observation | None = None
            while True:
                if not isinstance(wait_result, Decision):
                    await call.slot.take()
                    before = await earlier(self._database, call.request)
                    if before is not None:
                        call.slot.give_back()
                        if (decision := await self._waiter.finished(before, self._recover)) is None:
                            continue
                        return await self._replay(call, decision)
                step, wait_result = await call.step(wait_result), None
                if isinstance(step, Settle | Join | Observe):
                    call.slot.give_back()
                    wait_result = await self._waiter.until(step)
                elif step is not None and (done := await self._finish(call.slot, step)):
                    decision, record = done
                    raise_recorded(decision)
                    return await call.answer(decision, record, replayed=False)

    async def _replay(self, call: Call[A], decision: Decision) -> A:
        """The answer of the earlier call with this request id."""
        await decisions.count_replay(self._database, decision.decision_id)
        raise_recorded(decision)
        return await call.answer(decision, None, replayed=True)

    async def _finish(self, slot: Slot, wanted: Commit) -> tuple[Decision, Record | None] | None:
        """Commit, and wait for the work of the commit. Returns the finished decision, and the
        session with its container if the commit returned both. None means that the facts must be
        read again: they changed, or the commit has no decision and only prepared the next round.
        """
        done, task = await self._commit(wanted)
        if done in (Conflict.QUOTA, Conflict.LIVE_KEY) and wanted.decision is not None:
            # Without `choice`: a refusal does not use the user's choice token up.
            refusal = refused(wanted.decision, _refusal(done, wanted))
            done, task = await self._commit(Commit(decision=refusal))
        if isinstance(done, Conflict) or done.decision is None:
            return None
        slot.give_back()
        if task is None:
            return done.decision, done.record(done.decision.session_id)
        await asyncio.wait({task})
        finished = await decisions.get(self._database, done.decision.decision_id)
        if finished is None or not finished.finished:
            # The work ended without an outcome: the replica that takes it over finishes the
            # decision.
            finished = await self._waiter.finished(done.decision, self._recover)
        return None if finished is None else (finished, None)

    async def _commit(
        self, wanted: Commit
    ) -> tuple[Committed | Conflict, asyncio.Task[None] | None]:
        if wanted.only_answers:
            return await commit(self._database, wanted, observer=self._observer), None
        return await self._begin(wanted)


def _refusal(conflict: Committed | Conflict, wanted: Commit) -> errors.RoostError:
    """The error of a commit that the database refused for good."""
    if conflict is Conflict.QUOTA:
        assert wanted.quota is not None, "Conflict.QUOTA comes from a commit with a quota"
        return quota_exceeded(wanted.quota)
    return errors.LiveSessionExists("this session's key has another live session; end it first")
