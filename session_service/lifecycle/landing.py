"""Writing down how a climb ended, whichever way, in one commit with all that hangs on it."""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING

from session_service.domain import keeping
from session_service.domain.decision import dump_attempts
from session_service.domain.session import (
    Cause,
    ConditionType,
    Container,
    ContainerState,
    EndReason,
    PauseDepth,
    Session,
)
from session_service.domain.states import State, Transition
from session_service.errors import ContinuityUnavailable, Retryable, RoostError
from session_service.lifecycle import outcomes
from session_service.lifecycle.climb import InDoubt
from session_service.lifecycle.discarding import Discarder
from session_service.lifecycle.evidence import untold_loss
from session_service.lifecycle.ownership import OwnershipLost
from session_service.storage import sessions, transitions
from session_service.storage.assignments import NOW, Plus
from session_service.storage.transitions import Change, finished

if TYPE_CHECKING:
    from collections.abc import Callable

    from session_service.lifecycle.climb import Climb, Landing, LessSurvived
    from session_service.lifecycle.evidence import Looker
    from session_service.lifecycle.ownership import Ownership
    from session_service.ports import Containers
    from session_service.storage.database import Database

_log = logging.getLogger(__name__)


class Lander:
    """Commits the outcomes of climbs."""

    def __init__(
        self, database: Database, containers: Containers, looker: Looker, ownership: Ownership
    ) -> None:
        self._database = database
        self._discarder = Discarder(database, containers, looker)
        self._ownership = ownership
        #: Works on a transition that a start's outcome began: the end of the session that it
        #: replaced, the pause of what came up in vain. Given by whoever wires both together.
        self.on_begun: Callable[[Session, float], object] = lambda session, began: None

    async def land(self, climb: Climb, landing: Landing) -> None:
        """Commit the outcome; a session that was replaced begins to end in the same commit."""
        session = climb.session
        unheard = session.cause is Cause.LOST
        change = Change(
            session.session_id,
            session.epoch,
            session={
                **outcomes.active(session),
                "start_time": NOW,
                "last_active_time": NOW,
                # Without a boot id nothing vouches for what runs: the next start looks.
                "verified_at": None if landing.boot_id is None else NOW,
                "start_count": Plus(),
                # What the keeper began has no caller to hear what was lost: the next start tells.
                "loss_untold": unheard,
                "untold_continuity": int(landing.continuity) if unheard else None,
                "conditions": outcomes.marked(climb.found, climb.now),
                **_descends(landing),
            },
            container=_running(landing.boot_id),
            decision=finished(
                outcome=landing.outcome,
                continuity=int(landing.continuity),
                continuity_verified=landing.verified,
                attempts=dump_attempts(climb.attempts),
            ),
            decision_id=session.decision_id,
        )
        await self._commit_with_replaced(session, change)

    async def _commit_with_replaced(self, session: Session, change: Change) -> None:
        began = monotonic()
        replaced = await self._replaced(session)
        changes = [change]
        if replaced is not None:
            changes.append(outcomes.turned_to_end(replaced, self._ownership.terms.values()))
        written = await transitions.write_all(self._database, changes)
        if written is None:
            raise OwnershipLost
        if replaced is not None:
            self.on_begun(written[1], began)

    async def _replaced(self, session: Session) -> Session | None:
        """The session that waits for this one to stand, if there is one."""
        if session.predecessor_id is None:
            return None
        record = await sessions.find(self._database, session.predecessor_id)
        if record is None or record.session.transition is not Transition.REPLACE:
            return None
        return record.session

    async def refuse_running(self, climb: Climb, less: LessSurvived) -> None:
        """It runs, with its files and without its memory: keep it, refuse, tell it next time."""
        session = climb.session
        error = ContinuityUnavailable(
            "the container came back without its memory; its files are kept. "
            "Start with min_continuity FILESYSTEM or less to go on with it"
        )
        change = Change(
            session.session_id,
            session.epoch,
            session={
                **outcomes.active(session),
                "start_time": NOW,
                "verified_at": None if less.booted.boot_id is None else NOW,
                **untold_loss(session),
                "conditions": outcomes.marked((ConditionType.MEMORY_LOST,), climb.now),
            },
            container=_running(less.booted.boot_id),
            decision={**outcomes.refused(error), "attempts": dump_attempts(climb.attempts)},
            decision_id=session.decision_id,
        )
        if await transitions.write(self._database, change) is None:
            raise OwnershipLost

    async def fail(self, climb: Climb, error: RoostError) -> None:
        """Nothing came up: say so, and leave the session as good as it was."""
        session = climb.session
        _log.warning(
            "a start failed: %s",
            error,
            extra={
                "action": "start",
                "session_id": str(session.session_id),
                "details": error.metadata,
            },
        )
        replaced = await self._replaced(session)
        tried: dict[str, object] = {"attempts": dump_attempts(climb.attempts)}
        if replaced is not None:
            changes = [
                _ended(session, error, climb.container, tried),
                outcomes.gone_back(replaced, None),
            ]
        elif isinstance(error, InDoubt):
            changes = [_with(outcomes.left_open(session, error.cause), tried)]
        elif session.prior_state is State.ACTIVE and (climb.rolls_back or climb.hands_over):
            # It ran before, and the application has what it had. Unseen, so that the next looks.
            changes = [_with(outcomes.gone_back(session, error, verified_at=None), tried)]
        elif session.prior_state is not None and climb.up and climb.stays:
            await self._put_to_rest(session, error, tried)
            return
        elif session.prior_state is not None:
            changes = [_back_to_rest(session, error, climb, tried)]
        elif isinstance(error, Retryable):
            # Whether the provider created it may be unknown: the name must stay taken.
            changes = [_with(outcomes.left_open(session, error), tried)]
        else:
            changes = [_ended(session, error, climb.container, tried)]
        if await transitions.write_all(self._database, changes) is None:
            raise OwnershipLost
        if not changes[0].container.get("wanted", True):
            await self._discarder.discard(climb.container)

    async def _put_to_rest(
        self, session: Session, error: RoostError, tried: dict[str, object]
    ) -> None:
        """It came up, and the start failed all the same: it goes back to rest, memory and all."""
        began = monotonic()
        change = outcomes.turned_to_pause(session, error, self._ownership.terms.values())
        written = await transitions.write(self._database, _with(change, tried))
        if written is None:
            raise OwnershipLost
        self.on_begun(written, began)


def _descends(landing: Landing) -> dict[str, object]:
    """What the session's state descends from, where that was restored."""
    return {} if landing.checkpoint_id is None else {"checkpoint_id": landing.checkpoint_id}


def _running(boot_id: str | None) -> dict[str, object]:
    """A container's columns after a boot; its start event is looked at when it is next seen."""
    return {
        "state": ContainerState.STARTED,
        "boot_id": boot_id,
        "boot_time": None,
        "start_time": NOW,
        "cordoned": False,
    }


def _with(change: Change, tried: dict[str, object]) -> Change:
    """The same change, its decision saying what was tried."""
    return Change(
        change.session_id,
        change.epoch,
        change.session,
        change.container,
        {**change.decision, **tried},
        change.decision_id,
    )


def _back_to_rest(
    session: Session, error: RoostError, climb: Climb, tried: dict[str, object]
) -> Change:
    """PAUSED, as deep as is known: without a container where that was found lost."""
    lost = bool(climb.lost) or ConditionType.CONTAINER_LOST in climb.found
    # Its state is saved, and anybody may destroy it.
    lost = lost or not climb.container.wanted
    depth = PauseDepth.CHECKPOINT if lost else session.pause_depth or PauseDepth.SUSPENDED
    columns = outcomes.paused(session, depth)
    columns["pause_time"] = session.pause_time or NOW
    columns["verified_at"] = None
    if keeping.recovers(session) and (lost or keeping.lost(session, climb.container)):
        passing = isinstance(error, Retryable)
        longest = outcomes.LAST_RETRY if passing else outcomes.LAST_RETRY_REFUSED
        columns |= outcomes.tried_again(session, longest)
    if lost:
        columns["conditions"] = outcomes.marked(climb.found, climb.now)
    # Only the generation that was proved lost; one that was created since may well run.
    gone = climb.container.generation in climb.lost
    # Whether it came up is not known where the provider did not say.
    unknown: dict[str, object] = {"state": ContainerState.UNKNOWN}
    return Change(
        session.session_id,
        session.epoch,
        session=columns,
        container=outcomes.GONE if gone else unknown,
        decision={**outcomes.refused(error), **tried},
        decision_id=session.decision_id,
    )


def _ended(
    session: Session, error: RoostError, container: Container, tried: dict[str, object]
) -> Change:
    """A session that never stood. Its container, if the provider made one, is to be destroyed."""
    never = container.container_id is None and not isinstance(error, Retryable)
    return Change(
        session.session_id,
        session.epoch,
        session=outcomes.ended(session, EndReason.CREATE_FAILED, None),
        container=outcomes.GONE if never else {"wanted": False},
        decision={**outcomes.refused(error), **tried},
        decision_id=session.decision_id,
    )
