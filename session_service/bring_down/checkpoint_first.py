"""Saves a container's state before it is paused or destroyed, if the policy asks for that.

A container is destroyed only after its state is saved. Its row allows that (`wanted` false) only
while the checkpoint is READY, by a commit that is fenced by the transition's epoch and keeps the
checkpoint from being deleted. If the save fails, or the checkpoint was deleted before that commit,
the container is kept with its state.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import TYPE_CHECKING

from session_service.checkpoints.vault import required_kind
from session_service.domain import policy as policies
from session_service.domain.checkpoint import Kind, Reason
from session_service.domain.next_action import deepens, holds_all, saves
from session_service.domain.session import (
    SENTENCES,
    Cause,
    Condition,
    ConditionType,
    ContainerState,
    PauseDepth,
)
from session_service.domain.states import State, Transition
from session_service.errors import CheckpointCorrupt, ProviderUnavailable, RoostError
from session_service.observe.probe import PAUSED, PROBE_TIMEOUT, address
from session_service.ports import LeaseHeld, LeaseLost

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from uuid import UUID

    from session_service.checkpoints.vault import Vault
    from session_service.domain.session import Container, Session
    from session_service.ports import Activities, Booted, Containers, Previews
    from session_service.transition.ownership import Owned

_log = logging.getLogger(__name__)

#: The share of a transition's time left that saving may take. In the remainder a container whose
#: state could not be saved is paused, so that one that hangs does not run on.
SHARE = 0.75


@dataclass(frozen=True, slots=True)
class Saved:
    """The result of saving the state of a container that is brought down."""

    error: RoostError | None = None
    """The error, if it could not be saved; the container is then kept."""
    woken: bool = False
    """Whether the container may have been woken for the save."""
    memory_lost: bool = False
    """Whether that boot proved that the memory was lost."""
    columns: Mapping[str, object] = field(default_factory=dict)
    """The columns of the container's row that the save changes."""
    checkpoint_id: UUID | None = None
    """The checkpoint that has the state; None if it was not to be saved, or could not be."""


class CheckpointFirst:
    """Saves the checkpoints of pauses."""

    def __init__(
        self, containers: Containers, previews: Previews, activities: Activities, vault: Vault
    ) -> None:
        self._containers = containers
        self._previews = previews
        self._activities = activities
        self._vault = vault

    async def save(self, owned: Owned, session: Session, container: Container) -> Saved:
        """Save the state; without an error in the result the checkpoint is READY.

        A paused container is woken for it, unless its whole state is saved already. Raises
        ContainerAbsent.
        """
        saved = Saved()
        try:
            until = monotonic() + owned.left * SHARE
            kind = required_kind(session, None)
            if deepens(session):
                already = await self._saved_before(session, container)
                if already is not None:
                    return already
            if kind is Kind.APPLICATION and (owned.taken_over or _is_paused(session)):
                saved = replace(saved, woken=True)
                booted = await self._wake(container, until)
                saved = replace(saved, memory_lost=booted.memory_preserved is False)
                if container.cordoned:
                    # The session was undeleted; its preview answers only if it is in routing.
                    await self._containers.uncordon(address(container), timeout=_left(until))
                    saved = replace(saved, columns={"cordoned": False})
                await self._ready(container, until)
            checkpoint_id, columns = await self._save(session, container, kind, until)
        except (LeaseHeld, LeaseLost) as error:
            return replace(saved, error=ProviderUnavailable(f"{error}; try again"))
        except RoostError as error:
            _log.warning(
                "the state of a container was not saved before its pause: %s",
                error,
                extra={"action": "save", "session_id": str(session.session_id)},
            )
            return replace(saved, error=error)
        columns = {**saved.columns, **columns}
        return replace(saved, columns=columns, checkpoint_id=checkpoint_id)

    async def _save(
        self, session: Session, container: Container, kind: Kind, until: float
    ) -> tuple[UUID, Mapping[str, object]]:
        """Save the state; the checkpoint's id, and the columns of the container's row that the save
        changes.
        """
        where, seen = address(container), None
        if policies.load(session.policy).checkpoint_after:
            # Read before the state is captured: a later start of the machine is then a newer one.
            seen = await self._containers.get(where, timeout=_left(until))
        reason = Reason.STOP if session.cause is None else Reason.IDLE
        checkpoint = await self._vault.save(session, where, reason, kind=kind, timeout=_left(until))
        if seen is None:
            return checkpoint.checkpoint_id, {}
        return checkpoint.checkpoint_id, {
            "saved_checkpoint_id": checkpoint.checkpoint_id,
            "saved_start_time": seen.last_start_time,
        }

    async def _saved_before(self, session: Session, container: Container) -> Saved | None:
        """The result if the paused container has no unsaved state; None if it has. Either the
        checkpoint that the session descends from has the container's whole state, or the container
        is stopped and only to be stopped.
        """
        seen = await self._containers.get(address(container), timeout=PROBE_TIMEOUT)
        if seen.state not in PAUSED:
            return None
        if session.pause_depth is PauseDepth.STOPPED and seen.state is ContainerState.STOPPED:
            return Saved()
        head = await self._vault.settled_head(session)
        if head is None or not holds_all(head, session, container, seen.last_start_time):
            return None
        try:
            # The checkpoint will be the only copy: check its bytes, as before a restore.
            await self._vault.check(head)
        except CheckpointCorrupt:
            return None
        # The check takes time, and traffic to the preview may wake the container meanwhile.
        again = await self._containers.get(address(container), timeout=PROBE_TIMEOUT)
        if again.state not in PAUSED or again.last_start_time != seen.last_start_time:
            return None
        return Saved(checkpoint_id=head.checkpoint_id)

    async def in_use(self, session: Session, container: Container) -> bool:
        """Whether an idle session was used through the preview while its state was being saved: its
        newest state is then in no checkpoint.
        """
        if session.cause not in (Cause.IDLE, Cause.DEEPEN):
            return False
        return await self._activities.active(container, session.spec)

    async def _wake(self, container: Container, until: float) -> Booted:
        """Resume the container: only a running application can export its state."""
        where = address(container)
        return await self._containers.resume(where, container.boot_id, timeout=_left(until))

    async def _ready(self, container: Container, until: float) -> None:
        if not await self._previews.wait_ready(container, _left(until)):
            raise ProviderUnavailable("the container runs, but its preview does not answer")


def wanted(owned: Owned, session: Session, container: Container) -> bool:
    """Whether the transition is to save the container's state first."""
    if session.transition is not Transition.PAUSE or not container.wanted:
        return False
    if container.start_time is None:
        # No start has succeeded with it: it has no state of the user.
        return False
    policy = policies.load(session.policy)
    if session.pause_depth is PauseDepth.CHECKPOINT:
        return True
    if deepens(session):
        return saves(session, container, policy)
    asked = policy.checkpoint_on_stop
    by_user = session.cause in (None, Cause.IDLE)
    # An earlier owner may have suspended the container already; then it is only observed.
    return asked and by_user and not _is_paused(session) and not owned.taken_over


def failure(error: RoostError, now: datetime) -> Condition:
    """The condition of a session whose state could not be saved."""
    sentence = SENTENCES[ConditionType.CHECKPOINT_FAILED]
    message = f"{sentence} {error.reason}: {error.message}"
    return Condition(ConditionType.CHECKPOINT_FAILED, message, now)


def _is_paused(session: Session) -> bool:
    return session.prior_state is State.PAUSED


def _left(until: float) -> float:
    """The time left, in s. Raises ProviderUnavailable if none is left."""
    left = until - monotonic()
    if left <= 0:
        raise ProviderUnavailable("saving took longer than it may; try again")
    return left
