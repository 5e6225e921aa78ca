"""What the keeper writes: the changes of rows behind each of its steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import uuid_utils.compat as uuids

from session_service.domain import keeping, schedule
from session_service.domain import policy as policies
from session_service.domain.decision import Request
from session_service.domain.keeping import Action
from session_service.domain.policy import Stop
from session_service.domain.session import Cause, EndReason, PauseDepth
from session_service.domain.states import State, Transition, check_move
from session_service.domain.wish import Wish
from session_service.lifecycle import intents
from session_service.storage.assignments import NOW, Now
from session_service.storage.decisions import NewDecision
from session_service.storage.transitions import Change

if TYPE_CHECKING:
    from session_service.domain.keeping import Habits, Step
    from session_service.domain.policy import Policy
    from session_service.domain.session import Record, Session
    from session_service.storage.leases import Terms

#: The method that decisions of the keeper name.
METHOD = "Keeper"


def warning(record: Record, habits: Habits) -> Change:
    """The event that tells of the pause that is coming. No change of the session: no new etag."""
    session = record.session
    lead = keeping.idle_time(session) - keeping.warn_due_time(session, habits)
    when = max(keeping.idle_time(session), record.now + lead)
    return Change(
        session.session_id,
        session.epoch,
        {"warn_time": NOW, "due_at": Now(schedule.look_within(record, lead))},
        advance=False,
        event="IDLE_WARNING",
        details={"pause_time": when.isoformat()},
    )


def awake(record: Record) -> Change:
    """The activity source says that somebody is there."""
    session = record.session
    idle = policies.load(session.policy).idle_timeout
    return Change(
        session.session_id,
        session.epoch,
        {"last_active_time": NOW, "due_at": Now(schedule.look_within(record, idle / 2))},
        advance=False,
    )


def recovery(record: Record, step: Step, terms: Terms) -> tuple[Change, NewDecision]:
    """A start that nobody asked for: the lost container is replaced at once, as the policy says."""
    session = record.session
    request = Request(session.tenant, METHOD, b"")
    decision = NewDecision(
        uuids.uuid7(), request, Cause.LOST, step.because, session_id=session.session_id
    )
    change = intents.climbing(session, Wish(), None, decision.decision_id, terms)
    columns = {**change.session, "cause": Cause.LOST}
    told = Change(session.session_id, session.epoch, columns, details=_told(Cause.LOST, step))
    return told, decision


def intent(record: Record, step: Step, terms: Terms) -> Change:
    """The intent of a step that puts a container to rest, or takes it away."""
    session = record.session
    state, transition, cause, more = _aim(session, step)
    check_move(session.state, state)
    prior = session.prior_state if record.abandoned else session.state
    idle = policies.load(session.policy).idle_timeout if step.action is Action.PAUSE else None
    return Change(
        session.session_id,
        session.epoch,
        session={
            **terms.values(),
            "state": state,
            "transition": transition,
            "prior_state": prior,
            "decision_id": None,
            "wish": None,
            "cause": cause,
            **more,
        },
        details=_told(cause, step),
        idle_for=idle,
    )


def _told(cause: Cause, step: Step) -> dict[str, str]:
    return {"cause": cause, "because": step.because}


def _aim(session: Session, step: Step) -> tuple[State, Transition, Cause, dict[str, object]]:
    """Where a step leads: state, transition, cause, and further columns."""
    match step.action:
        case Action.PAUSE if ends_when_idle(policies.load(session.policy)):
            more: dict[str, object] = {"end_reason": EndReason.EPHEMERAL}
            return State.ENDING, Transition.END, Cause.IDLE, more
        case Action.PAUSE:
            more = {"pause_depth": _depth(session, PauseDepth.SUSPENDED)}
            return State.PAUSING, Transition.PAUSE, Cause.IDLE, more
        case Action.DEEPEN:
            more = {"pause_depth": _depth(session, step.depth or PauseDepth.STOPPED)}
            return State.PAUSING, Transition.PAUSE, Cause.DEEPEN, more
        case Action.EXPIRE:
            more = {"end_reason": EndReason.EXPIRED}
            return State.ENDING, Transition.END, Cause.EXPIRE, more
        case Action.PURGE:
            return State.ENDING, Transition.PURGE, Cause.GRACE_OVER, {}
        case Action.DISCARD:
            more = {"end_reason": EndReason.CREATE_FAILED}
            return State.ENDING, Transition.PURGE, Cause.ABANDONED, more
        case _:
            raise AssertionError(f"not a step of this kind: {step.action}")


def _depth(session: Session, otherwise: PauseDepth) -> PauseDepth:
    """How deep it goes to rest: without a container, where its policy is to save its state."""
    saves = policies.what_stop_means(policies.load(session.policy)) is Stop.CHECKPOINT
    return PauseDepth.CHECKPOINT if saves else otherwise


def ends_when_idle(policy: Policy) -> bool:
    """Whether nothing is kept of a session that goes idle."""
    return policies.what_stop_means(policy) is Stop.END
