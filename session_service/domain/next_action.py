"""The next action that Roost takes on a session without a call, and its time.

`next_step` is a pure, total function of a session's record, whose times are the database's. The
due pass executes a step whose time has come; answers show the same step as `next_action`; and
`explain` says in sentences why a session is awake. The module also has the schedule of checkpoints
and the depths of an idle pause: suspended, then stopped, then no container once the state is saved.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, assert_never

from session_service.domain import holds
from session_service.domain import policy as policies
from session_service.domain import spec as specs
from session_service.domain.checkpoint import Kind, kind_for
from session_service.domain.session import (
    Cause,
    ConditionType,
    Continuity,
    EndReason,
    PauseDepth,
    load_conditions,
)
from session_service.domain.states import State, Transition

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from session_service.domain.checkpoint import Checkpoint
    from session_service.domain.holds import Hold
    from session_service.domain.policy import Policy
    from session_service.domain.session import Container, Record, Session


def saves(session: Session, container: Container | None, policy: Policy) -> bool:
    """Whether a paused session's state will be saved and its container destroyed.

    Only if the policy sets `checkpoint_after`, its `min_continuity` allows a start from a
    checkpoint, and the container has a state hook. A volume is never replaced by its snapshot: the
    provider keeps a snapshot for days, and a volume until it is deleted.
    """
    if not policy.checkpoint_after or (policy.min_continuity or 0) > Continuity.CHECKPOINT:
        return False
    if container is None or container.start_time is None or container.destroy_time is not None:
        # No start succeeded on it, or it is gone: it has no state of the user.
        return False
    return container.wanted and kind_for(specs.load(session.spec)) is Kind.APPLICATION


def deepens(session: Session) -> bool:
    """Whether the transition in flight is the due pass pausing a paused session more deeply."""
    begun = session.transition is Transition.PAUSE and session.prior_state is State.PAUSED
    return begun and session.cause is Cause.DEEPEN


def holds_all(
    head: Checkpoint | None, session: Session, container: Container, last_start: datetime | None
) -> bool:
    """Whether the session's newest checkpoint has all state of its paused container, so that the
    container need not run again to be saved.

    That is so if a pause took the checkpoint, the user was not active since, and the provider's
    newest start event is the one of the boot that was saved. Both times are by the provider's
    clock, and are compared for equality only.
    """
    return (
        head is not None
        and head.ready
        and head.kind is Kind.APPLICATION
        and head.checkpoint_id == container.saved_checkpoint_id
        and head.create_time >= session.last_active_time
        and last_start is not None
        and last_start == container.saved_start_time
    )


#: A session that has just come up is not saved for this time, or for the interval if that is
#: shorter: its user is about to work in it.
SETTLE = timedelta(minutes=1)
#: The pause after a failed try is the time from the due time to that try, within these bounds.
FIRST_PAUSE = timedelta(seconds=30)
LONGEST_PAUSE = timedelta(hours=1)


def checkpoint_due_time(record: Record) -> datetime | None:
    """When its state is next saved on its schedule; None: never, in its present condition."""
    session = record.session
    every = policies.load(session.policy).checkpoint_every
    if not every or not _can_be_saved(record):
        return None
    since = session.checkpoint_time or session.create_time
    due = since + every
    if session.start_time is not None:
        due = max(due, session.start_time + min(every, SETTLE))
    tried = session.checkpoint_try_time
    if tried is None or tried < since:
        return due
    return max(due, tried + min(max(tried - due, FIRST_PAUSE), LONGEST_PAUSE))


def _can_be_saved(record: Record) -> bool:
    """Whether it is ACTIVE in a container that came up, whose spec says how to save its state."""
    session, container = record.session, record.container
    if session.state is not State.ACTIVE or session.transition is not None:
        return False
    if container is None or container.start_time is None or container.destroy_time is not None:
        return False
    return container.wanted and kind_for(specs.load(session.spec)) is not None


def checkpoint_reread_time(record: Record) -> datetime:
    """When to read a session again that is being saved: before its next checkpoint can be due."""
    every = policies.load(record.session.policy).checkpoint_every
    return record.now + min(every, FIRST_PAUSE)


def span_before_first_checkpoint(session: Session, span: timedelta) -> timedelta:
    """The shorter of `span` and the time from coming up to the first scheduled checkpoint."""
    every = policies.load(session.policy).checkpoint_every
    return min(span, every, SETTLE) if every else span


def span_before_next_checkpoint(record: Record, span: timedelta) -> timedelta:
    """The shorter of `span` and the time left until the next scheduled checkpoint."""
    due = checkpoint_due_time(record)
    return span if due is None else min(span, max(due - record.now, timedelta(0)))


class Action(StrEnum):
    """What the due pass does."""

    NOTHING = "NOTHING"
    WARN = "WARN"
    """Append an event for watchers: the session is about to go idle."""
    PAUSE = "PAUSE"
    """Pause it because it is idle; end it if its policy keeps nothing after a stop."""
    DEEPEN = "DEEPEN"
    """Pause it more deeply: stop the suspended container, or save the state and destroy it."""
    EXPIRE = "EXPIRE"
    """End it: it was paused for too long."""
    RECOVER = "RECOVER"
    """Replace its lost container at once, because its policy says so."""
    PURGE = "PURGE"
    """Destroy the container of an ended session; it cannot be undeleted any more."""
    TAKE_OVER = "TAKE_OVER"
    """Finish or undo a transition whose owner's lease ran out."""
    DISCARD = "DISCARD"
    """Discard a session that never came up and was not started again."""
    CHECKPOINT = "CHECKPOINT"
    """Save a running session's state on its schedule: no transition, and not user activity."""
    FORGET = "FORGET"
    """Delete its rows; its decisions stay."""


@dataclass(frozen=True, slots=True)
class Timings:
    """Durations by which the due pass decides, the same for all sessions."""

    warn_before: timedelta = timedelta(minutes=1)
    """From the warning to the pause; half the idle timeout if that is shorter."""
    abandoned_after: timedelta = timedelta(minutes=2)
    """How long a session whose first start failed is kept for another start."""
    retention: timedelta = timedelta(days=30)
    """How long the rows of a purged session are kept."""


@dataclass(frozen=True, slots=True)
class Step:
    """The next action, its earliest time (None: never, in the present condition), and why."""

    action: Action
    time: datetime | None = None
    because: str = ""
    depth: PauseDepth | None = None
    """Of DEEPEN: the depth to reach."""

    def due(self, now: datetime) -> bool:
        """Whether its time has come."""
        return self.time is not None and self.time <= now


def idle_time(session: Session) -> datetime:
    """When it goes idle without further activity: at the timeout, or when the last hold ends."""
    idle = session.last_active_time + policies.load(session.policy).idle_timeout
    return idle if session.hold_until is None else max(idle, session.hold_until)


def warn_due_time(session: Session, timings: Timings) -> datetime:
    """When to warn of the pause."""
    lead = min(timings.warn_before, policies.load(session.policy).idle_timeout / 2)
    return idle_time(session) - lead


def warned(session: Session, timings: Timings) -> bool:
    """Whether the warning of the next pause was given. Activity moves the pause, which then gets a
    warning of its own.
    """
    return session.warn_time is not None and session.warn_time >= warn_due_time(session, timings)


def next_step(record: Record, timings: Timings) -> Step:
    """What the due pass does next with this session, and when."""
    step = step_without_schedule(record, timings)
    due = checkpoint_due_time(record)
    if due is None or step.time is None or step.due(record.now) or step.time <= due:
        # A warning or a pause is not delayed by a checkpoint.
        return step
    return Step(Action.CHECKPOINT, due, "its policy saves its state at an interval")


def step_without_schedule(record: Record, timings: Timings) -> Step:
    """The next step apart from scheduled checkpoints, which do not change the session."""
    session = record.session
    if session.transition is not None:
        return _in_flight(record, timings)
    match session.state:
        case State.ACTIVE:
            return _active(session, timings)
        case State.PAUSED:
            return _paused(record, policies.load(session.policy))
        case State.ENDED:
            return ended_step(_ended(record), timings)
        case State.STARTING | State.PAUSING | State.ENDING:
            # Cannot be: a check of the table demands a transition in these states.
            return Step(Action.NOTHING)
        case other:
            assert_never(other)


def shown_step(record: Record, timings: Timings) -> Step:
    """The next step that an answer shows. It shows the pause, and not the warning before it; and no
    scheduled checkpoint, which does not change the session.
    """
    session = record.session
    step = step_without_schedule(record, timings)
    if step.action is Action.WARN:
        because = "it goes idle then, unless the user is active or a hold is placed"
        step = Step(Action.PAUSE, idle_time(session), because)
    if step.time is None or session.due_at is None or session.due_at <= step.time:
        return step
    # A try failed: the due pass tries again when it next reads the session.
    return Step(step.action, session.due_at, step.because)


def _in_flight(record: Record, timings: Timings) -> Step:
    session = record.session
    if session.transition is Transition.REPLACE:
        return Step(Action.NOTHING, None, "the start of the session that replaces it decides")
    if record.abandoned:
        when = session.change_time + timings.abandoned_after
        return Step(Action.DISCARD, when, "its first start failed and it was not started again")
    expiry = min(
        (when for when in (session.lease_until, session.deadline) if when is not None),
        default=session.change_time,
    )
    return Step(Action.TAKE_OVER, expiry, "the owner of its transition may be gone by then")


def _active(session: Session, timings: Timings) -> Step:
    warning = warn_due_time(session, timings)
    if not warned(session, timings):
        return Step(Action.WARN, warning, "it is about to go idle")
    # The warning may be late, if no due pass ran for a time: the user still gets the full lead.
    lead = idle_time(session) - warning
    when = max(idle_time(session), (session.warn_time or warning) + lead)
    return Step(Action.PAUSE, when, "the user was not active, and no hold was in force")


def lost(session: Session, container: Container | None) -> bool:
    """Whether its container was lost, and no other has come up since."""
    came_up = container is not None and container.start_time is not None
    if came_up and container is not None and container.destroy_time is None:
        return False
    return ConditionType.CONTAINER_LOST in _kinds(session)


def recovers(session: Session) -> bool:
    """Whether a lost container is replaced without a call, because its policy says so. Not if the
    state that is left is less than the policy's `min_continuity`: every start would fail.
    """
    policy = policies.load(session.policy)
    left = Continuity.NONE if session.checkpoint_id is None else Continuity.CHECKPOINT
    return policy.recover_at_once and (policy.min_continuity or left) <= left


def _paused(record: Record, policy: Policy) -> Step:
    """The steps of a paused session: recover, pause more deeply, expire.

    The depth of the pause may be unknown: then it is treated as suspended, and pausing it more
    deeply finds out.
    """
    session = record.session
    since = session.pause_time or session.change_time
    expiry = since + policy.expire_after
    # A recovery that keeps failing ends here: after `expire_after` the session expires.
    if record.now < expiry and recovers(session) and lost(session, record.container):
        return Step(Action.RECOVER, session.change_time, "its container was lost")
    if session.pause_depth is PauseDepth.CHECKPOINT:
        return Step(Action.EXPIRE, expiry, "it was paused for too long")
    return _deeper(record, policy, since)


def _deeper(record: Record, policy: Policy, since: datetime) -> Step:
    """The earliest of the steps of a session that is paused with a container."""
    session = record.session
    stopped = session.pause_depth is PauseDepth.STOPPED
    end = since + policy.expire_after + (timedelta(0) if stopped else policy.deepen_after)
    expire = Step(Action.EXPIRE, end, "it was paused for too long")
    if record.now >= end and ConditionType.CHECKPOINT_FAILED in _kinds(session):
        # A state that cannot be saved keeps its container, but not for ever.
        return expire
    stop = Step(
        Action.DEEPEN,
        since + policy.deepen_after,
        "it was suspended for long enough to be stopped",
        PauseDepth.STOPPED,
    )
    steps = [expire if stopped else stop]
    if saves(session, record.container, policy):
        because = "it was paused for long enough to be saved, and its container destroyed"
        when = since + policy.checkpoint_after
        steps.append(Step(Action.DEEPEN, when, because, PauseDepth.CHECKPOINT))
    return min(steps, key=lambda step: step.time or end)


def _kinds(session: Session) -> list[ConditionType]:
    return [condition.type for condition in load_conditions(session.conditions)]


@dataclass(frozen=True, slots=True)
class Ended:
    """What the next step of an ended session depends on."""

    change_time: datetime
    end_time: datetime | None
    purge_time: datetime | None
    end_reason: EndReason | None
    saved: bool
    """Whether it is paused on a checkpoint."""
    present: bool
    """Whether its container is wanted, and not known to be destroyed."""

    @classmethod
    def of(
        cls,
        change_time: datetime,
        end_time: datetime | None,
        purge_time: datetime | None,
        end_reason: EndReason | None,
        checkpoint_id: UUID | None,
        pause_depth: PauseDepth | None,
        wanted: bool | None,
        destroy_time: datetime | None,
    ) -> Ended:
        """From columns of the session and of its container; `wanted` is None without a container.
        The one place that says what they mean, for a record and for a batch.
        """
        saved = checkpoint_id is not None and pause_depth is PauseDepth.CHECKPOINT
        present = bool(wanted) and destroy_time is None
        return cls(change_time, end_time, purge_time, end_reason, saved, present)

    @property
    def purged(self) -> bool:
        """See `purged`."""
        if self.saved:
            # It can be undeleted from its checkpoint; a purge clears `checkpoint_id`.
            return False
        return not self.present or self.end_reason is EndReason.CREATE_FAILED


def ended_step(ended: Ended, timings: Timings) -> Step:
    """The next step of a session that has ended: purge it, then forget it."""
    if not ended.purged:
        when = ended.purge_time or ended.end_time or ended.change_time
        return Step(Action.PURGE, when, "its grace period is over")
    since = ended.end_time or ended.change_time
    return Step(Action.FORGET, since + timings.retention, "its rows were kept for long enough")


def _ended(record: Record) -> Ended:
    session, container = record.session, record.container
    return Ended.of(
        session.change_time,
        session.end_time,
        session.purge_time,
        session.end_reason,
        session.checkpoint_id,
        session.pause_depth,
        None if container is None else container.wanted,
        None if container is None else container.destroy_time,
    )


def purged(record: Record) -> bool:
    """Whether an ended session cannot be brought back: its container is gone, or committed to go,
    and it is not paused on a checkpoint.
    """
    return _ended(record).purged


@dataclass(frozen=True, slots=True)
class Explanation:
    """What keeps a session awake."""

    holds: tuple[Hold, ...]
    idle_time: datetime | None
    """When it goes idle without further activity; None if it is not ACTIVE."""
    step: Step
    reasons: tuple[str, ...]


def explain(record: Record, timings: Timings) -> Explanation:
    """What keeps the session awake, and what comes next."""
    session = record.session
    step = shown_step(record, timings)
    if session.state is not State.ACTIVE:
        why = f"The session is {session.state}: only an ACTIVE one goes idle."
        return Explanation((), None, step, (why, *_next(step)))
    found = holds.in_force(session.holds, record.now)
    idle = idle_time(session)
    return Explanation(found, idle, step, (*_awake(record, found), *_next(step), *_saved(record)))


def _awake(record: Record, found: tuple[Hold, ...]) -> tuple[str, ...]:
    session = record.session
    timeout = policies.load(session.policy).idle_timeout
    quiet = record.now - session.last_active_time
    said = f", {session.activity!r}" if session.activity else ""
    reasons = [
        f"Last active {_seconds(quiet)} ago{said}; it may be idle for {_seconds(timeout)}.",
        *(f"Hold {hold.name!r} for another {_seconds(hold.expire_time - record.now)}."
          for hold in found),
    ]  # fmt: skip
    return tuple(reasons)


def _next(step: Step) -> tuple[str, ...]:
    if step.time is None:
        return ()
    return (f"Next: {step.action}, since {step.because}.",)


def _saved(record: Record) -> tuple[str, ...]:
    """A sentence about scheduled checkpoints, which do not delay the next step."""
    due = checkpoint_due_time(record)
    if due is None:
        return ()
    every = policies.load(record.session.policy).checkpoint_every
    left = _seconds(due - record.now)
    return (f"Its state is saved every {_seconds(every)}, next in {left}; saving is not activity.",)


def _seconds(span: timedelta) -> str:
    return f"{max(0.0, span.total_seconds()):.0f} s"
