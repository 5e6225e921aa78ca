"""Writing down what came of a transition: the one place that knows each outcome's columns."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from session_service.domain import conditions, decision, schedule
from session_service.domain import policy as policies
from session_service.domain.session import (
    Cause,
    ConditionType,
    ContainerState,
    EndReason,
    PauseDepth,
)
from session_service.domain.states import State, Transition, check_move
from session_service.errors import Retryable, RoostError
from session_service.storage.assignments import NOW, Now, Plus
from session_service.storage.transitions import SETTLED, Change, finished

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from session_service.domain.session import Condition, Session

#: Between two tries of the keeper to finish a transition: doubled each time, up to the last.
FIRST_RETRY = timedelta(seconds=1)
#: Half a minute after an outage all that it left open is settled: machines that run on cost money.
LAST_RETRY = timedelta(seconds=30)
#: The same for a start that nobody asked for and that was refused: no outage, which ends by itself.
LAST_RETRY_REFUSED = timedelta(hours=1)
#: A container that is known to be gone.
GONE: Mapping[str, object] = {"destroy_time": NOW, "state": ContainerState.DESTROYED}
#: One that runs on after its state was saved: on the same boot it may have more by now.
RUNS_ON: Mapping[str, object] = {"saved_checkpoint_id": None, "saved_start_time": None}


def marked(kinds: tuple[ConditionType, ...], now: datetime, *more: Condition) -> str:
    """The conditions' column holding just these, as of now, and those made by somebody else."""
    return conditions.dump([*(conditions.condition(kind, now) for kind in kinds), *more])


def dump(error: RoostError) -> str:
    """A refusal's form in a decision's row."""
    return decision.dump_error(error.reason, error.message, error.metadata, error.retry_after)


def refused(error: RoostError) -> dict[str, object]:
    """A decision's columns for a refusal. A retryable one frees the request id."""
    values = finished(error=dump(error))
    if isinstance(error, Retryable):
        values["request_id"] = None
    return values


def active(session: Session) -> dict[str, object]:
    """The columns of a session that runs."""
    check_move(session.state, State.ACTIVE)
    return {
        **SETTLED,
        "state": State.ACTIVE,
        "pause_depth": None,
        "pause_time": None,
        # No later than any warning; the keeper then works out when to look next.
        "due_at": Now(schedule.look_after(session, policies.load(session.policy).idle_timeout / 2)),
    }


def paused(session: Session, depth: PauseDepth | None) -> dict[str, object]:
    """The columns of a session at rest; the depth is None where it is not known."""
    check_move(session.state, State.PAUSED)
    return {
        **SETTLED,
        "state": State.PAUSED,
        "pause_depth": depth,
        "pause_time": NOW,
        "due_at": Now(rest_span(session, depth)),
    }


def rest_span(session: Session, depth: PauseDepth | None) -> timedelta:
    """How long it can rest this deep before the keeper has something to do about it; it works out
    whether there is.
    """
    policy = policies.load(session.policy)
    if depth is PauseDepth.CHECKPOINT:
        return policy.expire_after
    span = policy.expire_after if depth is PauseDepth.STOPPED else policy.deepen_after
    return min(span, policy.checkpoint_after) if policy.checkpoint_after else span


def ended(session: Session, reason: EndReason, depth: PauseDepth | None) -> dict[str, object]:
    """The columns of a session that is over, and how deep its container rests."""
    check_move(session.state, State.ENDED)
    purged = session.transition is Transition.PURGE or reason is EndReason.CREATE_FAILED
    # What traffic woke and is put back to rest has its grace period from its first end.
    grace = session.purge_time or Now(policies.load(session.policy).grace_period)
    purge_time = NOW if purged else grace
    return {
        **SETTLED,
        "state": State.ENDED,
        "pause_depth": depth,
        "end_time": session.end_time or NOW,
        "purge_time": purge_time,
        "due_at": purge_time,
        "end_reason": session.end_reason or reason,
        # What is gone for good needs no checkpoint to come back.
        **({"checkpoint_id": None} if purged else {}),
    }


def woken(session: Session, because: str) -> Change:
    """Its container runs, in routing, woken by traffic: somebody is there. What survived is for the
    next start to prove.
    """
    return Change(
        session.session_id,
        session.epoch,
        session={
            **active(session),
            "cause": Cause.WOKEN,
            "last_active_time": NOW,
            "start_time": NOW,
            "verified_at": None,
        },
        container={"state": ContainerState.STARTED, "cordoned": False},
        details={"cause": Cause.WOKEN, "because": because},
    )


def turned_to_pause(session: Session, error: RoostError, terms: Mapping[str, object]) -> Change:
    """A start that failed after its container came up: its call is told, and a pause of its own
    begins in the same commit, so that nothing is said to rest that runs.
    """
    check_move(session.state, State.PAUSING)
    return Change(
        session.session_id,
        session.epoch,
        session={
            **terms,
            "state": State.PAUSING,
            "transition": Transition.PAUSE,
            "prior_state": State.ACTIVE,
            "pause_depth": PauseDepth.SUSPENDED,
            "decision_id": None,
            "wish": None,
        },
        container={"state": ContainerState.STARTED},
        decision=refused(error),
        decision_id=session.decision_id,
    )


def tried_again(
    session: Session, longest: timedelta = LAST_RETRY, first: timedelta = FIRST_RETRY
) -> dict[str, object]:
    """The columns by which the keeper tries again, after a pause that grows with each failure."""
    pause = min(first * 2 ** min(session.failure_count, 20), longest)
    return {"due_at": Now(pause), "failure_count": Plus()}


def left_open(session: Session, error: RoostError) -> Change:
    """The transition stays: nobody owns it, the next call takes it over, or the keeper, after a
    pause that grows. Its own call is told.
    """
    return Change(
        session.session_id,
        session.epoch,
        session={
            "lease_until": NOW,
            "decision_id": None,
            **tried_again(session),
        },
        decision=refused(error),
        decision_id=session.decision_id,
    )


def gone_back(session: Session, error: RoostError | None, **more: object) -> Change:
    """The session is what it was before the transition."""
    ran = session.prior_state is State.ACTIVE
    if ran:
        columns = active(session)
    else:
        columns = paused(session, session.pause_depth)
        columns["pause_time"] = session.pause_time or NOW
    return Change(
        session.session_id,
        session.epoch,
        session={**columns, **more},
        container=RUNS_ON if ran else {},
        decision={} if error is None else refused(error),
        decision_id=session.decision_id,
    )


def turned_to_end(replaced: Session, terms: Mapping[str, object]) -> Change:
    """A session whose replacement stands: its own end begins, in the same commit."""
    return Change(
        replaced.session_id,
        replaced.epoch,
        session={
            **terms,
            "transition": Transition.END,
            "successor_id": None,
            "end_reason": EndReason.REPLACED,
        },
    )
