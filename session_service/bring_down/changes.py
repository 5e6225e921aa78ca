"""The changes that a bring-down writes: its outcomes, from the observed state, and its notes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING

from session_service.bring_down import checkpoint_first
from session_service.bring_down.checkpoint_first import Saved
from session_service.domain.next_action import deepens
from session_service.domain.session import (
    Condition,
    ConditionType,
    ContainerState,
    EndReason,
    PauseDepth,
    Session,
    load_conditions,
)
from session_service.domain.states import State, Transition
from session_service.errors import ProviderUnavailable, RoostError
from session_service.ports import ContainerAbsent
from session_service.storage.session.change import NOW, Change, finished
from session_service.transition import changes as transition_changes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from session_service.domain.session import Container
    from session_service.transition.ownership import Owned

#: The transitions that end the session.
OVER = frozenset({Transition.END, Transition.PURGE})
#: The pause between two tries to save a paused session: it begins with the first value, doubles
#: with each try, and ends at the second. Each try wakes a container whose state is not saved yet.
FIRST_SAVE_PAUSE = timedelta(minutes=1)
LAST_SAVE_PAUSE = timedelta(hours=6)
DEPTHS = {
    ContainerState.SUSPENDED: PauseDepth.SUSPENDED,
    ContainerState.STOPPED: PauseDepth.STOPPED,
}
STATES = {
    PauseDepth.SUSPENDED: ContainerState.SUSPENDED,
    PauseDepth.STOPPED: ContainerState.STOPPED,
    PauseDepth.CHECKPOINT: ContainerState.DESTROYED,
}


@dataclass(frozen=True, slots=True)
class Observed:
    """The observed state of a container that was to be brought down."""

    depth: PauseDepth | None
    """How deep it is paused; None if it still runs."""
    cordoned: bool = False


@dataclass(frozen=True, slots=True)
class BringDown:
    """One pause, end or purge in progress."""

    owned: Owned
    session: Session
    container: Container
    now: datetime
    saved: Saved = field(default_factory=Saved)
    """The result of saving its state, if that was to be saved."""

    @property
    def target(self) -> PauseDepth:
        """How deep to pause, as the row says."""
        return self.session.pause_depth or PauseDepth.SUSPENDED

    @property
    def save_error(self) -> RoostError | None:
        """The error with which the saving of its state failed, if it did."""
        return self.saved.error


def keeping_container(down: BringDown) -> BringDown:
    """The same bring-down with a target that keeps the container, since its state is saved nowhere
    else. A container that was paused before is to be paused as deep as before.
    """
    depth = down.target
    if down.session.prior_state is State.PAUSED:
        depth = DEPTHS.get(down.container.state, PauseDepth.SUSPENDED)
    elif depth is PauseDepth.CHECKPOINT:
        depth = PauseDepth.SUSPENDED
    return replace(down, session=replace(down.session, pause_depth=depth))


def at_prior_depth(down: BringDown) -> Session:
    """The session, with `pause_depth` set back to the depth before this transition. That depth is
    derived from the container's recorded state, because the session's row has the depth that was to
    be reached.
    """
    if down.session.prior_state is not State.PAUSED:
        return down.session
    return replace(down.session, pause_depth=DEPTHS.get(down.container.state))


def depth_of(state: ContainerState) -> PauseDepth | None:
    """How deep a container in this state is paused; None if it runs.

    Raises ContainerAbsent if it is destroyed, and ProviderUnavailable for any other state.
    """
    match state:
        case ContainerState.SUSPENDED:
            return PauseDepth.SUSPENDED
        case ContainerState.STOPPED | ContainerState.FAILED | ContainerState.CREATED:
            return PauseDepth.STOPPED
        case ContainerState.STARTED:
            return None
        case ContainerState.DESTROYED:
            raise ContainerAbsent("the container is destroyed")
        case _:
            raise ProviderUnavailable(f"the container is {state}; try again")


def allow_destroy(down: BringDown) -> Change:
    """The note that any replica may destroy the container from now on, because its state is saved
    or it has none. If the memory was lost before the save, the note records that too.
    """
    columns: dict[str, object] = {}
    if down.saved.memory_lost:
        columns["conditions"] = transition_changes.marked((), down.now, memory_lost(down.now))
    session = down.session
    return Change(
        session.session_id, session.epoch, columns, container={"wanted": False}, advance=False
    )


def memory_lost(now: datetime) -> Condition:
    """The condition of a container that was woken to be saved, and had lost its memory before."""
    message = (
        "The container had lost its memory before its state was saved; the saved state may lack "
        "what was only in memory."
    )
    return Condition(ConditionType.MEMORY_LOST, message, now)


def paused(down: BringDown, depth: PauseDepth) -> Change:
    """The outcome: the session is paused at this depth."""
    session = down.session
    lost = depth is PauseDepth.STOPPED and down.target is PauseDepth.SUSPENDED
    found = (ConditionType.MEMORY_LOST,) if lost or down.saved.memory_lost else ()
    columns = transition_changes.paused(session, depth)
    if down.save_error is not None and deepens(session):
        # The save failed and the container stays paused: `pause_time` is not changed.
        columns["pause_time"] = session.pause_time or NOW
        columns |= transition_changes.tried_again(session, LAST_SAVE_PAUSE, FIRST_SAVE_PAUSE)
    return Change(
        session.session_id,
        session.epoch,
        session={
            **columns,
            "conditions": transition_changes.marked(found, down.now, *_unsaved(down)),
            "verified_at": NOW,
        },
        container={"state": STATES[depth]},
        decision=finished(),
        decision_id=session.decision_id,
    )


def gone(session: Session, now: datetime, *, destroyed: bool, saved: bool) -> Change:
    """The outcome: there is no container, and the session is paused without one, or ended. `saved`
    says whether its state is saved; if not, it is lost. `destroyed` says whether the container's
    row is to be marked as destroyed.
    """
    if session.transition in OVER:
        columns = transition_changes.ended(session, EndReason.REQUESTED, PauseDepth.CHECKPOINT)
    else:
        columns = transition_changes.paused(session, PauseDepth.CHECKPOINT)
        columns["conditions"] = (
            transition_changes.marked((), now, *_unreported(session))
            if saved
            else transition_changes.marked((ConditionType.CONTAINER_LOST,), now)
        )
    return Change(
        session.session_id,
        session.epoch,
        session=columns,
        container=transition_changes.GONE if destroyed else {},
        decision=finished(),
        decision_id=session.decision_id,
    )


def stays_awake(down: BringDown, because: str) -> Change:
    """The outcome if the session was used while its pause was being deepened: the session
    stays PAUSED at its former depth, or becomes ACTIVE if its container was woken.
    """
    session = down.session
    if not down.saved.woken:
        return transition_changes.gone_back(at_prior_depth(down), None)
    return transition_changes.woken(session, because)


def left_running(down: BringDown, error: RoostError) -> Change:
    """The outcome if the provider refused to pause a container that was woken to be saved: the
    session is ACTIVE. No row may say that a container is paused while it runs.
    """
    session = down.session
    because = "its container was woken to be saved and could not be paused again"
    return replace(
        transition_changes.woken(session, because),
        decision=transition_changes.refused(error),
        decision_id=session.decision_id,
    )


def still_running(down: BringDown, error: RoostError) -> Change:
    """The outcome of a failed pause: the container still runs, in routing."""
    session = down.session
    still = (ConditionType.SUSPEND_FAILED_STILL_RUNNING,)
    found = transition_changes.marked(still, down.now, *_unsaved(down))
    return Change(
        session.session_id,
        session.epoch,
        # `verified_at` is cleared, so that the next start reads the provider: the container may
        # have restarted meanwhile.
        session={**transition_changes.active(session), "conditions": found, "verified_at": None},
        container={
            "state": ContainerState.STARTED,
            "cordoned": False,
            **transition_changes.RUNS_ON,
        },
        decision=transition_changes.refused(error),
        decision_id=session.decision_id,
    )


def ended(down: BringDown, observed: Observed) -> Change:
    """The outcome: the session has ended. Its container is out of routing; it is either paused
    or still running.
    """
    session = down.session
    columns = transition_changes.ended(session, EndReason.REQUESTED, observed.depth)
    columns["verified_at"] = NOW
    if observed.depth is None:
        columns["conditions"] = transition_changes.marked(
            (ConditionType.SUSPEND_FAILED_STILL_RUNNING,), down.now
        )
    container: Mapping[str, object] = {
        "cordoned": observed.cordoned,
        "state": ContainerState.STARTED if observed.depth is None else STATES[observed.depth],
    }
    return Change(
        session.session_id,
        session.epoch,
        session=columns,
        container=container,
        decision=finished(),
        decision_id=session.decision_id,
    )


def _unreported(session: Session) -> list[Condition]:
    """The loss of memory that no start has reported yet."""
    if session.prior_state is not State.PAUSED:
        return []
    found = load_conditions(session.conditions)
    return [each for each in found if each.type is ConditionType.MEMORY_LOST]


def _unsaved(down: BringDown) -> list[Condition]:
    """The condition CHECKPOINT_FAILED, if the state could not be saved."""
    return [] if down.save_error is None else [checkpoint_first.failure(down.save_error, down.now)]
