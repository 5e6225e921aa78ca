"""Making a container anew of another spec: the old one is destroyed first.

Its files stay where they are on a volume, which is mounted by one container at a time, so that the
new one cannot stand before the old one is gone. Or its state is saved first, and restored into the
new one: nothing is destroyed before that is READY. How far it came is told by the rows: the
container is not wanted from the moment that its state is saved, and the new spec is the session's
from the moment that the old container is known to be destroyed, and not before.
"""

from __future__ import annotations

from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING

from session_service.domain import effective
from session_service.domain import spec as specs
from session_service.domain.checkpoint import Kind, Reason
from session_service.domain.effective import Source
from session_service.domain.fingerprint import Carrier, fingerprint
from session_service.domain.rungs import rungs_for, untold
from session_service.domain.session import (
    AttemptResult,
    ConditionType,
    ContainerState,
    Continuity,
    Outcome,
    Rung,
)
from session_service.domain.states import State
from session_service.errors import ProviderUnavailable, RoostError
from session_service.lifecycle import outcomes
from session_service.lifecycle.climb import LessSurvived, RungLost, capped, proved
from session_service.lifecycle.evidence import LOOK_TIMEOUT, address
from session_service.lifecycle.saving import RESTING
from session_service.ports import ContainerAbsent, LeaseHeld, LeaseLost
from session_service.storage.transitions import Change

if TYPE_CHECKING:
    from collections.abc import Mapping

    from session_service.domain.wish import Recreate
    from session_service.lifecycle.booting import Booter
    from session_service.lifecycle.climb import Climb, Landing
    from session_service.lifecycle.notes import Notes
    from session_service.lifecycle.removing import Remover
    from session_service.lifecycle.restoring import Restorer
    from session_service.ports import Booted, Containers


class Recreator:
    """Takes containers away that are to be made anew."""

    def __init__(
        self,
        containers: Containers,
        notes: Notes,
        booter: Booter,
        remover: Remover,
        restorer: Restorer,
    ) -> None:
        self._containers = containers
        self._notes = notes
        self._booter = booter
        self._remover = remover
        self._restorer = restorer

    async def hand_over(self, climb: Climb) -> None:
        """Save the state of the container that is to go, and note that it may: it is woken for
        that, so that what it has in memory is in the state. Does nothing where that was done
        before, or where there is nothing of the user's in it; one that is found lost is noted.

        Raises RoostError, and LessSurvived; then it is there, with all that is in it.
        """
        if not climb.hands_over:
            return
        rung, began = rungs_for(climb.session, climb.container)[0], monotonic()
        try:
            if not await self._is_saved(climb):
                booted = await self._booter.bring_up(climb)
                await self._note_loss(climb, booted)
                rung, began = Rung.RESTORE, monotonic()
                await self._restorer.save(climb, Reason.RECREATE, Kind.APPLICATION)
        except RungLost as lost:
            climb.note(rung, AttemptResult.FAILED, str(lost), began)
            climb.lost.add(climb.container.generation)
            climb.found = (ConditionType.CONTAINER_LOST,)
            return
        except LessSurvived:
            climb.note(rung, AttemptResult.DEGRADED, "BOOT_ID_CHANGED", began)
            raise
        except RoostError as error:
            climb.note(rung, AttemptResult.FAILED, error.reason, began)
            error.message = f"the container is kept, since its state was not saved: {error.message}"
            raise
        except (ContainerAbsent, LeaseHeld, LeaseLost) as error:
            climb.note(rung, AttemptResult.FAILED, "PROVIDER_BUSY", began)
            raise ProviderUnavailable(f"{error}; try again") from error
        await self._notes.write(climb, _noted(climb, {}, {"wanted": False}))

    async def _is_saved(self, climb: Climb) -> bool:
        """Whether its state was saved as it was put to rest, and it did not run since: what it had
        in memory then may be there no more.
        """
        container = climb.container
        if climb.session.prior_state is not State.PAUSED or container.saved_checkpoint_id is None:
            return False
        try:
            seen = await self._containers.get(address(container), timeout=LOOK_TIMEOUT)
            if seen.state not in RESTING:
                return False
            if not await self._restorer.has_all(climb, seen.last_start_time):
                return False
            # Reading takes its time, and the preview of what rests may wake it meanwhile.
            again = await self._containers.get(address(container), timeout=LOOK_TIMEOUT)
        except ContainerAbsent:
            return False
        return again.state in RESTING and again.last_start_time == seen.last_start_time

    async def _note_loss(self, climb: Climb, booted: Booted) -> None:
        """What was lost before the state could be saved is told with the outcome, whoever writes
        that. Raises LessSurvived where it is more than may be.
        """
        session = climb.session
        keeps_files = specs.keeps_files(session.spec)
        left = proved(Rung.RESUME, booted, keeps_files=keeps_files).continuity
        ran = session.prior_state is State.ACTIVE
        if ran and booted.memory_preserved is None:
            # It ran on, as far as is known: what it has is what the user has.
            left = Continuity.MEMORY
        if session.loss_untold:
            left = min(left, untold(session))
        if climb.least is not None and left < climb.least:
            raise LessSurvived(booted)
        if left is Continuity.MEMORY:
            return
        boot = {"boot_id": booted.boot_id, "boot_time": None, "state": ContainerState.STARTED}
        await self._notes.write(
            climb, _noted(climb, {"loss_untold": True, "untold_continuity": int(left)}, boot)
        )

    async def take_away(self, climb: Climb, wanted: Recreate) -> None:
        """Destroy the container that is to go, and note that it is gone and what comes in its
        place. Does nothing where that was done before. Raises ProviderUnavailable.
        """
        if wanted.by is Carrier.VOLUME:
            # What is asked of survival was held against the volume's files when it was decided.
            climb.least = None
        if climb.container.generation != wanted.generation:
            return
        if climb.container.destroy_time is None and wanted.generation not in climb.lost:
            try:
                await self._remover.destroy(climb)
            except (LeaseHeld, LeaseLost) as error:
                raise ProviderUnavailable(f"{error}; try again") from error
        await self._notes.write(climb, _gone(climb, wanted))
        climb.lost.add(wanted.generation)
        climb.up = False


def _noted(climb: Climb, session: Mapping[str, object], container: Mapping[str, object]) -> Change:
    row = climb.session
    return Change(row.session_id, row.epoch, session, container, advance=False)


def _gone(climb: Climb, wanted: Recreate) -> Change:
    session = climb.session
    row = effective.load(session.policy)
    policy = replace(row, sources={**row.sources, "spec": Source(wanted.source)})
    columns: dict[str, object] = {
        "spec": wanted.spec,
        "fingerprint": fingerprint(specs.load(wanted.spec)),
        "policy": effective.dump(policy),
        # Of this start, for whoever takes it over: what an earlier one found is told.
        "conditions": outcomes.marked(climb.found, climb.now),
    }
    return _noted(climb, columns, outcomes.GONE)


def kept(climb: Climb, landing: Landing, wanted: Recreate) -> Landing:
    """What a container that was made anew brought back, and no more than was there to be kept."""
    if wanted.by is Carrier.VOLUME:
        return _on_volume(landing, wanted)
    if not climb.session.loss_untold or ConditionType.CONTAINER_LOST in climb.found:
        return landing
    climb.found = (ConditionType.MEMORY_LOST,)
    return capped(landing, untold(climb.session))


def _on_volume(landing: Landing, wanted: Recreate) -> Landing:
    """The files on the volume that it mounts, which the provider would not have created it
    without.
    """
    mounts = specs.load(wanted.spec).get("mounts")
    if landing.outcome is not Outcome.CREATED or not mounts:
        return landing
    return replace(landing, continuity=Continuity.FILESYSTEM)
