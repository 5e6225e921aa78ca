"""Waiting for a decision or a transition to be finished, by whoever works on it, and its answer."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from session_service import errors
from session_service.storage import decisions, sessions

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from session_service.domain.decision import Decision, Request
    from session_service.domain.session import Record, Session
    from session_service.lifecycle.takeover import Work
    from session_service.storage.database import Database
    from session_service.storage.notifications import Notices

#: How long to wait for a notice before looking all the same, in s.
POLL = 1.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What a call is answered with: its decision, and the session as it is now."""

    decision: Decision
    record: Record
    changed: tuple[str, ...] = ()
    """The parts of the spec that was wanted which the container was not created from."""
    replayed: bool = False
    """Whether an earlier call with its request id was answered so."""


def raise_recorded(decision: Decision) -> None:
    """Raise the refusal that the decision recorded, if it is one."""
    if decision.error is None:
        return
    row = json.loads(decision.error)
    raise rebuilt(row, {"decision_id": str(decision.decision_id)})


def rebuilt(row: Mapping[str, Any], more: Mapping[str, str]) -> errors.RoostError:
    """The refusal that a decision's row recorded. Any: JSON."""
    kind = errors.RECORDED.get(row["reason"], errors.RoostError)
    metadata = {**row["metadata"], **more}
    if issubclass(kind, errors.Retryable):
        return kind(row["message"], metadata, row["retry_after"])
    return kind(row["message"], metadata)


class Joining:
    """Waits for what others do, and takes it over when they are gone."""

    def __init__(self, database: Database, notices: Notices, work: Work) -> None:
        self._database = database
        self._notices = notices
        self._work = work

    async def finished(self, decision: Decision) -> Decision:
        """The decision once it is finished. Takes over the work of an owner that is gone."""
        if decision.finish_time is not None or decision.session_id is None:
            return decision
        with self._notices.watch(decision.session_id) as notice:
            while True:
                notice.clear()
                now = await decisions.get(self._database, decision.decision_id)
                if now is None or now.finish_time is not None:
                    return now or decision
                await self._wait(decision.session_id, notice)

    async def settled(self, session_id: UUID, epoch: int) -> None:
        """Return once the session is no longer what it was at `epoch`, or has settled.

        Or once its owner is gone: then it is for the caller to take over.
        """
        with self._notices.watch(session_id) as notice:
            while True:
                notice.clear()
                record = await sessions.find(self._database, session_id)
                if record is None or record.session.transition is None:
                    return
                if record.session.epoch != epoch or record.lapsed:
                    return
                await self._wait(session_id, notice)

    async def replaced(self, session: Session, successor_id: UUID) -> None:
        """Return once it is decided whether the session that waits in REPLACE is replaced.

        Its successor's start, where the owner of that is gone, is taken over.
        """
        with self._notices.watch(session.session_id) as notice:
            while True:
                notice.clear()
                record = await sessions.find(self._database, session.session_id)
                if record is None or record.session.epoch != session.epoch:
                    return
                successor = await sessions.find(self._database, successor_id)
                if successor is not None:
                    await self._work.take_over(successor)
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL):
                        await notice.wait()

    async def replayed(self, request: Request) -> Answer | None:
        """The answer of an earlier call with this request id; None where it is the first.

        Waits for one in flight. Raises RequestIdReused where the body was another, and whatever
        refusal was recorded.
        """
        decision = await decisions.of_request(self._database, request)
        return None if decision is None else await self.replay(request, decision)

    async def replay(self, request: Request, decision: Decision) -> Answer:
        """The answer of the earlier call that made this decision; see `replayed`."""
        if decision.request_hash != request.request_hash:
            raise errors.RequestIdReused(
                "this request_id came before with another body; use a new one for a new request"
            )
        finished = await self.finished(decision)
        await decisions.count_replay(self._database, finished.decision_id)
        raise_recorded(finished)
        return replace(await self.answer(finished), replayed=True)

    async def answer(self, decision: Decision) -> Answer:
        """The finished decision with the session as it is now. Raises SessionNotFound."""
        record = None
        if decision.session_id is not None:
            record = await sessions.find(self._database, decision.session_id)
        if record is None:
            raise errors.SessionNotFound("the session of this decision is no longer kept")
        return Answer(decision, record)

    async def _wait(self, session_id: UUID, notice: asyncio.Event) -> None:
        """Until a notice or the poll; an owner that is gone meanwhile is taken over."""
        record = await sessions.find(self._database, session_id)
        if record is not None and record.lapsed and record.session.decision_id is not None:
            await self._work.take_over(record)
        try:
            async with asyncio.timeout(POLL):
                await notice.wait()
        except TimeoutError:
            return
