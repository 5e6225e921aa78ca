"""Saving state before a container goes to rest: what the policy asks for at a stop, and idleness.

Nothing is destroyed that was not saved: the container's row says that it may go only once the
checkpoint is READY, under the transition's epoch, and a checkpoint that failed leaves all as it is.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from session_service.domain import conditions
from session_service.domain import policy as policies
from session_service.domain.checkpoint import Kind, Reason
from session_service.domain.session import Cause, Condition, ConditionType, PauseDepth
from session_service.domain.states import State, Transition
from session_service.errors import ProviderUnavailable, RoostError
from session_service.lifecycle.evidence import address
from session_service.ports import LeaseHeld, LeaseLost
from session_service.vault.vault import required_kind

if TYPE_CHECKING:
    from datetime import datetime

    from session_service.domain.session import Container, Session
    from session_service.lifecycle.ownership import Held
    from session_service.ports import Activities, Containers, Previews
    from session_service.vault.vault import Vault

_log = logging.getLogger(__name__)


class Saving:
    """Takes the checkpoints of pauses."""

    def __init__(
        self, containers: Containers, previews: Previews, activities: Activities, vault: Vault
    ) -> None:
        self._containers = containers
        self._previews = previews
        self._activities = activities
        self._vault = vault

    async def save(self, held: Held, session: Session, container: Container) -> RoostError | None:
        """Save the state, READY when this returns None; else why that did not work.

        A container at rest is woken for it. Raises ContainerAbsent.
        """
        try:
            kind = required_kind(session, None)
            if kind is Kind.APPLICATION and (held.taken_over or _rests(session)):
                await self._wake(held, container)
            reason = Reason.IDLE if session.cause is Cause.IDLE else Reason.STOP
            where = address(container)
            await self._vault.save(session, where, reason, kind=kind, timeout=held.left)
        except (LeaseHeld, LeaseLost) as error:
            return ProviderUnavailable(f"{error}; try again")
        except RoostError as error:
            _log.warning(
                "the state of a container that goes to rest was not saved: %s",
                error,
                extra={"action": "save", "session_id": str(session.session_id)},
            )
            return error
        return None

    async def in_use(self, session: Session, container: Container) -> bool:
        """Whether somebody came by the preview while the state of what was idle was being saved:
        what they did since is in no checkpoint.
        """
        if session.cause is not Cause.IDLE:
            return False
        return await self._activities.active(container, session.spec)

    async def _wake(self, held: Held, container: Container) -> None:
        """Only what runs can hand its state out."""
        await self._containers.resume(address(container), container.boot_id, timeout=held.left)
        if not await self._previews.wait_ready(container, held.left):
            raise ProviderUnavailable("the container runs, but its preview does not answer")


def wanted(held: Held, session: Session, container: Container) -> bool:
    """Whether the transition is to save the container's state first."""
    if session.transition is not Transition.PAUSE or not container.wanted:
        return False
    if container.start_time is None:
        # No start ended well on it: nothing of the user's is in it.
        return False
    if session.pause_depth is PauseDepth.CHECKPOINT:
        return True
    asked = policies.load(session.policy).checkpoint_on_stop
    by_user = session.cause in (None, Cause.IDLE)
    # What another owner began may be frozen by now; it is only observed.
    return asked and by_user and not _rests(session) and not held.taken_over


def told(error: RoostError, now: datetime) -> Condition:
    """The condition of a session whose state could not be saved."""
    sentence = conditions.SENTENCES[ConditionType.CHECKPOINT_FAILED]
    message = f"{sentence} {error.reason}: {error.message}"
    return Condition(ConditionType.CHECKPOINT_FAILED, message, now)


def _rests(session: Session) -> bool:
    return session.prior_state is State.PAUSED
