"""The strategies of a bring-up: the requests of each rung, and the continuity that they proved."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, assert_never

from session_service.bring_up.attempt import (
    BringUp,
    InDoubt,
    LessSurvived,
    Result,
    capped,
    proved,
    reason,
)
from session_service.domain import spec as specs
from session_service.domain.checkpoint import Kind
from session_service.domain.ladder import BEST_OF
from session_service.domain.session import (
    AttemptResult,
    ConditionType,
    Continuity,
    Outcome,
    Rung,
    unreported_continuity,
)
from session_service.errors import ProviderUnavailable, Retryable

if TYPE_CHECKING:
    from session_service.bring_up.boot import Booter
    from session_service.bring_up.create import Creator
    from session_service.bring_up.restore import Restorer
    from session_service.domain.checkpoint import Checkpoint


class Strategies:
    """Tries single rungs."""

    def __init__(self, booter: Booter, creator: Creator, restorer: Restorer) -> None:
        self._booter = booter
        self._creator = creator
        self._restorer = restorer

    async def attempt(self, bring_up: BringUp, rung: Rung) -> Result:
        """Bring the session up by this rung.

        Raises RungLost if the state that it would bring back is proved lost, LessSurvived, InDoubt,
        NothingToRestore, RoostError, and the errors of ports.
        """
        match rung:
            case Rung.CREATE:
                return await self._create(bring_up)
            case Rung.RESTORE:
                return await self._restore(bring_up)
            case Rung.LIVE | Rung.RESUME | Rung.RESTART:
                return await self._bring_back(bring_up, rung)
            case other:
                assert_never(other)

    async def _bring_back(self, bring_up: BringUp, rung: Rung) -> Result:
        """Resume or restart the existing container, and prove which state survived in it."""
        began = monotonic()
        booted = await self._booter.run(bring_up)
        result = proved(rung, booted, keeps_files=specs.keeps_files(bring_up.session.spec))
        if bring_up.session.loss_untold:
            # The memory is intact since the last boot. But no answer has reported that boot yet,
            # and the memory of the last answer is lost.
            result = capped(result, unreported_continuity(bring_up.session))
        if bring_up.required is not None and result.continuity < bring_up.required:
            if booted.memory_preserved is None and bring_up.required is Continuity.MEMORY:
                # The memory may be intact. The container is paused again, and the next start can
                # prove it.
                raise ProviderUnavailable(
                    "the container runs, but its memory could not be proved yet; try again"
                )
            raise LessSurvived(booted, result.continuity)
        kept = result.continuity is BEST_OF[rung]
        if result.continuity < Continuity.MEMORY:
            bring_up.conditions = (ConditionType.MEMORY_LOST,)
        how = AttemptResult.SUCCEEDED if kept else AttemptResult.DEGRADED
        bring_up.note(rung, how, reason(booted), began)
        return result

    async def _restore(self, bring_up: BringUp) -> Result:
        """Restore a checkpoint: into a new container, or in a rollback into the existing one."""
        began = monotonic()
        checkpoint = await self._restorer.first_intact(bring_up)
        if bring_up.rolls_back:
            in_place = checkpoint.kind is Kind.APPLICATION
            booted = await self._booter.run(bring_up) if in_place else None
            await self._restorer.save_first(bring_up, checkpoint.kind)
            if booted is not None:
                await self._restore_in_place(bring_up, checkpoint)
                return self._restorer.restored(bring_up, checkpoint, booted.boot_id, began)
            await self._creator.destroy_last(bring_up)
        elif bring_up.wish.checkpoint_id is not None and bring_up.session.prior_state is not None:
            # A rollback without a container to save; a save does this too.
            await self._restorer.supersede(bring_up)
        checkpoint, boot_id = await self._new_with_state(bring_up, checkpoint)
        await self._booter.ready(bring_up)
        return self._restorer.restored(bring_up, checkpoint, boot_id, began)

    async def _restore_in_place(self, bring_up: BringUp, checkpoint: Checkpoint) -> None:
        try:
            await self._restorer.restore_into(bring_up, checkpoint)
        except Retryable as error:
            raise InDoubt(error) from error

    async def _new_with_state(
        self, bring_up: BringUp, checkpoint: Checkpoint
    ) -> tuple[Checkpoint, str | None]:
        """Create a container and restore a checkpoint into it; the checkpoint and the boot id."""
        if not bring_up.left_by_earlier_owner:
            await self._creator.ensure_row(bring_up)
            while not await self._restorer.prepare_volume(bring_up, checkpoint):
                checkpoint = await self._restorer.first_intact(bring_up)
        boot_id, _ = await self._creator.new(bring_up)
        await self._restorer.restore_into(bring_up, checkpoint)
        return checkpoint, boot_id

    async def _create(self, bring_up: BringUp) -> Result:
        """Create a container without restored state."""
        began = monotonic()
        boot_id, how = await self._creator.new(bring_up)
        bring_up.note(Rung.CREATE, AttemptResult.SUCCEEDED, how, began)
        return Result(Outcome.CREATED, Continuity.NONE, True, boot_id)
