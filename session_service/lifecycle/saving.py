"""Saving state before a container goes to rest: what the policy asks for at a stop, and idleness.

Nothing is destroyed that was not saved: the container's row says that it may go only once the
checkpoint is READY, under the transition's epoch, and a checkpoint that failed leaves all as it is.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import TYPE_CHECKING

from session_service.domain import conditions
from session_service.domain import policy as policies
from session_service.domain.checkpoint import Kind, Reason
from session_service.domain.deepening import deepens, holds_all, saves
from session_service.domain.session import (
    Cause,
    Condition,
    ConditionType,
    ContainerState,
    PauseDepth,
)
from session_service.domain.states import State, Transition
from session_service.errors import CheckpointCorrupt, ProviderUnavailable, RoostError
from session_service.lifecycle.evidence import LOOK_TIMEOUT, address
from session_service.ports import LeaseHeld, LeaseLost
from session_service.vault.vault import required_kind

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from session_service.domain.session import Container, Session
    from session_service.lifecycle.ownership import Held
    from session_service.ports import Activities, Booted, Containers, Previews
    from session_service.vault.vault import Vault

_log = logging.getLogger(__name__)

#: Of the time that a transition has left, what saving may take: the rest is for putting to rest
#: what could not be saved, so that a container that hangs is not left running.
SHARE = 0.75
RESTING = frozenset({ContainerState.SUSPENDED, ContainerState.STOPPED})


@dataclass(frozen=True, slots=True)
class Saved:
    """What came of saving the state of a container that goes to rest."""

    error: RoostError | None = None
    """Why it could not be saved; the container then stays, with all that is in it."""
    woken: bool = False
    """Whether it was woken for it."""
    memory_lost: bool = False
    """Whether it was proved by that that what was in memory was gone."""
    columns: Mapping[str, object] = field(default_factory=dict)
    """What the container's row is to say of what was saved, and done for that."""


class Saving:
    """Takes the checkpoints of pauses."""

    def __init__(
        self, containers: Containers, previews: Previews, activities: Activities, vault: Vault
    ) -> None:
        self._containers = containers
        self._previews = previews
        self._activities = activities
        self._vault = vault

    async def save(self, held: Held, session: Session, container: Container) -> Saved:
        """Save the state, READY when this returns without an error; else why that did not work.

        A container at rest is woken for it, unless all of it is saved. Raises ContainerAbsent.
        """
        saved = Saved()
        try:
            until = monotonic() + held.left * SHARE
            kind = required_kind(session, None)
            if deepens(session) and await self._is_saved(session, container):
                return saved
            if kind is Kind.APPLICATION and (held.taken_over or _rests(session)):
                saved = replace(saved, woken=True)
                booted = await self._wake(container, until)
                saved = replace(saved, memory_lost=booted.memory_preserved is False)
                if container.cordoned:
                    # It was brought back from its end: nobody is shown it but through routing.
                    await self._containers.uncordon(address(container), timeout=_left(until))
                    saved = replace(saved, columns={"cordoned": False})
                await self._ready(container, until)
            columns = await self._save(session, container, kind, until)
        except (LeaseHeld, LeaseLost) as error:
            return replace(saved, error=ProviderUnavailable(f"{error}; try again"))
        except RoostError as error:
            _log.warning(
                "the state of a container that goes to rest was not saved: %s",
                error,
                extra={"action": "save", "session_id": str(session.session_id)},
            )
            return replace(saved, error=error)
        return replace(saved, columns={**saved.columns, **columns})

    async def _save(
        self, session: Session, container: Container, kind: Kind, until: float
    ) -> dict[str, object]:
        """Save what runs; what the container's row is to say of that."""
        where, seen = address(container), None
        if policies.load(session.policy).checkpoint_after:
            # Before the state is captured: a start after this look is a newer one.
            seen = await self._containers.get(where, timeout=_left(until))
        reason = Reason.STOP if session.cause is None else Reason.IDLE
        checkpoint = await self._vault.save(session, where, reason, kind=kind, timeout=_left(until))
        if seen is None:
            return {}
        return {
            "saved_checkpoint_id": checkpoint.checkpoint_id,
            "saved_start_time": seen.last_start_time,
        }

    async def _is_saved(self, session: Session, container: Container) -> bool:
        """Whether the checkpoint that the session descends from has all that is in the container,
        as that rests; or there is nothing in memory that a stop would lose.
        """
        seen = await self._containers.get(address(container), timeout=LOOK_TIMEOUT)
        if seen.state not in RESTING:
            return False
        if session.pause_depth is PauseDepth.STOPPED and seen.state is ContainerState.STOPPED:
            return True
        head = await self._vault.head(session)
        if head is None or not holds_all(head, session, container, seen.last_start_time):
            return False
        try:
            # It is all that will be left: read once more, as before any restore.
            await self._vault.check(head)
        except CheckpointCorrupt:
            return False
        # Reading takes its time, and the preview of what rests may wake it meanwhile.
        again = await self._containers.get(address(container), timeout=LOOK_TIMEOUT)
        return again.state in RESTING and again.last_start_time == seen.last_start_time

    async def in_use(self, session: Session, container: Container) -> bool:
        """Whether somebody came by the preview while the state of what was idle was being saved:
        what they did since is in no checkpoint.
        """
        if session.cause not in (Cause.IDLE, Cause.DEEPEN):
            return False
        return await self._activities.active(container, session.spec)

    async def _wake(self, container: Container, until: float) -> Booted:
        """Only what runs can hand its state out."""
        where = address(container)
        return await self._containers.resume(where, container.boot_id, timeout=_left(until))

    async def _ready(self, container: Container, until: float) -> None:
        if not await self._previews.wait_ready(container, _left(until)):
            raise ProviderUnavailable("the container runs, but its preview does not answer")


def wanted(held: Held, session: Session, container: Container) -> bool:
    """Whether the transition is to save the container's state first."""
    if session.transition is not Transition.PAUSE or not container.wanted:
        return False
    if container.start_time is None:
        # No start ended well on it: nothing of the user's is in it.
        return False
    policy = policies.load(session.policy)
    if session.pause_depth is PauseDepth.CHECKPOINT:
        return True
    if deepens(session):
        return saves(session, container, policy)
    asked = policy.checkpoint_on_stop
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


def _left(until: float) -> float:
    """What is left until then, in s. Raises ProviderUnavailable where nothing is."""
    left = until - monotonic()
    if left <= 0:
        raise ProviderUnavailable("saving took longer than it may; try again")
    return left
