"""Restores checkpoints: for the ladder's rung RESTORE, and for a rollback or a fork.

The stored bytes of a checkpoint are read and checked before a container is created for them, and
are hashed again on their way into the container. A snapshot of a volume has no bytes to read.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from session_service.bring_up.attempt import NothingToRestore, Result
from session_service.checkpoints.stream import candidates, corrupt
from session_service.domain import spec as specs
from session_service.domain import wish as wishes
from session_service.domain.checkpoint import Kind, Reason
from session_service.domain.next_action import holds_all
from session_service.domain.session import AttemptResult, Continuity, Outcome, Rung
from session_service.errors import CheckpointCorrupt, VolumeAbsent
from session_service.observe.probe import address
from session_service.storage.checkpoint import removal
from session_service.storage.session import change as changes
from session_service.storage.session.change import Change
from session_service.transition.ownership import OwnershipLost

if TYPE_CHECKING:
    from datetime import datetime

    from session_service.bring_up.attempt import BringUp
    from session_service.checkpoints.vault import Vault
    from session_service.domain.checkpoint import Checkpoint
    from session_service.domain.session import Session
    from session_service.storage.database import Database

#: The reason of a successful attempt at RESTORE.
RESTORED = "CHECKPOINT_RESTORED"


class Restorer:
    """Chooses, restores and saves the checkpoints of bring-ups."""

    def __init__(self, database: Database, vault: Vault) -> None:
        self._database = database
        self._vault = vault

    async def checkpoints_for(self, session: Session) -> tuple[Checkpoint, ...]:
        """The checkpoints that a session can be restored from: the one that the start requested,
        else those that the session's state descends from.

        Raises CheckpointMissing, CheckpointNotReady or CheckpointCorrupt for a requested one.
        """
        wish = wishes.load(session.wish)
        if wish.checkpoint_id is None:
            return await candidates(self._database, session)
        return (await self._vault.find(session.tenant, wish.checkpoint_id),)

    async def first_intact(self, bring_up: BringUp) -> Checkpoint:
        """The first checkpoint whose bytes are intact. A snapshot counts as intact, because its
        bytes cannot be read. A corrupt checkpoint is recorded as a failed attempt, and dropped.
        Raises NothingToRestore if none is left, CheckpointCorrupt if the requested checkpoint is
        corrupt, and StorageUnavailable if the bytes cannot be read now.
        """
        while bring_up.checkpoints:
            checkpoint, began = bring_up.checkpoints[0], monotonic()
            bring_up.checkpoint_number = checkpoint.number
            try:
                await self._vault.check(checkpoint)
            except CheckpointCorrupt as error:
                self._drop_candidate(bring_up, checkpoint, error.reason, began)
            else:
                return checkpoint
        raise NothingToRestore

    async def prepare_volume(self, bring_up: BringUp, checkpoint: Checkpoint) -> bool:
        """For a checkpoint of kind VOLUME, create a volume from its snapshot, and put the volume
        into the session's spec, so that the next container mounts it. If the provider answers that
        the snapshot or a volume is absent: returns False if the loss of the snapshot is proved,
        else raises VolumeAbsent.
        """
        if checkpoint.kind is not Kind.VOLUME:
            return True
        began, session = monotonic(), bring_up.session
        try:
            volume_id = await self._vault.volume_from(
                checkpoint, session, timeout=bring_up.owned.left
            )
        except VolumeAbsent:
            if not await self._vault.is_gone(checkpoint, timeout=bring_up.owned.left):
                raise
            await removal.mark_corrupt(self._database, checkpoint.checkpoint_id)
            self._drop_candidate(bring_up, checkpoint, "SNAPSHOT_GONE", began)
            return False
        spec = specs.load(session.spec)
        mount = (spec.get("mounts") or specs.load(checkpoint.spec)["mounts"])[0]
        spec["mounts"] = [specs.remounted(mount, volume_id)]
        await self._note(bring_up, {"spec": specs.dump(spec)})
        return True

    async def head_with_all(
        self, bring_up: BringUp, last_start: datetime | None
    ) -> Checkpoint | None:
        """The checkpoint that the session's state descends from, if it is intact and contains the
        whole state of the bring-up's container; None if there is no such checkpoint. The container
        must be paused. `last_start` is when it last started, by the provider's clock.
        """
        head = await self._vault.settled_head(bring_up.session)
        if head is None or not holds_all(head, bring_up.session, bring_up.container, last_start):
            return None
        try:
            await self._vault.check(head)
        except CheckpointCorrupt:
            return None
        return head

    async def restore_into(self, bring_up: BringUp, checkpoint: Checkpoint) -> None:
        """Restore the state into the bring-up's running container, and prove that it arrived. A
        checkpoint of kind VOLUME needs no request: its volume is mounted already.
        """
        if checkpoint.kind is Kind.APPLICATION:
            where, spec = address(bring_up.container), bring_up.session.spec
            await self._vault.restore(checkpoint, where, spec, timeout=bring_up.owned.left)

    def restored(
        self, bring_up: BringUp, checkpoint: Checkpoint, boot_id: str | None, began: float
    ) -> Result:
        """Record a successful restore as an attempt, and return the rung's result."""
        bring_up.note(Rung.RESTORE, AttemptResult.SUCCEEDED, RESTORED, began)
        return Result(
            Outcome.RESTORED, Continuity.CHECKPOINT, True, boot_id, checkpoint.checkpoint_id
        )

    async def save_first(self, bring_up: BringUp, kind: Kind) -> None:
        """Save the present state as a checkpoint before a rollback replaces it. If the session's
        row names such a checkpoint already, nothing is saved: the older state may have been
        restored since then, and a save now would contain the older state.
        """
        wish = bring_up.wish
        if wish.saved_id is not None:
            return
        saved = await self.save(bring_up, Reason.ROLLBACK, kind)
        bring_up.wish = wishes.saved(wish, saved.checkpoint_id)
        await self._note(bring_up, {"wish": wishes.dump(bring_up.wish)})

    async def supersede(self, bring_up: BringUp) -> None:
        """Mark the session's checkpoint that is still being written, if there is one, as FAILED.
        It contains the state that the rollback is about to replace. If it became READY later, it
        could become the session's head, and the next start would undo the rollback.
        """
        await self._vault.supersede(bring_up.session)

    async def save(self, bring_up: BringUp, reason: Reason, kind: Kind) -> Checkpoint:
        """Save the state of the bring-up's container, and return the READY checkpoint. Raises
        RoostError.
        """
        where = address(bring_up.container)
        return await self._vault.save(
            bring_up.session, where, reason, kind=kind, timeout=bring_up.owned.left
        )

    async def _note(self, bring_up: BringUp, columns: dict[str, object]) -> None:
        """Write a note before the outcome. Raises OwnershipLost if the epoch has advanced."""
        session = bring_up.session
        change = Change(session.session_id, session.epoch, session=columns, advance=False)
        written = await changes.write(self._database, change)
        if written is None:
            raise OwnershipLost
        bring_up.session = written

    def _drop_candidate(
        self, bring_up: BringUp, checkpoint: Checkpoint, reason: str, began: float
    ) -> None:
        """Drop a checkpoint that can never be restored. Raises CheckpointCorrupt if it was the
        requested one.
        """
        bring_up.checkpoints = bring_up.checkpoints[1:]
        if bring_up.wish.checkpoint_id is not None:
            raise corrupt(checkpoint)
        bring_up.note(Rung.RESTORE, AttemptResult.FAILED, reason, began)
