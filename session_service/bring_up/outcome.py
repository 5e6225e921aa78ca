"""The outcomes of bring-ups: the commit of a success and of each kind of failure.

Pure functions of the bring-up (with the session that it replaces) and of its result or error. Each
returns one `Commit`, with all that changes together with the session: the follow-on transition that
begins, and the container that no session uses any more.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from session_service.bring_up.attempt import InDoubt
from session_service.domain import next_action
from session_service.domain.decision import dump_attempts
from session_service.domain.session import (
    Cause,
    ConditionType,
    ContainerState,
    EndReason,
    PauseDepth,
)
from session_service.domain.states import State
from session_service.errors import ContinuityUnavailable, Retryable, RoostError
from session_service.observe.probe import unreported_loss
from session_service.storage.session.change import NOW, Change, Plus, finished
from session_service.storage.session.commit import Commit
from session_service.transition import changes as transition_changes

if TYPE_CHECKING:
    from session_service.bring_up.attempt import BringUp, LessSurvived, Result
    from session_service.storage.session.change import Terms

_log = logging.getLogger(__name__)


def succeeded(bring_up: BringUp, result: Result, terms: Terms) -> Commit:
    """The session is ACTIVE. The end of a session that it replaced begins by the same commit."""
    session = bring_up.session
    unheard = session.cause is Cause.LOST
    change = Change(
        session.session_id,
        session.epoch,
        session={
            **transition_changes.active(session),
            "start_time": NOW,
            "last_active_time": NOW,
            # Without a boot id it is not proved which boot runs: the next start reads the provider.
            "verified_at": None if result.boot_id is None else NOW,
            "start_count": Plus(),
            # A start that the service began has no caller: the next start reports the loss.
            "loss_untold": unheard,
            "untold_continuity": int(result.continuity) if unheard else None,
            "conditions": transition_changes.marked(bring_up.conditions, bring_up.now),
            **_descends(result),
        },
        container=_running(result.boot_id),
        decision=finished(
            outcome=result.outcome,
            continuity=int(result.continuity),
            continuity_verified=result.verified,
            attempts=dump_attempts(bring_up.attempts),
        ),
        decision_id=session.decision_id,
    )
    replaced = bring_up.replaced
    if replaced is None:
        return Commit((change,))
    end = transition_changes.turned_to_end(replaced, terms.values())
    return Commit((change, end), begins=replaced.session_id)


def less_survived(bring_up: BringUp, less: LessSurvived) -> Commit:
    """The container runs, with less than the start requires. The start is refused, the container
    runs on, and the next start reports the loss.
    """
    session = bring_up.session
    error = ContinuityUnavailable(
        "the container runs, but less survived than min_continuity requires. "
        f"Start with min_continuity {less.continuity.name} or less to go on with it"
    )
    change = Change(
        session.session_id,
        session.epoch,
        session={
            **transition_changes.active(session),
            "start_time": NOW,
            "verified_at": None if less.booted.boot_id is None else NOW,
            **unreported_loss(session),
            "conditions": transition_changes.marked((ConditionType.MEMORY_LOST,), bring_up.now),
        },
        container=_running(less.booted.boot_id),
        decision=transition_changes.refused(error),
        decision_id=session.decision_id,
    )
    return Commit((_tried(bring_up, change),))


def failed(bring_up: BringUp, error: RoostError, terms: Terms) -> Commit:
    """The start is refused, and the session returns to its former state, as far as possible.

    If the session's container came up nevertheless, it is paused again, by a transition that begins
    with this commit. So no row says that this container is paused while it runs.
    """
    session = bring_up.session
    _log.warning(
        "a start failed: %s",
        error,
        extra={
            "action": "bring_up",
            "session_id": str(session.session_id),
            "details": error.metadata,
        },
    )
    if bring_up.replaced is not None:
        return _never_stood(bring_up, error, transition_changes.gone_back(bring_up.replaced, None))
    if isinstance(error, InDoubt):
        return Commit((_tried(bring_up, transition_changes.left_open(session, error.cause)),))
    if session.prior_state is State.ACTIVE and (bring_up.rolls_back or bring_up.must_save_first):
        # It ran before, and its state is unchanged. `verified_at` is cleared, so that the next
        # start reads the provider.
        back = transition_changes.gone_back(session, error, verified_at=None)
        return Commit((_tried(bring_up, back),))
    if session.prior_state is not None and bring_up.running and bring_up.keeps_user_state:
        pause = transition_changes.turned_to_pause(session, error, terms.values())
        return Commit((_tried(bring_up, pause),), begins=session.session_id)
    if session.prior_state is not None:
        return Commit((_tried(bring_up, _paused_again(bring_up, error)),))
    if isinstance(error, Retryable):
        # The provider may have created it: the row must stay, with the container's name.
        return Commit((_tried(bring_up, transition_changes.left_open(session, error)),))
    return _never_stood(bring_up, error)


def _never_stood(bring_up: BringUp, error: RoostError, *others: Change) -> Commit:
    """A session that was never ACTIVE ends. Its container, if there may be one, is destroyed."""
    session, container = bring_up.session, bring_up.container
    never_made = container.container_id is None and not isinstance(error, Retryable)
    change = Change(
        session.session_id,
        session.epoch,
        session=transition_changes.ended(session, EndReason.CREATE_FAILED, None),
        container=transition_changes.GONE if never_made else {"wanted": False},
        decision=transition_changes.refused(error),
        decision_id=session.decision_id,
    )
    # The new session first: its predecessor can only be live again after the key is free.
    writes = (_tried(bring_up, change), *others)
    return Commit(writes, discards=None if never_made else container)


def _tried(bring_up: BringUp, change: Change) -> Change:
    """The same change, with the attempts in its decision."""
    tried = {"attempts": dump_attempts(bring_up.attempts)}
    return replace(change, decision={**change.decision, **tried})


def _paused_again(bring_up: BringUp, error: RoostError) -> Change:
    """The change that makes the session PAUSED again: at the depth in its row (SUSPENDED if the row
    has none), or at depth CHECKPOINT if no container with its state is left.
    """
    session, container = bring_up.session, bring_up.container
    lost = bool(bring_up.lost_generations) or ConditionType.CONTAINER_LOST in bring_up.conditions
    # If its state is saved, any replica may destroy it. A container that never came up, for example
    # of a rollback that destroyed the one before it, has no state.
    lost = lost or not container.wanted or not bring_up.was_active
    depth = PauseDepth.CHECKPOINT if lost else session.pause_depth or PauseDepth.SUSPENDED
    columns = transition_changes.paused(session, depth)
    columns["pause_time"] = session.pause_time or NOW
    columns["verified_at"] = None
    if next_action.recovers(session) and (lost or next_action.lost(session, container)):
        passing = isinstance(error, Retryable)
        longest = (
            transition_changes.LAST_RETRY if passing else transition_changes.LAST_RETRY_REFUSED
        )
        columns |= transition_changes.tried_again(session, longest)
    if lost:
        columns["conditions"] = transition_changes.marked(bring_up.conditions, bring_up.now)
    # Only a generation that was proved lost; a container created after it may run.
    gone = container.generation in bring_up.lost_generations
    # It is not known whether the container came up.
    unknown: dict[str, object] = {"state": ContainerState.UNKNOWN}
    return Change(
        session.session_id,
        session.epoch,
        session=columns,
        container=transition_changes.GONE if gone else unknown,
        decision=transition_changes.refused(error),
        decision_id=session.decision_id,
    )


def _descends(result: Result) -> dict[str, object]:
    """The column of the checkpoint that was restored, from which the state descends now."""
    return {} if result.checkpoint_id is None else {"checkpoint_id": result.checkpoint_id}


def _running(boot_id: str | None) -> dict[str, object]:
    """A container's columns after a boot; the next provider read records its start event."""
    return {
        "state": ContainerState.STARTED,
        "boot_id": boot_id,
        "boot_time": None,
        "start_time": NOW,
        "cordoned": False,
    }
