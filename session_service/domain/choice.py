"""What a user can choose at a start, what an answer is bound to, and what a user prefers."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from session_service.domain import spec as specs
from session_service.domain.changed_spec import kept_by
from session_service.domain.checkpoint import in_order, supports
from session_service.domain.policy import Persistence
from session_service.domain.rungs import expected_continuity, rungs_for
from session_service.domain.session import Continuity, Mode, Outcome, Rung
from session_service.domain.states import State, Transition

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime, timedelta
    from uuid import UUID

    from session_service.domain.checkpoint import Checkpoint
    from session_service.domain.plans import Climb
    from session_service.domain.policy import Policy
    from session_service.domain.session import Key, Record


class Choice(StrEnum):
    """What a user can choose."""

    CONTINUE = "CONTINUE"
    """Go on with the session that is there."""
    RESTORE = "RESTORE"
    """Go back to a checkpoint."""
    FRESH = "FRESH"
    """Begin anew, in place of what is there."""


class Preference(StrEnum):
    """What decides where a user would be asked."""

    AUTO_RESUME = "AUTO_RESUME"
    ALWAYS_FRESH = "ALWAYS_FRESH"
    ASK = "ASK"


#: What a start does that carries a choice out.
MODE_OF: Mapping[Choice, Mode] = {
    Choice.CONTINUE: Mode.CONTINUE,
    Choice.RESTORE: Mode.CONTINUE,
    Choice.FRESH: Mode.FRESH,
}
#: What is kept of a choice that is to be remembered.
REMEMBERED: Mapping[Choice, Preference] = {
    Choice.CONTINUE: Preference.AUTO_RESUME,
    Choice.RESTORE: Preference.AUTO_RESUME,
    Choice.FRESH: Preference.ALWAYS_FRESH,
}
#: What a preference chooses.
CHOSEN: Mapping[Preference, Choice] = {
    Preference.AUTO_RESUME: Choice.CONTINUE,
    Preference.ALWAYS_FRESH: Choice.FRESH,
}
#: How a start ends well that takes this rung.
OUTCOME_OF: Mapping[Rung, Outcome] = {
    Rung.LIVE: Outcome.REUSED,
    Rung.RESUME: Outcome.RESUMED,
    Rung.RESTART: Outcome.RESTARTED,
    Rung.RESTORE: Outcome.RESTORED,
    Rung.CREATE: Outcome.CREATED,
}


@dataclass(frozen=True, slots=True)
class Candidate:
    """Something that a start could do about what is there."""

    choice: Choice
    rung: Rung
    expected: Continuity
    session_id: UUID | None = None
    generation: int = 0
    last_active_time: datetime | None = None
    age: timedelta | None = None
    """How long ago it was last in use."""
    checkpoint_id: UUID | None = None
    number: int = 0
    """The checkpoint's number."""
    wait: int | None = None
    """How long starts with this outcome took lately, in ms; None where there were none."""
    token: str = field(default="", repr=False)
    """Chooses it. A secret: in the answer and nowhere else."""


#: So many checkpoints are offered, those first that a start would try first.
MOST_CHECKPOINTS = 5


def candidates(
    record: Record,
    waits: Mapping[Outcome, int],
    checkpoints: Iterable[Checkpoint] = (),
    recreation: Climb | None = None,
) -> tuple[Candidate, ...]:
    """What could be done about the live session of `record`, best first. `checkpoints` are those of
    its key; of them, what its spec has a way for. `recreation` is how going on would make its
    container anew, where that is of another spec than is wanted.
    """
    session = record.session
    running = session.state is State.ACTIVE
    rung = Rung.LIVE if running else rungs_for(session, record.container)[0]
    going_on = Candidate(
        Choice.CONTINUE,
        rung if recreation is None else recreation.rungs[0],
        _left(record, recreation),
        session.session_id,
        session.generation,
        session.last_active_time,
        record.now - session.last_active_time,
    )
    anew = Candidate(Choice.FRESH, Rung.CREATE, Continuity.NONE)
    found = (going_on, *_restorable(record, rung, checkpoints), anew)
    return tuple(replace(each, wait=waits.get(OUTCOME_OF[each.rung])) for each in found)


def _restorable(
    record: Record, rung: Rung, checkpoints: Iterable[Checkpoint]
) -> Iterable[Candidate]:
    """The checkpoints that can be gone back to; not the one that going on would restore anyway."""
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
    """What was offered, as JSON: for whoever asks later. Without the tokens."""
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
    """A candidate as it was offered, found again by its token."""

    key: Key
    choice: Choice
    session_id: UUID
    """The session that stood at the key."""
    start_count: int
    expected: Continuity
    checkpoint_id: UUID | None
    offered: str
    """Everything that was offered, as JSON."""
    decision_id: UUID | None
    """The decision that the token was used by; None while it was not, or came to nothing."""
    expired: bool
    create_time: datetime


def _left(record: Record, recreation: Climb | None) -> Continuity:
    """What going on is expected to bring back."""
    left = expected_continuity(record.session, record.container)
    return left if recreation is None else min(left, kept_by(recreation))


def gone_stale(
    offered: Offered, record: Record | None, recreation: Climb | None = None
) -> str | None:
    """Why what was offered is no longer to be had; None where it is.

    To continue is to have no less of the same session than was offered, however often it was
    started since. To put something else in its place is to know what one gives up: nobody may have
    come back to it meanwhile.
    """
    if record is None:
        return "the session that was there has ended"
    session = record.session
    if session.session_id != offered.session_id:
        return "another session stands at this key by now"
    if offered.choice is not Choice.CONTINUE:
        started = session.start_count != offered.start_count
        starting = session.transition is Transition.START
        return "somebody came back to the session" if started or starting else None
    if _left(record, recreation) < offered.expected:
        return "less of the session is left than was offered"
    return None


def deciding(policy: Policy, preference: Preference) -> Policy:
    """The policy that a start goes by which names no mode: where the user would be asked and
    prefers something, that decides.
    """
    if policy.persistence is not Persistence.ASK:
        return policy
    match preference:
        case Preference.AUTO_RESUME:
            return replace(policy, persistence=Persistence.HIBERNATE)
        case Preference.ALWAYS_FRESH:
            return replace(policy, persistence=Persistence.EPHEMERAL)
        case Preference.ASK:
            return policy
