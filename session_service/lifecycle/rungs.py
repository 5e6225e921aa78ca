"""The rungs of a climb: what is done for each, and what it proved to bring back."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from session_service.domain import spec as specs
from session_service.domain.checkpoint import Kind
from session_service.domain.rungs import BEST_OF, untold
from session_service.domain.session import (
    AttemptResult,
    ConditionType,
    Continuity,
    Outcome,
    Rung,
)
from session_service.errors import ProviderUnavailable, Retryable
from session_service.lifecycle.climb import (
    Climb,
    InDoubt,
    Landing,
    LessSurvived,
    capped,
    proved,
    reason,
)
from session_service.lifecycle.evidence import address

if TYPE_CHECKING:
    from session_service.domain.checkpoint import Checkpoint
    from session_service.lifecycle.booting import Booter
    from session_service.lifecycle.creating import Creator
    from session_service.lifecycle.restoring import Restorer
    from session_service.ports import Containers


class Rungs:
    """Tries single rungs."""

    def __init__(
        self, containers: Containers, booter: Booter, creator: Creator, restorer: Restorer
    ) -> None:
        self._containers = containers
        self._booter = booter
        self._creator = creator
        self._restorer = restorer

    async def attempt(self, climb: Climb, rung: Rung) -> Landing:
        """Bring the session back by this rung. Raises RungLost where what it would bring back is
        proved lost, LessSurvived, InDoubt, NothingToRestore; RoostError and what ports raise.
        """
        match rung:
            case Rung.CREATE:
                return await self._create(climb)
            case Rung.RESTORE:
                return await self._restore(climb)
            case _:
                return await self._bring_back(climb, rung)

    async def _bring_back(self, climb: Climb, rung: Rung) -> Landing:
        """Resume or restart the container that is there, and prove what survived in it."""
        began = monotonic()
        booted = await self._booter.bring_up(climb)
        landing = proved(rung, booted, keeps_files=specs.keeps_files(climb.session.spec))
        if climb.session.loss_untold:
            # Its memory is whole since a boot that no answer has told of: what was there at the
            # last answer is gone all the same.
            landing = capped(landing, untold(climb.session))
        if climb.least is not None and landing.continuity < climb.least:
            if booted.memory_preserved is None and climb.least is Continuity.MEMORY:
                # It may well be there: back to rest, so that the next start proves it anew.
                raise ProviderUnavailable(
                    "the container runs, but its memory could not be proved yet; try again"
                )
            raise LessSurvived(booted)
        kept = landing.continuity is BEST_OF[rung]
        if landing.continuity < Continuity.MEMORY:
            climb.found = (ConditionType.MEMORY_LOST,)
        result = AttemptResult.SUCCEEDED if kept else AttemptResult.DEGRADED
        climb.note(rung, result, reason(booted), began)
        return landing

    async def _restore(self, climb: Climb) -> Landing:
        """Bring back what was saved: into a new container, or, in a rollback, the one there is."""
        began = monotonic()
        checkpoint = await self._restorer.sound(climb)
        if climb.rolls_back:
            in_place = checkpoint.kind is Kind.APPLICATION
            booted = await self._booter.bring_up(climb) if in_place else None
            await self._restorer.save_first(climb, checkpoint.kind)
            if booted is not None:
                await self._put_in_place(climb, checkpoint)
                return self._restorer.landed(climb, checkpoint, booted.boot_id, began)
            where = address(climb.container)
            await self._containers.destroy(where, None, timeout=climb.held.left)
        checkpoint, boot_id = await self._filled(climb, checkpoint)
        await self._booter.ready(climb)
        return self._restorer.landed(climb, checkpoint, boot_id, began)

    async def _put_in_place(self, climb: Climb, checkpoint: Checkpoint) -> None:
        try:
            await self._restorer.put(climb, checkpoint)
        except Retryable as error:
            raise InDoubt(error) from error

    async def _filled(self, climb: Climb, checkpoint: Checkpoint) -> tuple[Checkpoint, str | None]:
        """A new container with saved state in it: which, and its boot id."""
        if not climb.unborn:
            await self._creator.want(climb)
            while not await self._restorer.mount(climb, checkpoint):
                checkpoint = await self._restorer.sound(climb)
        boot_id, _ = await self._creator.new(climb)
        await self._restorer.put(climb, checkpoint)
        return checkpoint, boot_id

    async def _create(self, climb: Climb) -> Landing:
        """A new container, with nothing in it."""
        began = monotonic()
        boot_id, how = await self._creator.new(climb)
        climb.note(Rung.CREATE, AttemptResult.SUCCEEDED, how, began)
        return Landing(Outcome.CREATED, Continuity.NONE, True, boot_id)
