"""The vault: saves, verifies and restores checkpoints, for transitions, calls and the due pass."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from time import monotonic
from typing import TYPE_CHECKING

import uuid_utils.compat as uuids

from session_service import errors
from session_service.checkpoints.retention import Retention, VolumeDeletion
from session_service.checkpoints.stream import Damaged, Reader, corrupt, whole_of
from session_service.checkpoints.write import Saver
from session_service.domain import policy as policies
from session_service.domain import spec as specs
from session_service.domain.checkpoint import Kind, Place, kind_for, supports
from session_service.ports import Volume
from session_service.storage.checkpoint import reads, write
from session_service.storage.checkpoint import volumes as checkpoint_volumes
from session_service.storage.checkpoint.volumes import Wanted
from session_service.storage.checkpoint.write import AlreadyWriting, NewCheckpoint

if TYPE_CHECKING:
    from uuid import UUID

    from session_service.checkpoints.write import CheckpointSettings
    from session_service.domain.checkpoint import Checkpoint, Reason
    from session_service.domain.session import Session
    from session_service.ports import Address, Bucket, States, Volumes
    from session_service.storage.database import Database

#: How many times a save tries to begin while another checkpoint of the session is being written.
TRIES = 3
#: The pause between two such tries, and between two reads of a volume that is being created, in s.
PAUSE = 0.2


class Vault:
    """Saves, verifies and restores the state of sessions."""

    def __init__(
        self,
        database: Database,
        states: States,
        volumes: Volumes,
        saver: Saver,
        reader: Reader,
        retention: Retention,
        volume_deletion: VolumeDeletion,
    ) -> None:
        self._database = database
        self._states = states
        self._volumes = volumes
        self.volume_deletion = volume_deletion
        self._saver = saver
        self.reader = reader
        self.retention = retention

    # --- saving --------------------------------------------------------------------------------

    async def save(
        self,
        session: Session,
        where: Address,
        reason: Reason,
        *,
        kind: Kind | None = None,
        timeout: float,
    ) -> Checkpoint:
        """Save the state within the session's transition, as its owner, under its epoch.

        Checkpoints of the session that are still being written, by a call or by an earlier owner,
        are marked FAILED first. Raises as `Saver.save` does, and ProviderUnavailable if another
        checkpoint of the session is being written.
        """
        kind = required_kind(session, kind)
        for _ in range(TRIES):
            await self.supersede(session)
            new = self.new(session, kind, reason, decision_id=session.decision_id)
            try:
                begun = await write.begin(self._database, new)
            except AlreadyWriting:
                await asyncio.sleep(PAUSE)
                continue
            if begun is None:
                raise errors.SessionStateConflict("the session changed before the save began")
            return await self.write(begun, where, session, timeout=timeout)
        raise errors.ProviderUnavailable("another checkpoint is being written; try again")

    async def supersede(self, session: Session) -> None:
        """Within the session's transition: mark its checkpoints that are still being written as
        FAILED. None can be begun before the transition's outcome, except by its owner.

        Their bytes are deleted by their writers, or by the retention pass if a writer is gone. The
        transition does not wait for the deletion, and does not fail if the bucket does.
        """
        await write.supersede(self._database, session.session_id, session.epoch)

    async def begin(self, session: Session, kind: Kind, reason: Reason) -> Checkpoint | None:
        """Commit a new checkpoint as WRITING. For saves that no caller requested; the session must
        not be in transition.

        Returns None if the session changed. Raises AlreadyWriting, StorageUnavailable.
        """
        return await write.begin(self._database, self.new(session, kind, reason))

    async def write(
        self,
        begun: Checkpoint,
        where: Address,
        session: Session,
        *,
        timeout: float,
        answers: bool = False,
    ) -> Checkpoint:
        """Write a checkpoint that is WRITING. Returns and raises as `Saver.save` does."""
        keep = policies.load(session.policy).keep_checkpoints
        return await self._saver.save(
            begun, where, epoch=session.epoch, keep=keep, timeout=timeout, answers=answers
        )

    def new(
        self,
        session: Session,
        kind: Kind,
        reason: Reason,
        label: str = "",
        decision_id: UUID | None = None,
    ) -> NewCheckpoint:
        """The row of a new checkpoint of the session. Its commit writes nothing if the session has
        another epoch by then.
        """
        return NewCheckpoint(
            uuids.uuid7(),
            session.session_id,
            session.epoch,
            kind,
            reason,
            Place.DATABASE if kind is Kind.APPLICATION else Place.PROVIDER,
            self._saver.settings.lease,
            label,
            decision_id,
        )

    async def settled_head(self, session: Session) -> Checkpoint | None:
        """Within the session's transition: the head, which is the checkpoint that the session's
        state descends from; None if there is none. The caller may rely on it and destroy the
        container.

        The head does not change before the transition's outcome, unless the transition's owner
        changes it. For that, checkpoints that are still being written are marked FAILED first. Each
        would become the head when it is READY. Retention could then delete the checkpoint that has
        the state of the destroyed container. And a start would restore the new head, which may have
        less: a snapshot of the volume has no memory.
        """
        if session.checkpoint_id is None:
            return None
        await self.supersede(session)
        return await reads.head_of(self._database, session.session_id)

    # --- restoring -----------------------------------------------------------------------------

    async def find(self, tenant: str, checkpoint_id: UUID) -> Checkpoint:
        """A checkpoint to restore.

        Raises CheckpointMissing, CheckpointNotReady, CheckpointCorrupt, StorageUnavailable.
        """
        checkpoint = await reads.get(self._database, tenant, checkpoint_id)
        return usable(checkpoint)

    async def check(self, checkpoint: Checkpoint) -> None:
        """Verify a checkpoint before it is relied on. Raises as `Reader.check` does."""
        await self.reader.check(checkpoint)

    async def restore(
        self, checkpoint: Checkpoint, where: Address, spec: str, *, timeout: float
    ) -> None:
        """Restore the state into a running container, and verify what arrived there.

        Raises CheckpointCorrupt, StateHookFailed, CheckpointUnsupported if the spec has no state
        hook, and a Retryable if it is not known whether the state arrived.
        """
        hook = specs.load(spec).get("state_hook")
        if not hook:
            raise errors.CheckpointUnsupported(
                "the container's spec has no state_hook, which a restore needs"
            )
        whole = whole_of(checkpoint)
        try:
            async with aclosing(self.reader.state(checkpoint, whole)) as pieces:
                arrived = await self._states.restore(where, hook, pieces, timeout=timeout)
        except Damaged as error:
            # The checkpoint was verified before the restore. check() reads it once more. It raises
            # CheckpointCorrupt if the stored bytes are damaged. If it returns, only this read was.
            await self.reader.check(checkpoint)
            raise errors.StorageUnavailable(
                f"the checkpoint could not be read ({error}); try again"
            ) from error
        if arrived != whole:
            raise errors.ProviderUnavailable(
                "the state that arrived in the container differs from the saved one; try again"
            )

    async def volume_from(self, checkpoint: Checkpoint, session: Session, *, timeout: float) -> str:
        """Create a volume from the checkpoint's snapshot, for the session's generation, and wait
        until it is ready. Returns its id.

        The row of the volume is committed before the provider is called. If this replica dies in
        between, the next start finds the volume by its name. If no start uses the volume,
        `VolumeDeletion` finds it by its row and deletes it. Raises VolumeAbsent if the provider
        reports that the snapshot does not exist, and the other errors of `Volumes`.
        """
        mounted = str(specs.load(checkpoint.spec)["mounts"][0]["volume_id"])
        until = monotonic() + timeout
        try:
            like = await self._volumes.get(checkpoint.app, mounted, timeout=timeout)
        except errors.ProviderRefused:
            # The volume is gone, but its snapshots still exist. Without a size in the request, the
            # provider takes the size from the snapshot.
            like = Volume(mounted, "", "", 0, ready=False)
        name = _volume_name(session, checkpoint)
        wanted = Wanted(
            checkpoint.app,
            name,
            session.session_id,
            session.generation,
            checkpoint.checkpoint_id,
        )
        await checkpoint_volumes.want(self._database, wanted)
        created = await self._volumes.create_from(
            checkpoint.app, name, like, checkpoint.object or "", timeout=until - monotonic()
        )
        await checkpoint_volumes.note(self._database, wanted, created.volume_id)
        while not created.ready:
            await asyncio.sleep(PAUSE)
            left = until - monotonic()
            created = await self._volumes.get(checkpoint.app, created.volume_id, timeout=left)
        return created.volume_id

    async def is_gone(self, checkpoint: Checkpoint, *, timeout: float) -> bool:
        """Whether the provider's listing of snapshots lacks this one. Raises as `Volumes` does."""
        mounted = str(specs.load(checkpoint.spec)["mounts"][0]["volume_id"])
        try:
            listed = await self._volumes.snapshots(checkpoint.app, mounted, timeout=timeout)
        except errors.VolumeAbsent:
            return True
        return all(each.snapshot_id != checkpoint.object or each.lost for each in listed)


def _volume_name(session: Session, checkpoint: Checkpoint) -> str:
    """The name of the volume of a session's generation that is restored from a checkpoint.

    The name is the same at each attempt, so that a later attempt finds the volume that an earlier
    one created. It contains part of the checkpoint's id, so that no attempt finds the volume of
    another checkpoint. Fly allows 30 characters: lower-case letters, digits and underscores.
    """
    suffix = checkpoint.checkpoint_id.hex[-10:]
    return f"r{session.session_id.hex[-10:]}_{suffix}_{session.generation}"


def required_kind(session: Session, asked: Kind | None) -> Kind:
    """How to save the session's state: as asked, else as its spec allows.

    Raises CheckpointUnsupported.
    """
    spec = specs.load(session.spec)
    kind = asked or kind_for(spec)
    if kind is None:
        raise errors.CheckpointUnsupported(
            "the container's spec has neither a state_hook nor a mount, so its state cannot be "
            "saved; start with mode FRESH and a spec that has one"
        )
    if not supports(spec, kind):
        missing = "state_hook" if kind is Kind.APPLICATION else "mount"
        raise errors.CheckpointUnsupported(f"the container's spec has no {missing}")
    return kind


def usable(checkpoint: Checkpoint | None) -> Checkpoint:
    """The checkpoint, if it can be restored.

    Raises CheckpointMissing, CheckpointNotReady, CheckpointCorrupt.
    """
    if checkpoint is None:
        raise errors.CheckpointMissing(
            "the checkpoint does not exist, or was deleted; ListCheckpoints lists those that exist"
        )
    if checkpoint.failure == errors.CheckpointCorrupt.reason:
        raise corrupt(checkpoint)
    if not checkpoint.ready:
        raise errors.CheckpointNotReady(
            f"checkpoint {checkpoint.number} is {checkpoint.state}; restore one that is READY",
            {"state": checkpoint.state},
        )
    return checkpoint


def build(
    database: Database,
    states: States,
    volumes: Volumes,
    bucket: Bucket | None,
    settings: CheckpointSettings,
    *,
    deletes: bool = True,
) -> Vault:
    """The vault with its parts. `deletes` is False on a copy of the database: the objects in the
    bucket and the volumes at the provider belong to the original, and are not deleted.
    """
    reader = Reader(database, bucket)
    retention = Retention(database, bucket if deletes else None)
    saver = Saver(database, states, volumes, bucket, reader, retention, settings)
    deletion = VolumeDeletion(database, volumes, settings.volume_age, deletes=deletes)
    return Vault(database, states, volumes, saver, reader, retention, deletion)
