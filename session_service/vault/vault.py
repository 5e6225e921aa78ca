"""The vault: what transitions need of checkpoints. Saves within a transition, checks, restores."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from time import monotonic
from typing import TYPE_CHECKING

import uuid_utils.compat as uuids

from session_service import errors
from session_service.domain import policy as policies
from session_service.domain import spec as specs
from session_service.domain.checkpoint import Kind, Place, kind_for, supports
from session_service.ports import Volume
from session_service.storage import checkpoint_lists, checkpoint_outcomes, checkpoints, volumes
from session_service.storage.checkpoints import AlreadyWriting, NewCheckpoint
from session_service.storage.volumes import Wanted
from session_service.vault.clearing import Clearing
from session_service.vault.packing import Damaged
from session_service.vault.reading import Reader, corrupt, whole_of
from session_service.vault.retention import Retention
from session_service.vault.saving import Saver

if TYPE_CHECKING:
    from uuid import UUID

    from session_service.domain.checkpoint import Checkpoint, Reason
    from session_service.domain.session import Session
    from session_service.ports import Address, Bucket, States, Volumes
    from session_service.storage.database import Database
    from session_service.storage.decisions import NewDecision
    from session_service.vault.saving import Habits

#: A new checkpoint that finds another just being written looks again so often, and so long after.
TRIES = 3
PAUSE = 0.2


class Vault:
    """Saves and restores state, for transitions and for calls."""

    def __init__(
        self,
        database: Database,
        states: States,
        volumes: Volumes,
        saver: Saver,
        reader: Reader,
        retention: Retention,
        clearing: Clearing,
    ) -> None:
        self._database = database
        self._states = states
        self._volumes = volumes
        self.clearing = clearing
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
        """Save the state within the session's transition, by its owner, under its epoch.

        What is still being written of the session, by a call or by an owner that is gone, is FAILED
        first. Raises errors.RoostError; then nothing is READY that was not before.
        """
        kind = required_kind(session, kind)
        for _ in range(TRIES):
            for left in await checkpoint_outcomes.supersede(
                self._database, session.session_id, session.epoch
            ):
                await self.retention.clean(left)
            new = self._new(session, kind, reason, decision_id=session.decision_id)
            try:
                begun = await checkpoints.begin(self._database, new)
            except AlreadyWriting:
                await asyncio.sleep(PAUSE)
                continue
            if begun is None:
                raise errors.SessionStateConflict("the session changed while it was to be saved")
            return await self.write(begun, where, session, timeout=timeout)
        raise errors.ProviderUnavailable("another checkpoint is being written; try again")

    async def begin(
        self,
        session: Session,
        kind: Kind,
        reason: Reason,
        label: str = "",
        decision: NewDecision | None = None,
    ) -> Checkpoint | None:
        """Commit the want of a checkpoint of a session that has settled, with the decision of the
        call that asks for it, where one does.

        None where the session changed, or the request id is taken. Raises AlreadyWriting.
        """
        decision_id = None if decision is None else decision.decision_id
        new = self._new(session, kind, reason, label, decision_id)
        return await checkpoints.begin(self._database, new, decision)

    async def write(
        self,
        begun: Checkpoint,
        where: Address,
        session: Session,
        *,
        timeout: float,
        answers: bool = False,
    ) -> Checkpoint:
        """See a checkpoint through that was begun; see `Saver.save`."""
        keep = policies.load(session.policy).keep_checkpoints
        return await self._saver.save(
            begun, where, epoch=session.epoch, keep=keep, timeout=timeout, answers=answers
        )

    def _new(
        self,
        session: Session,
        kind: Kind,
        reason: Reason,
        label: str = "",
        decision_id: UUID | None = None,
    ) -> NewCheckpoint:
        return NewCheckpoint(
            uuids.uuid7(),
            session.session_id,
            session.epoch,
            kind,
            reason,
            Place.DATABASE if kind is Kind.APPLICATION else Place.PROVIDER,
            self._saver.habits.lease,
            label,
            decision_id,
        )

    async def head(self, session: Session) -> Checkpoint | None:
        """The checkpoint that the session's state descends from; None where it has none."""
        if session.checkpoint_id is None:
            return None
        return await checkpoint_lists.get(self._database, session.tenant, session.checkpoint_id)

    # --- restoring -----------------------------------------------------------------------------

    async def find(self, tenant: str, checkpoint_id: UUID) -> Checkpoint:
        """A checkpoint to restore. Raises CheckpointMissing, -NotReady, -Corrupt."""
        checkpoint = await checkpoint_lists.get(self._database, tenant, checkpoint_id)
        return usable(checkpoint)

    async def check(self, checkpoint: Checkpoint) -> None:
        """Read it all before anybody relies on it. Raises CheckpointCorrupt, StorageUnavailable."""
        await self.reader.check(checkpoint)

    async def restore(
        self, checkpoint: Checkpoint, where: Address, spec: str, *, timeout: float
    ) -> None:
        """Put the state into a container that runs; return only where what arrived there is what
        was saved. Raises CheckpointCorrupt, StateHookFailed, or a Retryable where that is unknown.
        """
        hook = specs.load(spec).get("state_hook")
        if not hook:
            raise errors.CheckpointUnsupported(
                "the container's spec has no state_hook to put the state in by"
            )
        whole = whole_of(checkpoint)
        try:
            async with aclosing(self.reader.state(checkpoint, whole)) as pieces:
                arrived = await self._states.restore(where, hook, pieces, timeout=timeout)
        except Damaged as error:
            # It was whole a moment ago: only what is found damaged again is.
            await self.reader.check(checkpoint)
            raise errors.StorageUnavailable(
                f"the checkpoint could not be read this time ({error}); try again"
            ) from error
        if arrived != whole:
            raise errors.ProviderUnavailable(
                "what arrived in the container is not what was saved; try again"
            )

    async def volume_from(self, checkpoint: Checkpoint, session: Session, *, timeout: float) -> str:
        """The id of a new volume with what was in the snapshot, for the session's generation.

        Raises VolumeAbsent where the provider says that there is no such snapshot.
        """
        mounted = str(specs.load(checkpoint.spec)["mounts"][0]["volume_id"])
        until = monotonic() + timeout
        try:
            like = await self._volumes.get(checkpoint.app, mounted, timeout=timeout)
        except errors.ProviderRefused:
            # It is gone; its snapshots are not, and know its size.
            like = Volume(mounted, "", "", 0, ready=False)
        name = _volume_name(session, checkpoint)
        wanted = Wanted(
            checkpoint.app,
            name,
            session.session_id,
            session.generation,
            checkpoint.checkpoint_id,
        )
        await volumes.want(self._database, wanted)
        made = await self._volumes.create_from(
            checkpoint.app, name, like, checkpoint.object or "", timeout=until - monotonic()
        )
        await volumes.note(self._database, wanted, made.volume_id)
        while not made.ready:
            await asyncio.sleep(PAUSE)
            left = until - monotonic()
            made = await self._volumes.get(checkpoint.app, made.volume_id, timeout=left)
        return made.volume_id

    async def is_gone(self, checkpoint: Checkpoint, *, timeout: float) -> bool:
        """Whether the provider's own listing lacks the snapshot, too. Raises as `Volumes` does."""
        mounted = str(specs.load(checkpoint.spec)["mounts"][0]["volume_id"])
        try:
            listed = await self._volumes.snapshots(checkpoint.app, mounted, timeout=timeout)
        except errors.VolumeAbsent:
            return True
        return all(each.snapshot_id != checkpoint.object or each.lost for each in listed)


def _volume_name(session: Session, checkpoint: Checkpoint) -> str:
    """The name of the volume that a session's generation is to have of a checkpoint. By it a volume
    that was made already is found again: never that of another checkpoint. Up to 30 lower-case
    letters, digits and underscores (Fly).
    """
    of = checkpoint.checkpoint_id.hex[-10:]
    return f"r{session.session_id.hex[-10:]}_{of}_{session.generation}"


def required_kind(session: Session, asked: Kind | None) -> Kind:
    """How the session's state is to be saved. Raises CheckpointUnsupported."""
    spec = specs.load(session.spec)
    kind = asked or kind_for(spec)
    if kind is None:
        raise errors.CheckpointUnsupported(
            "the container's spec has neither a state_hook nor a mount, so that nothing says how "
            "to save its state; start with mode FRESH and a spec that has one"
        )
    if not supports(spec, kind):
        lacking = "state_hook" if kind is Kind.APPLICATION else "mount"
        raise errors.CheckpointUnsupported(f"the container's spec has no {lacking}")
    return kind


def usable(checkpoint: Checkpoint | None) -> Checkpoint:
    """A checkpoint that can be restored. Raises CheckpointMissing, -NotReady, -Corrupt."""
    if checkpoint is None:
        raise errors.CheckpointMissing(
            "no such checkpoint, or it was deleted; ListCheckpoints shows those that are there"
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
    habits: Habits,
    *,
    deletes: bool = True,
) -> Vault:
    """The vault, wired; `deletes` says whether what is outside is ours to delete: objects in the
    bucket, volumes at the provider.
    """
    reader = Reader(database, bucket)
    retention = Retention(database, bucket if deletes else None)
    saver = Saver(database, states, volumes, bucket, reader, retention, habits)
    clearing = Clearing(database, volumes, habits.volume_age, deletes=deletes)
    return Vault(database, states, volumes, saver, reader, retention, clearing)
