"""Drift: writes into the rows what the provider did without us: pauses, wake-ups, and losses.

Each write is a compare-and-set on the epoch of the row that was judged. A session that changed
since the listing keeps its change, and the next listing judges it again.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from session_service.domain.inventory import Verdict
from session_service.domain.session import (
    Cause,
    ConditionType,
    ContainerState,
    PauseDepth,
)
from session_service.domain.states import State, Transition
from session_service.errors import RoostError
from session_service.storage.session import change as changes
from session_service.storage.session import reads
from session_service.storage.session.change import NOW, Change, Now
from session_service.storage.session.commit import Commit
from session_service.transition import changes as transition_changes

if TYPE_CHECKING:
    from datetime import datetime

    from session_service.dispatch.dispatcher import Dispatcher
    from session_service.domain.inventory import Labelled, Listed, Tracked
    from session_service.domain.session import Record, Session
    from session_service.observe.probe import Probe
    from session_service.ports import Seen
    from session_service.storage.database import Database

_log = logging.getLogger(__name__)


class Drift:
    """Changes sessions according to what a listing shows of their containers."""

    def __init__(self, database: Database, probe: Probe, work: Dispatcher) -> None:
        self._database = database
        self._probe = probe
        self._work = work

    async def apply(self, row: Tracked, listed: Listed | None, verdict: Verdict) -> bool:
        """Write what a verdict means for its session. Returns False if nothing was written, for
        example because the session changed meanwhile. Raises StorageUnavailable.
        """
        record = await reads.find(self._database, row.session_id)
        if record is None or record.session.epoch != row.epoch or record.container is None:
            return False
        if verdict is Verdict.MISSING:
            return await self._missing(record)
        if listed is None:
            return False
        if verdict in (Verdict.WOKE_ENDED, Verdict.STRAYED):
            return await self._pause_again(record, verdict)
        if verdict is Verdict.WOKE and record.container.start_time is None:
            # No start succeeded on this container: a restore may not have filled it.
            return await self._pause_again(record, verdict)
        change = _change(record, listed, verdict)
        return await self._write(record, change, verdict)

    async def take_back(self, row: Labelled, seen: Seen) -> bool:
        """Give a session its container back that was recorded as lost and still exists. Returns
        False if nothing was written. Raises StorageUnavailable.
        """
        record = await reads.find(self._database, row.session_id)
        if record is None or record.container is None or record.session.transition is not None:
            return False
        if record.session.generation != row.generation or record.container.destroy_time is None:
            return False
        if not record.container.wanted:
            # It was not lost: it was destroyed on purpose, after its state was saved.
            return False
        return await self._write(record, _found(record.session, seen), "FOUND")

    async def _missing(self, record: Record) -> bool:
        """Record a container that is not in the listing as lost, once its absence is proved by
        reads that are a lag window apart. The listing alone proves nothing.
        """
        assert record.container is not None, "apply() has checked that"
        try:
            if not await self._probe.prove_absent(record.container):
                return False
        except RoostError as error:
            _log.warning(
                "a container is not in the listing, and reading it failed: %s",
                error,
                extra={"action": "drift", "session_id": str(record.session.session_id)},
            )
            return False
        return await self._write(record, _lost(record.session, record.now), Verdict.MISSING)

    async def _pause_again(self, record: Record, verdict: Verdict) -> bool:
        """Pause a container again that runs and should not.

        A session that had ended ends again. Its grace period still counts from the first end.
        """
        session = record.session
        over = verdict is Verdict.WOKE_ENDED
        because = {
            Verdict.WOKE_ENDED: "its session is over",
            Verdict.WOKE: "no start has succeeded on it",
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
            details={"cause": Cause.WOKEN, "because": f"its container runs, and {because}"},
        )
        _, task = await self._work.commit(Commit((change,), begins=session.session_id))
        if task is not None:
            self._log_verdict(record, verdict)
        return task is not None

    async def _write(self, record: Record, change: Change, verdict: str) -> bool:
        """Write the change, and log the verdict if it was written."""
        written = await changes.write(self._database, change)
        if written is not None:
            self._log_verdict(record, verdict)
        return written is not None

    def _log_verdict(self, record: Record, verdict: str) -> None:
        _log.info(
            "the provider's state differs from a session's row: %s",
            verdict,
            extra={
                "action": "drift",
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
            return transition_changes.woken(
                record.session, "the provider shows its container running"
            )
        case _:
            raise AssertionError(f"nothing to write for {verdict}")


def _fell(session: Session, listed: Listed, now: datetime) -> Change:
    """The container of an ACTIVE session is suspended or stopped: the session becomes PAUSED."""
    suspended = listed.state is ContainerState.SUSPENDED
    depth = PauseDepth.SUSPENDED if suspended else PauseDepth.STOPPED
    conditions = () if suspended else (ConditionType.MEMORY_LOST,)
    return Change(
        session.session_id,
        session.epoch,
        session={
            **transition_changes.paused(session, depth),
            "conditions": transition_changes.marked(conditions, now),
            "cause": Cause.FELL,
            "verified_at": None,
        },
        container={"state": listed.state},
        details={"cause": Cause.FELL, "because": "the provider shows its container paused"},
    )


def _sank(session: Session, now: datetime) -> Change:
    """A suspended container is now stopped: the provider dropped its memory."""
    return Change(
        session.session_id,
        session.epoch,
        session={
            "pause_depth": PauseDepth.STOPPED,
            "conditions": transition_changes.marked((ConditionType.MEMORY_LOST,), now),
            "due_at": Now(transition_changes.paused_span(session, PauseDepth.STOPPED)),
        },
        container={"state": ContainerState.STOPPED},
        event="MEMORY_LOST",
    )


def _found(session: Session, seen: Seen) -> Change:
    """The container exists: the session is paused as deep as the container is. If the container
    runs, the depth stays unknown until the next listing judges the session.
    """
    depth = _DEPTHS.get(seen.state)
    return Change(
        session.session_id,
        session.epoch,
        session={
            "pause_depth": depth,
            "conditions": "[]",
            "due_at": Now(transition_changes.paused_span(session, depth)),
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
    """The container is proved lost: the session is PAUSED, or stays ENDED, without a container."""
    columns: dict[str, object] = {"due_at": NOW}
    if session.state is not State.ENDED:
        columns = {
            **(transition_changes.paused(session, None) if session.state is State.ACTIVE else {}),
            "pause_depth": PauseDepth.CHECKPOINT,
            "conditions": transition_changes.marked((ConditionType.CONTAINER_LOST,), now),
            "cause": Cause.LOST,
            "verified_at": None,
            "due_at": NOW,
        }
    return Change(
        session.session_id,
        session.epoch,
        session=columns,
        container=transition_changes.GONE,
        event="CONTAINER_LOST",
        details={"cause": Cause.LOST, "because": "the provider no longer has its container"},
    )
