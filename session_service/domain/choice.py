"""The candidates that a user can choose from at a start, and whether a choice is still valid."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from session_service.domain import spec as specs
from session_service.domain.checkpoint import in_order, supports
from session_service.domain.ladder import kept_by, rungs_for
from session_service.domain.plans import Candidate, Choice
from session_service.domain.policy import Preference
from session_service.domain.session import Continuity, Mode, Outcome, Rung, expected_continuity
from session_service.domain.states import State, Transition

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime
    from uuid import UUID

    from session_service.domain.checkpoint import Checkpoint
    from session_service.domain.plans import TryRungs
    from session_service.domain.session import Key, Record


#: The mode of the start that executes a choice.
MODE_OF: Mapping[Choice, Mode] = {
    Choice.CONTINUE: Mode.CONTINUE,
    Choice.RESTORE: Mode.CONTINUE,
    Choice.FRESH: Mode.FRESH,
}
#: The preference that a remembered choice becomes.
REMEMBERED: Mapping[Choice, Preference] = {
    Choice.CONTINUE: Preference.AUTO_RESUME,
    Choice.RESTORE: Preference.AUTO_RESUME,
    Choice.FRESH: Preference.ALWAYS_FRESH,
}
#: The choice that a preference makes.
CHOSEN: Mapping[Preference, Choice] = {
    Preference.AUTO_RESUME: Choice.CONTINUE,
    Preference.ALWAYS_FRESH: Choice.FRESH,
}
#: The outcome of a start that succeeds by this rung.
OUTCOME_OF: Mapping[Rung, Outcome] = {
    Rung.LIVE: Outcome.REUSED,
    Rung.RESUME: Outcome.RESUMED,
    Rung.RESTART: Outcome.RESTARTED,
    Rung.RESTORE: Outcome.RESTORED,
    Rung.CREATE: Outcome.CREATED,
}


#: How many checkpoints are offered at most, in the order in which a start would try them.
MOST_CHECKPOINTS = 5


def candidates(
    record: Record,
    waits: Mapping[Outcome, int],
    checkpoints: Iterable[Checkpoint] = (),
    recreation: TryRungs | None = None,
) -> tuple[Candidate, ...]:
    """The candidates for the live session of `record`, best first.

    `checkpoints`: the checkpoints of its key. Those of a kind that its spec supports are offered.
    `recreation`: the plan by which CONTINUE would recreate its container, if the start asks for
    another spec; else None.
    """
    session = record.session
    running = session.state is State.ACTIVE
    rung = Rung.LIVE if running else rungs_for(session, record.container)[0]
    continuing = Candidate(
        Choice.CONTINUE,
        rung if recreation is None else recreation.rungs[0],
        _expected(record, recreation),
        session.session_id,
        session.generation,
        session.last_active_time,
        record.now - session.last_active_time,
    )
    fresh = Candidate(Choice.FRESH, Rung.CREATE, Continuity.NONE)
    found = (continuing, *_restorable(record, rung, checkpoints), fresh)
    return tuple(replace(each, wait=waits.get(OUTCOME_OF[each.rung])) for each in found)


def _restorable(
    record: Record, rung: Rung, checkpoints: Iterable[Checkpoint]
) -> Iterable[Candidate]:
    """The checkpoints that can be restored, without the one that CONTINUE would restore anyway."""
    session = record.session
    spec = specs.load(session.spec)
    line = [
        each
        for each in in_order(session.checkpoint_id, checkpoints)
        if supports(spec, each.kind)
        and not (rung is Rung.RESTORE and each.checkpoint_id == session.checkpoint_id)
    ]
    return (
        Candidate(
            Choice.RESTORE,
            Rung.RESTORE,
            Continuity.CHECKPOINT,
            session.session_id,
            each.generation,
            each.create_time,
            record.now - each.create_time,
            each.checkpoint_id,
            each.number,
        )
        for each in line[:MOST_CHECKPOINTS]
    )


def dump(offered: Iterable[Candidate]) -> str:
    """The candidates as JSON without their tokens, as the rows of the tokens hold them."""
    return json.dumps(
        [
            {
                "choice": each.choice,
                "rung": each.rung,
                "expected_continuity": each.expected.name,
                "session_id": None if each.session_id is None else str(each.session_id),
                "checkpoint_id": None if each.checkpoint_id is None else str(each.checkpoint_id),
                "age_seconds": None if each.age is None else each.age.total_seconds(),
                "wait_milliseconds": each.wait,
            }
            for each in offered
        ]
    )


@dataclass(frozen=True, slots=True)
class Offered:
    """A candidate as it was offered: the row that is found by its token."""

    key: Key
    choice: Choice
    session_id: UUID
    """The session that was at the key."""
    start_count: int
    expected: Continuity
    checkpoint_id: UUID | None
    offered: str
    """All candidates that were offered, as JSON."""
    decision_id: UUID | None
    """The decision that used the token; None if none did, or if that decision failed."""
    expired: bool
    create_time: datetime


def _expected(record: Record, recreation: TryRungs | None) -> Continuity:
    """The continuity that CONTINUE is expected to give."""
    left = expected_continuity(record.session, record.container)
    return left if recreation is None else min(left, kept_by(recreation))


def gone_stale(
    offered: Offered, record: Record | None, recreation: TryRungs | None = None
) -> str | None:
    """Why the offered candidate is no longer valid; None if it is.

    CONTINUE is valid if the session gives no less continuity than was offered, however often it was
    started since. RESTORE and FRESH replace the session's state: they are valid only if the session
    was not started since, so that the user gives up nothing that the offer did not show.
    """
    if record is None:
        return "the session that was there has ended"
    session = record.session
    if session.session_id != offered.session_id:
        return "there is another session at this key now"
    if offered.choice is not Choice.CONTINUE:
        started = session.start_count != offered.start_count
        starting = session.transition is Transition.START
        return "the session was started meanwhile" if started or starting else None
    if _expected(record, recreation) < offered.expected:
        return "the session would get back less than was offered"
    return None
