"""The changes of rows with which transitions begin and end: the columns that each of them sets."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from session_service.domain import decision, next_action
from session_service.domain import policy as policies
from session_service.domain import wish as wishes
from session_service.domain.evidence import Presence
from session_service.domain.session import (
    Cause,
    ConditionType,
    ContainerState,
    EndReason,
    PauseDepth,
    condition,
    dump_conditions,
)
from session_service.domain.states import State, Transition, check_move
from session_service.errors import Retryable, RoostError
from session_service.storage.session import reads
from session_service.storage.session.change import NOW, SETTLED, Change, Now, Plus, finished

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from uuid import UUID

    from session_service.domain.evidence import Boot, Evidence
    from session_service.domain.session import Condition, Record, Session
    from session_service.domain.wish import Wish
    from session_service.storage.database import Database
    from session_service.storage.session.change import Terms


#: The pause between two tries of the due pass to finish a transition: the first one, which doubles
#: with each try.
FIRST_RETRY = timedelta(seconds=1)
#: The longest such pause. It is short, since machines that still run after an outage cost money.
LAST_RETRY = timedelta(seconds=30)
#: The longest pause after a final error of a start that no call asked for: unlike an outage, the
#: reason does not end by itself.
LAST_RETRY_REFUSED = timedelta(hours=1)
#: The columns of a container that is known to be destroyed.
GONE: Mapping[str, object] = {"destroy_time": NOW, "state": ContainerState.DESTROYED}
#: The columns of a container that still runs after its state was saved: it may have newer state.
RUNS_ON: Mapping[str, object] = {"saved_checkpoint_id": None, "saved_start_time": None}


def marked(kinds: tuple[ConditionType, ...], now: datetime, *more: Condition) -> str:
    """The column `conditions`: these kinds as of `now`, and the conditions `more`, no others."""
    return dump_conditions([*(condition(kind, now) for kind in kinds), *more])


def dump_error(error: RoostError) -> str:
    """The error as the decision's row stores it."""
    return decision.dump_error(error.reason, error.message, error.metadata, error.retry_after)


def refused(error: RoostError) -> dict[str, object]:
    """The columns of a decision that is finished as a refusal. A retryable one frees the request
    id.
    """
    values = finished(error=dump_error(error))
    if isinstance(error, Retryable):
        values["request_id"] = None
    return values


def active(session: Session) -> dict[str, object]:
    """The columns of a session that becomes ACTIVE."""
    check_move(session.state, State.ACTIVE)
    return {
        **SETTLED,
        "state": State.ACTIVE,
        "pause_depth": None,
        "pause_time": None,
        # Not later than the idle warning; the due pass then computes the next time.
        "due_at": Now(
            next_action.span_before_first_checkpoint(
                session, policies.load(session.policy).idle_timeout / 2
            )
        ),
    }


def paused(session: Session, depth: PauseDepth | None) -> dict[str, object]:
    """The columns of a session that becomes PAUSED; `depth` is None if it is not known."""
    check_move(session.state, State.PAUSED)
    return {
        **SETTLED,
        "state": State.PAUSED,
        "pause_depth": depth,
        "pause_time": NOW,
        "due_at": Now(paused_span(session, depth)),
    }


def paused_span(session: Session, depth: PauseDepth | None) -> timedelta:
    """How long after the pause the due pass checks the session again, if it is paused this deep."""
    policy = policies.load(session.policy)
    if depth is PauseDepth.CHECKPOINT:
        return policy.expire_after
    span = policy.expire_after if depth is PauseDepth.STOPPED else policy.deepen_after
    return min(span, policy.checkpoint_after) if policy.checkpoint_after else span


def ended(session: Session, reason: EndReason, depth: PauseDepth | None) -> dict[str, object]:
    """The columns of a session that becomes ENDED; `depth` is how deep its container is paused."""
    check_move(session.state, State.ENDED)
    purged = session.transition is Transition.PURGE or reason is EndReason.CREATE_FAILED
    # If traffic wakes the container of an ended session, the session ends again. Its grace period
    # counts from the first end.
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
        # A purged session cannot be undeleted, so it needs no checkpoint.
        **({"checkpoint_id": None} if purged else {}),
    }


def woken(session: Session, because: str) -> Change:
    """The session becomes ACTIVE, since traffic woke its container, which runs and is in routing.
    The next start proves how much survived.
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
    """A start that failed after its container came up: its decision is finished with the error, and
    a pause begins in the same commit. So no row says that a container is paused while it runs.
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
    """The columns that make the due pass try again, after a time that doubles with each failure."""
    pause = min(first * 2 ** min(session.failure_count, 20), longest)
    return {"due_at": Now(pause), "failure_count": Plus()}


def left_open(session: Session, error: RoostError) -> Change:
    """The transition stays open, without an owner. The next call takes it over, or the due pass
    after a time that grows. The decision of this transition is finished with the error.
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
    """The session returns to its state before the transition; `more` are further columns."""
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
    """The replaced session's end begins, in the commit that makes its successor ACTIVE."""
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


def starting(
    session: Session,
    wish: Wish,
    evidence: Evidence | None,
    decision_id: UUID,
    terms: Terms,
    policy: str | None = None,
) -> Change:
    """A bring-up of an existing session begins; the evidence of its container is written with it.
    `policy` is the new value of that column; None leaves it unchanged.
    """
    check_move(session.state, State.STARTING)
    return Change(
        session.session_id,
        session.epoch,
        session={
            **terms.values(),
            "state": State.STARTING,
            "transition": Transition.START,
            "prior_state": session.state,
            "decision_id": decision_id,
            "wish": wishes.dump(wish),
            **_observed_depth(evidence),
            **({} if policy is None else {"policy": policy}),
        },
        container=_observed_loss(evidence),
    )


def first_proof(record: Record, epoch: int, boot: Boot) -> Change:
    """Store the boot of a container whose boot was unknown; later starts compare with it. `record`
    is the database read that came before the provider read; `epoch` is the session's epoch now.
    """
    session = record.session
    return Change(
        session.session_id,
        epoch,
        # The provider was read after this time, so the evidence is at least as new.
        session={"verified_at": record.now},
        container={
            "boot_id": boot.boot_id,
            "boot_time": boot.boot_time,
            "state": ContainerState.STARTED,
        },
        advance=False,
    )


def _observed_depth(evidence: Evidence | None) -> dict[str, object]:
    """The depth of a container that was found paused, though this service did not pause it."""
    if evidence is None or evidence.presence is not Presence.PRESENT:
        return {}
    suspended = evidence.state is ContainerState.SUSPENDED
    return {"pause_depth": PauseDepth.SUSPENDED if suspended else PauseDepth.STOPPED}


def _observed_loss(evidence: Evidence | None) -> dict[str, object]:
    """The columns of a container that is proved lost."""
    if evidence is None or evidence.presence is not Presence.ABSENT:
        return {}
    return {"destroy_time": NOW, "state": ContainerState.DESTROYED}


def new_container(session_id: UUID, generation: int, app: str) -> dict[str, object]:
    """The row of a container that is to be created; its name makes the create idempotent."""
    return {
        "session_id": session_id,
        "generation": generation,
        "name": f"roost-{session_id}-{generation}",
        "app": app,
        "state": ContainerState.UNSPECIFIED,
    }


async def replaced_by(database: Database, session: Session) -> Session | None:
    """The session that waits in REPLACE for this one's start to be decided, if there is one."""
    if session.predecessor_id is None:
        return None
    record = await reads.find(database, session.predecessor_id)
    if record is None or record.session.transition is not Transition.REPLACE:
        return None
    return record.session if record.session.successor_id == session.session_id else None


async def given_back(database: Database, session: Session) -> list[Change]:
    """The changes that return the session which this one was to replace to its former state. A
    commit that gives up the start of this session must include them. Empty if this session replaces
    none, or if the replacement is decided already.
    """
    replaced = await replaced_by(database, session)
    return [] if replaced is None else [gone_back(replaced, None)]
