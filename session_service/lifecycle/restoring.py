"""Bringing saved state back: the ladder's rung RESTORE, and the checkpoint of a rollback or a fork.

What is stored is read and proved before a container is made for it, and hashed once more on its way
into the container.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from session_service.domain import spec as specs
from session_service.domain import wish as wishes
from session_service.domain.checkpoint import Kind, Reason
from session_service.domain.deepening import holds_all
from session_service.domain.session import AttemptResult, Continuity, Outcome, Rung
from session_service.errors import CheckpointCorrupt, VolumeAbsent
from session_service.lifecycle.climb import Landing, NothingToRestore
from session_service.lifecycle.evidence import address
from session_service.lifecycle.ownership import OwnershipLost
from session_service.storage import checkpoint_ends, transitions
from session_service.storage.transitions import Change
from session_service.vault.lines import candidates
from session_service.vault.reading import corrupt

if TYPE_CHECKING:
    from datetime import datetime

    from session_service.domain.checkpoint import Checkpoint
    from session_service.domain.session import Session
    from session_service.lifecycle.climb import Climb
    from session_service.storage.database import Database
    from session_service.vault.vault import Vault

#: What attempts at a rung say that ended well.
RESTORED = "CHECKPOINT_RESTORED"


class Restorer:
    """What climbs need of the vault."""

    def __init__(self, database: Database, vault: Vault) -> None:
        self._database = database
        self._vault = vault

    async def choices(self, session: Session) -> tuple[Checkpoint, ...]:
        """What a session can go back to: the one that is asked for, or what it descends from.

        Raises CheckpointMissing, CheckpointNotReady, CheckpointCorrupt of one that is asked for.
        """
        wish = wishes.load(session.wish)
        if wish.checkpoint_id is None:
            return await candidates(self._database, session)
        return (await self._vault.find(session.tenant, wish.checkpoint_id),)

    async def sound(self, climb: Climb) -> Checkpoint:
        """The best checkpoint whose bytes are what was saved; each that is not is noted, and not
        tried again. Raises NothingToRestore, and StorageUnavailable where that is not known.
        """
        while climb.checkpoints:
            checkpoint, began = climb.checkpoints[0], monotonic()
            climb.checkpoint_number = checkpoint.number
            try:
                await self._vault.check(checkpoint)
            except CheckpointCorrupt as error:
                self._give_up(climb, checkpoint, error.reason, began)
            else:
                return checkpoint
        raise NothingToRestore

    async def mount(self, climb: Climb, checkpoint: Checkpoint) -> bool:
        """Before the container of this generation is created: a volume of the checkpoint's snapshot
        for it to mount, where that is what was saved. False where it is proved that the provider
        has no such snapshot any more: a refusal of another kind says nothing of that.
        """
        if checkpoint.kind is not Kind.VOLUME:
            return True
        began, session = monotonic(), climb.session
        try:
            volume_id = await self._vault.volume_from(checkpoint, session, timeout=climb.held.left)
        except VolumeAbsent:
            if not await self._vault.is_gone(checkpoint, timeout=climb.held.left):
                raise
            await checkpoint_ends.condemn(self._database, checkpoint.checkpoint_id)
            self._give_up(climb, checkpoint, "SNAPSHOT_GONE", began)
            return False
        spec = specs.load(session.spec)
        mount = (spec.get("mounts") or specs.load(checkpoint.spec)["mounts"])[0]
        spec["mounts"] = [specs.remounted(mount, volume_id)]
        await self._note(climb, {"spec": specs.dump(spec)})
        return True

    async def has_all(self, climb: Climb, last_start: datetime | None) -> bool:
        """Whether the checkpoint that the session descends from is sound, and has all that is in
        the climb's container, which rests and was last started then.
        """
        head = await self._vault.head(climb.session)
        if head is None or not holds_all(head, climb.session, climb.container, last_start):
            return False
        try:
            await self._vault.check(head)
        except CheckpointCorrupt:
            return False
        return True

    async def put(self, climb: Climb, checkpoint: Checkpoint) -> None:
        """Put the state into the climb's container, which runs, and prove that it arrived."""
        if checkpoint.kind is Kind.APPLICATION:
            where, spec = address(climb.container), climb.session.spec
            await self._vault.restore(checkpoint, where, spec, timeout=climb.held.left)

    def landed(
        self, climb: Climb, checkpoint: Checkpoint, boot_id: str | None, began: float
    ) -> Landing:
        """Where a restore ends well."""
        climb.note(Rung.RESTORE, AttemptResult.SUCCEEDED, RESTORED, began)
        return Landing(
            Outcome.RESTORED, Continuity.CHECKPOINT, True, boot_id, checkpoint.checkpoint_id
        )

    async def save_first(self, climb: Climb, kind: Kind) -> None:
        """What is there before a rollback becomes a checkpoint of its own, once: an owner before us
        may have put the older state into the container already.
        """
        wish = climb.wish
        if wish.saved_id is not None:
            return
        saved = await self.save(climb, Reason.ROLLBACK, kind)
        climb.wish = wishes.saved(wish, saved.checkpoint_id)
        await self._note(climb, {"wish": wishes.dump(climb.wish)})

    async def save(self, climb: Climb, reason: Reason, kind: Kind) -> Checkpoint:
        """A checkpoint of what the climb's container has in it, READY. Raises RoostError."""
        where = address(climb.container)
        return await self._vault.save(
            climb.session, where, reason, kind=kind, timeout=climb.held.left
        )

    async def _note(self, climb: Climb, columns: dict[str, object]) -> None:
        """Keep what was learned on the way. Raises OwnershipLost where the epoch has moved on."""
        session = climb.session
        change = Change(session.session_id, session.epoch, session=columns, advance=False)
        written = await transitions.write(self._database, change)
        if written is None:
            raise OwnershipLost
        climb.session = written

    def _give_up(self, climb: Climb, checkpoint: Checkpoint, reason: str, began: float) -> None:
        """One that cannot be restored, now or ever. Raises where it was the one asked for."""
        climb.checkpoints = climb.checkpoints[1:]
        if climb.wish.checkpoint_id is not None:
            raise corrupt(checkpoint)
        climb.note(Rung.RESTORE, AttemptResult.FAILED, reason, began)
