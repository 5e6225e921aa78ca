"""Waiting for transitions in flight, for a provider read, and for the end of a decision.

Each wait for a transition or a decision listens for the session's notices. It also polls, since a
notice is lost when the listener's connection breaks. It also takes over: if the owner's lease or
deadline has passed, the waiting call claims the transition and does the work itself. So no wait
depends on a background pass, and no wait lasts until the caller's deadline only because another
replica died.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from session_service import errors
from session_service.domain.next_action import deepens
from session_service.domain.states import Transition
from session_service.storage.session import decisions, reads

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from uuid import UUID

    from session_service.dispatch.dispatcher import Dispatcher
    from session_service.domain.decision import Decision
    from session_service.domain.evidence import Evidence
    from session_service.domain.session import Record, Session
    from session_service.observe.probe import Probe
    from session_service.storage.database import Database
    from session_service.storage.notifications import Notices

    #: Takes over the work that is to finish a decision, if the owner of that work is gone. False
    #: if no replica can finish it any more, and its request id was freed.
    Recover = Callable[[Decision], Awaitable[bool]]

#: How long to wait for a notice before reading the rows again, in s.
POLL = 1.0


@dataclass(frozen=True, slots=True)
class Settle:
    """Wait until the record's transition in flight has ended."""

    record: Record
    wanted: bool = False
    """Whether the caller wants to use the session: the worker that deepens an idle pause then gives
    the deepening up."""


@dataclass(frozen=True, slots=True)
class Join:
    """Wait for the decision of the start in flight, to share its outcome."""

    record: Record


@dataclass(frozen=True, slots=True)
class Observe:
    """Read the state of the record's container at the provider."""

    record: Record


Wait = Settle | Join | Observe


@dataclass(frozen=True, slots=True)
class Observation:
    """Evidence about a container, with the session, generation and epoch that it is about."""

    evidence: Evidence
    about: tuple[UUID, int, int]

    def of(self, record: Record | None) -> Evidence | None:
        """The evidence, if it is about this record."""
        return self.evidence if record is not None and _about(record) == self.about else None


class Waiter:
    """Waits on behalf of calls."""

    def __init__(
        self, database: Database, notices: Notices, dispatcher: Dispatcher, probe: Probe
    ) -> None:
        self._database = database
        self._notices = notices
        self._dispatcher = dispatcher
        self._probe = probe

    async def until(self, wait: Wait) -> Decision | Observation | None:
        """Wait. A Join returns the finished decision of the start that was joined, an Observe
        returns the observation. None means that the rows must be read again, as after every Settle.

        Raises ProviderUnavailable if a transition was taken over and could not be finished.
        """
        if isinstance(wait, Join):
            return await self._join(wait.record)
        if isinstance(wait, Observe):
            return Observation(await self._probe.observe(wait.record), _about(wait.record))
        await self._settle(wait)
        return None

    async def finished(self, decision: Decision, recover: Recover | None = None) -> Decision | None:
        """Wait until the decision is finished, at any replica, and return it. Without `recover` its
        work is the session's transition. None if `recover` freed its request id: the repeated call
        is then a new call.

        Raises StorageUnavailable if the decision row does not exist any more.
        """
        if decision.finished or decision.session_id is None:
            return decision
        recover = recover or self._take_over
        with self._notices.watch(decision.session_id) as notice:
            while True:
                notice.clear()
                now = await decisions.get(self._database, decision.decision_id)
                if now is None:
                    raise errors.StorageUnavailable(
                        "the call's decision is no longer kept; read the session, or try again"
                    )
                if now.finished:
                    return now
                if not await recover(now):
                    return None
                await _next_notice(notice)

    async def _take_over(self, decision: Decision) -> bool:
        """Take over the transition that is to finish the decision, if its owner is gone."""
        assert decision.session_id is not None, "only a session's decision is in flight"
        record = await reads.find(self._database, decision.session_id)
        if record is not None and record.lapsed and record.session.decision_id is not None:
            await self._dispatcher.take_over(record)
        return True

    async def _join(self, record: Record) -> Decision | None:
        """The finished decision of the start in flight; None if that start has no decision."""
        session = record.session
        if record.lapsed:
            await self._dispatcher.take_over(record)
        leader = None
        if session.decision_id is not None:
            leader = await decisions.get(self._database, session.decision_id)
        if leader is None:
            await self._wait_until_settled(session)
            return None
        return await self.finished(leader)

    async def _settle(self, wait: Settle) -> None:
        """Return when the transition in flight has ended, or another transition has followed it.

        A transition whose owner is gone is taken over, and this waits for the work. If the session
        is still in that transition afterwards and without an owner, the work failed, and an
        immediate next try would probably fail too. The caller then gets an error, instead of a loop
        that lasts until its deadline.
        """
        session = wait.record.session
        if session.transition is Transition.REPLACE:
            await self._wait_for_replace(session)
        elif not wait.record.lapsed:
            if wait.wanted and deepens(session):
                await reads.touch(self._database, session.tenant, session.session_id)
            await self._wait_until_settled(session)
        elif task := await self._dispatcher.take_over(wait.record, wanted=wait.wanted):
            await asyncio.wait({task})
            again = await reads.find(self._database, session.session_id)
            if again is not None and again.lapsed:
                raise errors.ProviderUnavailable(
                    "an earlier transition of this session could not be finished yet; try again"
                )

    async def _wait_until_settled(self, session: Session) -> None:
        """Return when the transition of `session` has ended or has another owner, or when its
        owner is gone.
        """
        with self._notices.watch(session.session_id) as notice:
            while True:
                notice.clear()
                record = await reads.find(self._database, session.session_id)
                if record is None or record.session.transition is None:
                    return
                if record.session.epoch != session.epoch or record.lapsed:
                    return
                await _next_notice(notice)

    async def _wait_for_replace(self, session: Session) -> None:
        """Return when it is decided whether the session in REPLACE is replaced.

        A REPLACE has no owner and no lease. The start of the successor decides it. If the owner of
        that start is gone, the start is taken over here.
        """
        with self._notices.watch(session.session_id) as notice:
            while True:
                notice.clear()
                record = await reads.find(self._database, session.session_id)
                if record is None or record.session.epoch != session.epoch:
                    return
                successor = None
                if session.successor_id is not None:
                    successor = await reads.find(self._database, session.successor_id)
                if successor is not None:
                    await self._dispatcher.take_over(successor)
                await _next_notice(notice)


async def _next_notice(notice: asyncio.Event) -> None:
    """Wait for the notice, at most until the rows are to be read again."""
    with suppress(TimeoutError):
        async with asyncio.timeout(POLL):
            await notice.wait()


def _about(record: Record) -> tuple[UUID, int, int]:
    row = record.session
    return row.session_id, row.generation, row.epoch
