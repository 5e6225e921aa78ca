"""Recreates a container from another spec: the old one is destroyed before the new one is created.

There are two carriers of the state. With a volume, the files stay on it; since only one container
can mount it at a time, the old container must be gone before the new one is created. With a
checkpoint, the state is saved first and restored into the new container; the old one is destroyed
only after the checkpoint is READY. The rows record the progress, for an owner that takes over: the
container's `wanted` is false from the moment that its state is saved, and the session has the new
spec from the moment that the old container is known to be destroyed. The commit that sets `wanted`
to false keeps the checkpoint from being deleted.
"""

from __future__ import annotations

from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING

from session_service.bring_up.attempt import InDoubt, LessSurvived, RungLost, capped, proved
from session_service.domain import policy as policies
from session_service.domain import spec as specs
from session_service.domain.checkpoint import Kind, Reason
from session_service.domain.ladder import rungs_for
from session_service.domain.policy import Source
from session_service.domain.session import (
    AttemptResult,
    ConditionType,
    ContainerState,
    Continuity,
    Outcome,
    Rung,
    unreported_continuity,
)
from session_service.domain.spec import Carrier, fingerprint
from session_service.domain.states import State
from session_service.errors import ProviderUnavailable, RoostError, StorageUnavailable
from session_service.observe.probe import PAUSED, PROBE_TIMEOUT, address
from session_service.ports import ContainerAbsent, LeaseHeld, LeaseLost
from session_service.storage.session.change import Change
from session_service.transition import changes as transition_changes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from session_service.bring_up.attempt import BringUp, Notes, Result
    from session_service.bring_up.boot import Booter
    from session_service.bring_up.restore import Restorer
    from session_service.domain.checkpoint import Checkpoint
    from session_service.domain.wish import Recreate
    from session_service.observe.discard import Discarder
    from session_service.ports import Booted, Containers


class Recreator:
    """Saves and destroys the containers that are to be recreated."""

    def __init__(
        self,
        containers: Containers,
        notes: Notes,
        booter: Booter,
        discarder: Discarder,
        restorer: Restorer,
    ) -> None:
        self._containers = containers
        self._notes = notes
        self._booter = booter
        self._discarder = discarder
        self._restorer = restorer

    async def save_before(self, bring_up: BringUp) -> None:
        """Save the state of the container that is to be recreated, and note that it may be
        destroyed. The container is woken for that, so that the state includes its memory. Does
        nothing if that was done before, or if the container has no state of the user. A container
        that is found lost is added to the bring-up's lost generations.

        Raises RoostError and LessSurvived; the container is then kept, with its state. Raises
        InDoubt if it may be destroyed already.
        """
        if not bring_up.must_save_first:
            return
        rung, began = rungs_for(bring_up.session, bring_up.container)[0], monotonic()
        try:
            saved = await self._saved_before(bring_up)
            if saved is not None and await self._allow_destroy(bring_up, saved):
                return
            # It has unsaved state, or its checkpoint was deleted meanwhile.
            booted = await self._booter.run(bring_up)
            await self._note_loss(bring_up, booted)
            rung, began = Rung.RESTORE, monotonic()
            saved = await self._restorer.save(bring_up, Reason.RECREATE, Kind.APPLICATION)
            if not await self._allow_destroy(bring_up, saved):
                raise ProviderUnavailable("its checkpoint was deleted meanwhile; try again")
        except RungLost as lost:
            bring_up.note(rung, AttemptResult.FAILED, str(lost), began)
            bring_up.lost_generations.add(bring_up.container.generation)
            bring_up.conditions = (ConditionType.CONTAINER_LOST,)
            return
        except LessSurvived:
            bring_up.note(rung, AttemptResult.DEGRADED, "BOOT_ID_CHANGED", began)
            raise
        except InDoubt as doubt:
            bring_up.note(rung, AttemptResult.FAILED, doubt.cause.reason, began)
            raise
        except RoostError as error:
            bring_up.note(rung, AttemptResult.FAILED, error.reason, began)
            error.message = f"the container is kept, since its state was not saved: {error.message}"
            raise
        except (ContainerAbsent, LeaseHeld, LeaseLost) as error:
            bring_up.note(rung, AttemptResult.FAILED, "PROVIDER_BUSY", began)
            raise ProviderUnavailable(f"{error}; try again") from error

    async def _allow_destroy(self, bring_up: BringUp, saved: Checkpoint) -> bool:
        """Write the note that the container may be destroyed. Returns False if the checkpoint with
        its state was deleted before. Raises InDoubt if it is not known whether the note was
        written: from then on any replica may destroy the container, so no start may use it again.
        """
        note = _noted(bring_up, {}, {"wanted": False})
        try:
            return await self._notes.write_if_kept(bring_up, saved.checkpoint_id, note)
        except StorageUnavailable as error:
            raise InDoubt(error) from error

    async def _saved_before(self, bring_up: BringUp) -> Checkpoint | None:
        """The checkpoint of its last pause, if it did not run since. The saved state is then at
        least as good as the container's, whose memory may be lost meanwhile.
        """
        container = bring_up.container
        if (
            bring_up.session.prior_state is not State.PAUSED
            or container.saved_checkpoint_id is None
        ):
            return None
        try:
            seen = await self._containers.get(address(container), timeout=PROBE_TIMEOUT)
            if seen.state not in PAUSED:
                return None
            head = await self._restorer.head_with_all(bring_up, seen.last_start_time)
            if head is None:
                return None
            # The check takes time, and traffic to the preview may wake the container meanwhile.
            again = await self._containers.get(address(container), timeout=PROBE_TIMEOUT)
        except ContainerAbsent:
            return None
        same = again.state in PAUSED and again.last_start_time == seen.last_start_time
        return head if same else None

    async def _note_loss(self, bring_up: BringUp, booted: Booted) -> None:
        """Note a loss that happened before the state could be saved: the outcome reports it, also
        if another owner commits that. Raises LessSurvived if less survived than is required.
        """
        session = bring_up.session
        keeps_files = specs.keeps_files(session.spec)
        left = proved(Rung.RESUME, booted, keeps_files=keeps_files).continuity
        ran = session.prior_state is State.ACTIVE
        if ran and booted.memory_preserved is None:
            # As far as is known it has run without a break, with the user's present state.
            left = Continuity.MEMORY
        if session.loss_untold:
            left = min(left, unreported_continuity(session))
        if bring_up.required is not None and left < bring_up.required:
            raise LessSurvived(booted, left)
        if left is Continuity.MEMORY:
            return
        boot = {"boot_id": booted.boot_id, "boot_time": None, "state": ContainerState.STARTED}
        await self._notes.write(
            bring_up, _noted(bring_up, {"loss_untold": True, "untold_continuity": int(left)}, boot)
        )

    async def destroy_old(self, bring_up: BringUp, wanted: Recreate) -> None:
        """Destroy the container that is to be recreated, and note that it is gone, with the new
        spec. Does nothing if that was done before. Raises ProviderUnavailable.
        """
        if wanted.by is Carrier.VOLUME:
            # The decision has already checked the required continuity against the volume's files.
            bring_up.required = None
        if bring_up.container.generation != wanted.generation:
            return
        if (
            bring_up.container.destroy_time is None
            and wanted.generation not in bring_up.lost_generations
        ):
            try:
                await self._discarder.destroy(bring_up.container, bring_up.owned)
            except (LeaseHeld, LeaseLost) as error:
                raise ProviderUnavailable(f"{error}; try again") from error
        await self._notes.write(bring_up, _gone(bring_up, wanted))
        bring_up.lost_generations.add(wanted.generation)
        bring_up.running = False


def _noted(
    bring_up: BringUp, session: Mapping[str, object], container: Mapping[str, object]
) -> Change:
    row = bring_up.session
    return Change(row.session_id, row.epoch, session, container, advance=False)


def _gone(bring_up: BringUp, wanted: Recreate) -> Change:
    session = bring_up.session
    row = policies.load_in_force(session.policy)
    policy = replace(row, sources={**row.sources, "spec": Source(wanted.source)})
    columns: dict[str, object] = {
        "spec": wanted.spec,
        "fingerprint": fingerprint(specs.load(wanted.spec)),
        "policy": policies.dump_in_force(policy),
        # The conditions of this start, for an owner that takes it over; those of earlier starts
        # have been reported.
        "conditions": transition_changes.marked(bring_up.conditions, bring_up.now),
    }
    return _noted(bring_up, columns, transition_changes.GONE)


def recreated_result(bring_up: BringUp, result: Result, wanted: Recreate) -> Result:
    """The result of a recreation: not more continuity than the old container had to be kept."""
    if wanted.by is Carrier.VOLUME:
        return _on_volume(result, wanted)
    if not bring_up.session.loss_untold or ConditionType.CONTAINER_LOST in bring_up.conditions:
        return result
    bring_up.conditions = (ConditionType.MEMORY_LOST,)
    return capped(result, unreported_continuity(bring_up.session))


def _on_volume(result: Result, wanted: Recreate) -> Result:
    """The result with the files of the mounted volume. They are there, since the provider does not
    create a container without the volume that it mounts.
    """
    mounts = specs.load(wanted.spec).get("mounts")
    if result.outcome is not Outcome.CREATED or not mounts:
        return result
    return replace(result, continuity=Continuity.FILESYSTEM)
