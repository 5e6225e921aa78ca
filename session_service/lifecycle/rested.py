"""What is written of containers that were put to rest, or were to be, of what was observed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING

from session_service.domain import conditions
from session_service.domain.deepening import deepens
from session_service.domain.session import (
    Condition,
    ConditionType,
    ContainerState,
    EndReason,
    PauseDepth,
    Session,
)
from session_service.domain.states import State, Transition
from session_service.errors import ProviderUnavailable, RoostError
from session_service.lifecycle import outcomes, saving
from session_service.lifecycle.saving import Saved
from session_service.ports import ContainerAbsent
from session_service.storage.assignments import NOW
from session_service.storage.transitions import Change, finished

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from session_service.domain.session import Container
    from session_service.lifecycle.ownership import Held

#: Transitions after which the session is over.
OVER = frozenset({Transition.END, Transition.PURGE})
#: Between two tries to save what rests: doubled each time, up to the last. Each wakes a container.
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
class Rest:
    """What was observed of a container that was to be put to rest."""

    depth: PauseDepth | None
    """How deep it rests; None where it runs on."""
    cordoned: bool = False


@dataclass(frozen=True, slots=True)
class Task:
    """One transition being worked on."""

    held: Held
    session: Session
    container: Container
    now: datetime
    saved: Saved = field(default_factory=Saved)
    """What came of saving its state, where it was to be saved."""

    @property
    def target(self) -> PauseDepth:
        """How deep to go, as the intent says."""
        return self.session.pause_depth or PauseDepth.SUSPENDED

    @property
    def unsaved(self) -> RoostError | None:
        """Why its state could not be saved, where it was to be."""
        return self.saved.error


def shallower(task: Task) -> Task:
    """The same with its container kept, since what is in it is nowhere else: what rested is to rest
    as before.
    """
    depth = task.target
    if task.session.prior_state is State.PAUSED:
        depth = DEPTHS.get(task.container.state, PauseDepth.SUSPENDED)
    elif depth is PauseDepth.CHECKPOINT:
        depth = PauseDepth.SUSPENDED
    return replace(task, session=replace(task.session, pause_depth=depth))


def as_before(task: Task) -> Session:
    """The session as deep as its container rested before it was to rest deeper: the row has how
    deep it was to be.
    """
    if task.session.prior_state is not State.PAUSED:
        return task.session
    return replace(task.session, pause_depth=DEPTHS.get(task.container.state))


def depth_of(state: ContainerState) -> PauseDepth | None:
    """How deep a container in this state rests; None where it runs.

    Raises ProviderUnavailable for a state that says neither.
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


def free(task: Task) -> Change:
    """Its state is saved: from here on the container may go, whoever sees to that. What was lost
    before it was saved is noted with it.
    """
    columns: dict[str, object] = {}
    if task.saved.memory_lost:
        columns["conditions"] = outcomes.marked((), task.now, memory_lost(task.now))
    session = task.session
    return Change(
        session.session_id, session.epoch, columns, container={"wanted": False}, advance=False
    )


def memory_lost(now: datetime) -> Condition:
    """What is told of a container that was woken to be saved, and had lost its memory by then."""
    message = (
        "What was in memory was lost before the state was saved; its files were kept till then."
    )
    return Condition(ConditionType.MEMORY_LOST, message, now)


def paused(task: Task, depth: PauseDepth) -> Change:
    """It rests, this deep."""
    session = task.session
    lost = depth is PauseDepth.STOPPED and task.target is PauseDepth.SUSPENDED
    found = (ConditionType.MEMORY_LOST,) if lost or task.saved.memory_lost else ()
    columns = outcomes.paused(session, depth)
    if task.unsaved is not None and deepens(session):
        # It rests as before, since when it did.
        columns["pause_time"] = session.pause_time or NOW
        columns |= outcomes.tried_again(session, LAST_SAVE_PAUSE, FIRST_SAVE_PAUSE)
    return Change(
        session.session_id,
        session.epoch,
        session={
            **columns,
            "conditions": outcomes.marked(found, task.now, *_unsaved(task)),
            "verified_at": NOW,
        },
        container={"state": STATES[depth]},
        decision=finished(),
        decision_id=session.decision_id,
    )


def gone(session: Session, now: datetime, *, destroyed: bool, saved: bool) -> Change:
    """There is no container (any more): at rest without one, or over. What was `saved` is not lost;
    `destroyed` is noted of the container's row.
    """
    if session.transition in OVER:
        columns = outcomes.ended(session, EndReason.REQUESTED, PauseDepth.CHECKPOINT)
    else:
        columns = outcomes.paused(session, PauseDepth.CHECKPOINT)
        columns["conditions"] = (
            outcomes.marked((), now, *_untold(session))
            if saved
            else outcomes.marked((ConditionType.CONTAINER_LOST,), now)
        )
    return Change(
        session.session_id,
        session.epoch,
        session=columns,
        container=outcomes.GONE if destroyed else {},
        decision=finished(),
        decision_id=session.decision_id,
    )


def awake(task: Task, because: str) -> Change:
    """Somebody came while its rest was to be deepened: where its container runs, it stays so."""
    session = task.session
    if not task.saved.woken:
        return outcomes.gone_back(as_before(task), None)
    return outcomes.woken(session, because)


def still_running(task: Task, error: RoostError) -> Change:
    """The pause failed: it runs on, in routing."""
    session = task.session
    still = (ConditionType.SUSPEND_FAILED_STILL_RUNNING,)
    found = outcomes.marked(still, task.now, *_unsaved(task))
    return Change(
        session.session_id,
        session.epoch,
        # Unseen, so that the next start looks: what runs on may have restarted meanwhile.
        session={**outcomes.active(session), "conditions": found, "verified_at": None},
        container={"state": ContainerState.STARTED, "cordoned": False, **outcomes.RUNS_ON},
        decision=outcomes.refused(error),
        decision_id=session.decision_id,
    )


def ended(task: Task, rest: Rest) -> Change:
    """The session is over, and its container rests out of routing, or runs on there."""
    session = task.session
    columns = outcomes.ended(session, EndReason.REQUESTED, rest.depth)
    columns["verified_at"] = NOW
    if rest.depth is None:
        columns["conditions"] = outcomes.marked(
            (ConditionType.SUSPEND_FAILED_STILL_RUNNING,), task.now
        )
    container: Mapping[str, object] = {
        "cordoned": rest.cordoned,
        "state": ContainerState.STARTED if rest.depth is None else STATES[rest.depth],
    }
    return Change(
        session.session_id,
        session.epoch,
        session=columns,
        container=container,
        decision=finished(),
        decision_id=session.decision_id,
    )


def _untold(session: Session) -> list[Condition]:
    """The loss of memory that nobody came to hear of since."""
    if session.prior_state is not State.PAUSED:
        return []
    found = conditions.load(session.conditions)
    return [each for each in found if each.type is ConditionType.MEMORY_LOST]


def _unsaved(task: Task) -> list[Condition]:
    """What is told of state that could not be saved."""
    return [] if task.unsaved is None else [saving.told(task.unsaved, task.now)]
