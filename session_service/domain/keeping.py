"""What happens to a session by itself: what is next, and when.

`next_step` is a pure, total function of a session's record, whose time is the database's. The
keeper carries out what is due; a caller is shown the same as `next_action`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, assert_never

from session_service.domain import conditions, schedule
from session_service.domain import policy as policies
from session_service.domain.deepening import saves
from session_service.domain.session import ConditionType, Continuity, EndReason, PauseDepth
from session_service.domain.states import State, Transition

if TYPE_CHECKING:
    from datetime import datetime

    from session_service.domain.policy import Policy
    from session_service.domain.session import Container, Record, Session


class Action(StrEnum):
    """What the keeper does."""

    NOTHING = "NOTHING"
    WARN = "WARN"
    """Tell who watches that it is about to go idle."""
    PAUSE = "PAUSE"
    """Put it to rest for idleness; where its policy keeps nothing over a stop, end it."""
    DEEPEN = "DEEPEN"
    """From suspended to stopped, or to saved and destroyed."""
    EXPIRE = "EXPIRE"
    """End it: it rested for too long."""
    RECOVER = "RECOVER"
    """Replace its lost container at once, as its policy asks."""
    PURGE = "PURGE"
    """Destroy an ended session's container for good."""
    TAKE_OVER = "TAKE_OVER"
    """Finish or undo the transition of an owner that is gone."""
    DISCARD = "DISCARD"
    """Give up a session that never stood and that nobody came back for."""
    CHECKPOINT = "CHECKPOINT"
    """Save the state of what runs, on its schedule: no transition, and no activity."""
    FORGET = "FORGET"
    """Delete its rows; decisions stay."""


@dataclass(frozen=True, slots=True)
class Habits:
    """How the keeper goes about it, the same for all sessions."""

    warn_before: timedelta = timedelta(minutes=1)
    """Between the warning and the pause; half the idle timeout where that is shorter."""
    abandoned_after: timedelta = timedelta(minutes=2)
    """How long a first start that failed waits for somebody to try again."""
    retention: timedelta = timedelta(days=30)
    """How long the rows of a purged session are kept."""


@dataclass(frozen=True, slots=True)
class Step:
    """What is next, when at the earliest (None: never, as things are), and why."""

    action: Action
    time: datetime | None = None
    because: str = ""
    depth: PauseDepth | None = None
    """Of a rest that is deepened: how deep it is to be."""

    def due(self, now: datetime) -> bool:
        """Whether its time has come."""
        return self.time is not None and self.time <= now


def idle_time(session: Session) -> datetime:
    """When it goes idle unless something happens: the timeout, or the last hold's end if later."""
    idle = session.last_active_time + policies.load(session.policy).idle_timeout
    return idle if session.hold_until is None else max(idle, session.hold_until)


def warn_due_time(session: Session, habits: Habits) -> datetime:
    """When to warn of the pause."""
    lead = min(habits.warn_before, policies.load(session.policy).idle_timeout / 2)
    return idle_time(session) - lead


def warned(session: Session, habits: Habits) -> bool:
    """Whether the warning of the pause that is coming was given; activity makes it a new one."""
    return session.warn_time is not None and session.warn_time >= warn_due_time(session, habits)


def next_step(record: Record, habits: Habits) -> Step:
    """What the keeper is to do next about this session, and when."""
    step = but_saving(record, habits)
    saving = schedule.due_time(record)
    if saving is None or step.time is None or step.due(record.now) or step.time <= saving:
        # A warning or a pause is not late for a checkpoint.
        return step
    return Step(Action.CHECKPOINT, saving, "its policy has its state saved every so often")


def but_saving(record: Record, habits: Habits) -> Step:
    """What becomes of the session itself next: all but a checkpoint that is taken as it runs."""
    session = record.session
    if session.transition is not None:
        return _in_flight(record, habits)
    match session.state:
        case State.ACTIVE:
            return _active(session, habits)
        case State.PAUSED:
            return _paused(record, policies.load(session.policy))
        case State.ENDED:
            return _ended(record, habits)
        case State.STARTING | State.PAUSING | State.ENDING:
            # The database's own check: these always have a transition.
            return Step(Action.NOTHING)
        case other:
            assert_never(other)


def shown_step(record: Record, habits: Habits) -> Step:
    """The same, as a caller is shown it: what becomes of the session. A warning is no news, what it
    warns of is; nor is a checkpoint, which changes nothing.
    """
    session = record.session
    step = but_saving(record, habits)
    if step.action is Action.WARN:
        because = "it goes idle then, unless somebody is there or holds it"
        step = Step(Action.PAUSE, idle_time(session), because)
    if step.time is None or session.due_at is None or session.due_at <= step.time:
        return step
    # It was tried and did not work out: when the keeper looks next is when it is tried again.
    return Step(step.action, session.due_at, step.because)


def _in_flight(record: Record, habits: Habits) -> Step:
    session = record.session
    if session.transition is Transition.REPLACE:
        return Step(Action.NOTHING, None, "the start of the session that replaces it decides")
    if record.abandoned:
        when = session.change_time + habits.abandoned_after
        return Step(Action.DISCARD, when, "its first start failed and nobody came back for it")
    lapse = min(
        (when for when in (session.lease_until, session.deadline) if when is not None),
        default=session.change_time,
    )
    return Step(Action.TAKE_OVER, lapse, "the owner of its transition may be gone by then")


def _active(session: Session, habits: Habits) -> Step:
    warning = warn_due_time(session, habits)
    if not warned(session, habits):
        return Step(Action.WARN, warning, "it is about to go idle")
    # The warning may have come late, after a time without a keeper: it still leaves its time.
    lead = idle_time(session) - warning
    when = max(idle_time(session), (session.warn_time or warning) + lead)
    return Step(Action.PAUSE, when, "nobody was there, and nothing held it")


def lost(session: Session, container: Container | None) -> bool:
    """Whether its container was lost, and none stands in its place."""
    stands = container is not None and container.start_time is not None
    if stands and container is not None and container.destroy_time is None:
        return False
    return ConditionType.CONTAINER_LOST in _kinds(session)


def recovers(session: Session) -> bool:
    """Whether a lost container is replaced before anybody asks, as its policy says: not where what
    is left is less than any start may come back with.
    """
    policy = policies.load(session.policy)
    left = Continuity.NONE if session.checkpoint_id is None else Continuity.CHECKPOINT
    return policy.recover_at_once and (policy.min_continuity or left) <= left


def _paused(record: Record, policy: Policy) -> Step:
    """Deeper, each after its own time. How deep it rests may not be known: then it is deepened,
    which finds out.
    """
    session = record.session
    since = session.pause_time or session.change_time
    expiry = since + policy.expire_after
    # Not for ever, where it cannot be: what nobody came back to in all that time ends.
    if record.now < expiry and recovers(session) and lost(session, record.container):
        return Step(Action.RECOVER, session.change_time, "its container was lost")
    if session.pause_depth is PauseDepth.CHECKPOINT:
        return Step(Action.EXPIRE, expiry, "it rested for too long")
    return _deeper(record, policy, since)


def _deeper(record: Record, policy: Policy, since: datetime) -> Step:
    """What comes first of what a rest with a container comes to."""
    session = record.session
    stopped = session.pause_depth is PauseDepth.STOPPED
    end = since + policy.expire_after + (timedelta(0) if stopped else policy.deepen_after)
    over = Step(Action.EXPIRE, end, "it rested for too long")
    if record.now >= end and ConditionType.CHECKPOINT_FAILED in _kinds(session):
        # What cannot be saved is not put deeper, and not kept for ever either.
        return over
    stop = Step(
        Action.DEEPEN,
        since + policy.deepen_after,
        "it was suspended for long",
        PauseDepth.STOPPED,
    )
    steps = [over if stopped else stop]
    if saves(session, record.container, policy):
        because = "it rested for long enough to be saved, and its container destroyed"
        when = since + policy.checkpoint_after
        steps.append(Step(Action.DEEPEN, when, because, PauseDepth.CHECKPOINT))
    return min(steps, key=lambda step: step.time or end)


def _kinds(session: Session) -> list[ConditionType]:
    return [condition.type for condition in conditions.load(session.conditions)]


def _ended(record: Record, habits: Habits) -> Step:
    session = record.session
    if not purged(record):
        when = session.purge_time or session.end_time or session.change_time
        return Step(Action.PURGE, when, "its grace period is over")
    since = session.end_time or session.change_time
    return Step(Action.FORGET, since + habits.retention, "its rows were kept for long enough")


def purged(record: Record) -> bool:
    """Whether an ended session is gone, or committed to go, for good: its container, and that no
    checkpoint stands for it.
    """
    session, container = record.session, record.container
    if session.checkpoint_id is not None and session.pause_depth is PauseDepth.CHECKPOINT:
        # A purge takes that from it.
        return False
    if container is None or not container.wanted or container.destroy_time is not None:
        return True
    return session.end_reason is EndReason.CREATE_FAILED
