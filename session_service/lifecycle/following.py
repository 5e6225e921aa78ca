"""Following the provider: what it did by itself, or what was lost, is written into the rows.

Each write is fenced by the epoch that was judged: what changed meanwhile stands.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from session_service.domain.session import (
    Cause,
    ConditionType,
    ContainerState,
    PauseDepth,
)
from session_service.domain.states import State, Transition
from session_service.domain.survey import Verdict
from session_service.errors import RoostError
from session_service.lifecycle import outcomes
from session_service.storage import commits, sessions, transitions
from session_service.storage.assignments import NOW, Now
from session_service.storage.transitions import Change

if TYPE_CHECKING:
    import asyncio
    from datetime import datetime

    from session_service.domain.session import Record, Session
    from session_service.domain.survey import Labelled, Listed, Tracked
    from session_service.lifecycle.evidence import Looker
    from session_service.lifecycle.takeover import Work
    from session_service.ports import Seen
    from session_service.storage.database import Database

_log = logging.getLogger(__name__)


class Follower:
    """Writes down what a listing showed."""

    def __init__(self, database: Database, looker: Looker, work: Work) -> None:
        self._database = database
        self._looker = looker
        self._work = work

    async def follow(self, row: Tracked, listed: Listed | None, verdict: Verdict) -> bool:
        """Act on a verdict; whether anything came of it. Raises StorageUnavailable."""
        record = await sessions.find(self._database, row.session_id)
        if record is None or record.session.epoch != row.epoch or record.container is None:
            return False
        if verdict is Verdict.MISSING:
            return await self._missing(record)
        if listed is None:
            return False
        if verdict in (Verdict.WOKE_ENDED, Verdict.STRAYED):
            return await self._rest_again(record, verdict)
        if verdict is Verdict.WOKE and record.container.start_time is None:
            # No start ended well on it: what a restore was to put into it is not there.
            return await self._rest_again(record, verdict)
        change = _change(record, listed, verdict)
        written = await transitions.write(self._database, change)
        self._told(record, verdict)
        return written is not None

    async def found(self, row: Labelled, seen: Seen) -> bool:
        """A container that was taken for lost is there after all: its session has it back."""
        record = await sessions.find(self._database, row.session_id)
        if record is None or record.container is None or record.session.transition is not None:
            return False
        if record.session.generation != row.generation or record.container.destroy_time is None:
            return False
        if not record.container.wanted:
            # It was not lost: its state was saved, so that it could go.
            return False
        written = await transitions.write(self._database, _found(record.session, seen))
        self._told(record, "FOUND")
        return written is not None

    async def _missing(self, record: Record) -> bool:
        """Not in the listing: lost only if it is proved so, by reads apart by the lag window."""
        assert record.container is not None, "the caller looked"
        try:
            if not await self._looker.prove_absent(record.container):
                return False
        except RoostError as error:
            _log.warning(
                "a container is in no listing, and the provider does not say why: %s",
                error,
                extra={"action": "follow", "session_id": str(record.session.session_id)},
            )
            return False
        written = await transitions.write(self._database, _lost(record.session, record.now))
        self._told(record, Verdict.MISSING)
        return written is not None

    async def _rest_again(self, record: Record, verdict: Verdict) -> bool:
        """It runs and should not: it is put to rest as it was. What traffic woke of a session that
        is over ends once more, its grace period from its first end.
        """
        session = record.session
        over = verdict is Verdict.WOKE_ENDED
        told = {
            Verdict.WOKE_ENDED: "its session is over",
            Verdict.WOKE: "nothing of its user's is in it",
        }.get(verdict, "it is out of routing")
        change = Change(
            session.session_id,
            session.epoch,
            session={
                **self._work.terms.values(),
                "state": State.ENDING if over else State.PAUSING,
                "transition": Transition.END if over else Transition.PAUSE,
                "prior_state": session.state,
                "cause": Cause.WOKEN,
            },
            details={"cause": Cause.WOKEN, "because": f"its container runs, and {told}"},
        )
        task: asyncio.Task[None] | None = await self._work.commit(
            commits.begin(self._database, change, None)
        )
        if task is not None:
            self._told(record, verdict)
        return task is not None

    def _told(self, record: Record, verdict: str) -> None:
        _log.info(
            "followed the provider: %s",
            verdict,
            extra={
                "action": "follow",
                "session_id": str(record.session.session_id),
                "verdict": verdict,
            },
        )


def _change(record: Record, listed: Listed, verdict: Verdict) -> Change:
    match verdict:
        case Verdict.FELL:
            return _fell(record.session, listed, record.now)
        case Verdict.SANK:
            return _sank(record.session, record.now)
        case Verdict.WOKE:
            return outcomes.woken(record.session, "the provider shows its container running")
        case _:
            raise AssertionError(f"nothing to write for {verdict}")


def _fell(session: Session, listed: Listed, now: datetime) -> Change:
    """It rests, and nobody here put it there: the session rests with it."""
    suspended = listed.state is ContainerState.SUSPENDED
    depth = PauseDepth.SUSPENDED if suspended else PauseDepth.STOPPED
    found = () if suspended else (ConditionType.MEMORY_LOST,)
    return Change(
        session.session_id,
        session.epoch,
        session={
            **outcomes.paused(session, depth),
            "conditions": outcomes.marked(found, now),
            "cause": Cause.FELL,
            "verified_at": None,
        },
        container={"state": listed.state},
        details={"cause": Cause.FELL, "because": "the provider shows its container at rest"},
    )


def _sank(session: Session, now: datetime) -> Change:
    """It is stopped where it was suspended: the provider dropped its memory."""
    return Change(
        session.session_id,
        session.epoch,
        session={
            "pause_depth": PauseDepth.STOPPED,
            "conditions": outcomes.marked((ConditionType.MEMORY_LOST,), now),
            "due_at": Now(outcomes.rest_span(session, PauseDepth.STOPPED)),
        },
        container={"state": ContainerState.STOPPED},
        event="MEMORY_LOST",
    )


def _found(session: Session, seen: Seen) -> Change:
    """It rests after all, as deep as is seen. One that runs is followed by the next listing; how
    deep it rests is not known until then.
    """
    depth = _DEPTHS.get(seen.state)
    return Change(
        session.session_id,
        session.epoch,
        session={
            "pause_depth": depth,
            "conditions": "[]",
            "due_at": Now(outcomes.rest_span(session, depth)),
        },
        container={"state": seen.state, "destroy_time": None},
        event="CONTAINER_FOUND",
    )


_DEPTHS = {
    ContainerState.SUSPENDED: PauseDepth.SUSPENDED,
    ContainerState.STOPPED: PauseDepth.STOPPED,
    ContainerState.FAILED: PauseDepth.STOPPED,
}


def _lost(session: Session, now: datetime) -> Change:
    """Its container is proved lost: it rests without one, or is over without one."""
    columns: dict[str, object] = {"due_at": NOW}
    if session.state is not State.ENDED:
        columns = {
            **(outcomes.paused(session, None) if session.state is State.ACTIVE else {}),
            "pause_depth": PauseDepth.CHECKPOINT,
            "conditions": outcomes.marked((ConditionType.CONTAINER_LOST,), now),
            "cause": Cause.LOST,
            "verified_at": None,
            "due_at": NOW,
        }
    return Change(
        session.session_id,
        session.epoch,
        session=columns,
        container=outcomes.GONE,
        event="CONTAINER_LOST",
        details={"cause": Cause.LOST, "because": "the provider has its container no more"},
    )
