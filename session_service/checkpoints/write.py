"""Writes checkpoints: WRITING under a lease, then READY once durable and verified, or FAILED."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from time import monotonic
from typing import TYPE_CHECKING

from session_service import errors
from session_service.checkpoints.stream import Damaged, Packer, Superseded, Writer
from session_service.domain import spec as specs
from session_service.domain.checkpoint import CheckpointState, Kind, Place
from session_service.ports import Address, ContainerAbsent, LeaseHeld, LeaseLost
from session_service.storage.checkpoint import reads, write
from session_service.storage.checkpoint.write import Proved

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from uuid import UUID

    from session_service.checkpoints.retention import Retention
    from session_service.checkpoints.stream import Reader
    from session_service.domain.checkpoint import Checkpoint
    from session_service.ports import Bucket, States, Volumes
    from session_service.storage.database import Database

_log = logging.getLogger(__name__)

#: Time between two reads of a snapshot that the provider is creating, in s.
SNAPSHOT_PAUSE = 0.5


@dataclass(frozen=True, slots=True)
class CheckpointSettings:
    """Settings of writing and deleting checkpoints."""

    prefix: str = "roost"
    """The prefix of the names of objects in the bucket."""
    database_limit: int = 16 * 1024 * 1024
    """The largest compressed size, in bytes, of a checkpoint in the database. A larger one is
    stored in the bucket."""
    lease: timedelta = timedelta(seconds=10)
    """The duration of a writer's lease. A writer that has not renewed it for so long counts as
    dead."""
    volume_age: timedelta = timedelta(minutes=10)
    """A volume that a restore created is deleted only if it is older, and no session needs it."""


class Saver:
    """Saves the state of running containers."""

    def __init__(
        self,
        database: Database,
        states: States,
        volumes: Volumes,
        bucket: Bucket | None,
        reader: Reader,
        retention: Retention,
        settings: CheckpointSettings,
    ) -> None:
        self._database = database
        self._states = states
        self._volumes = volumes
        self._bucket = bucket
        self._reader = reader
        self._retention = retention
        self.settings = settings

    async def save(
        self,
        checkpoint: Checkpoint,
        where: Address,
        *,
        epoch: int,
        keep: int,
        timeout: float,
        answers: bool = False,
    ) -> Checkpoint:
        """Write a checkpoint that is WRITING. The checkpoint is READY when this returns.

        If this raises, the checkpoint becomes FAILED and its bytes are deleted: at once, or by the
        retention pass if the database or the bucket does not answer now. There is one exception: if
        the commit of READY succeeded and only its answer was lost, the checkpoint stays READY.

        `epoch` is the session's epoch at the beginning of the save. `keep` is how many checkpoints
        the key keeps. With `answers`, the commit that makes it READY also finishes its decision.
        `timeout` is in s. Raises errors.RoostError: SessionStateConflict if the checkpoint was
        marked FAILED meanwhile, by a transition of the session or because the lease ran out.
        """
        until = monotonic() + timeout
        try:
            work = self._write(checkpoint, where, until, epoch, answers)
            saved = await self._leased(checkpoint, work)
        except (Superseded, TimeoutError, ContainerAbsent, LeaseHeld, LeaseLost) as error:
            raised = _translated(error)
            await self._failed(checkpoint, raised)
            raise raised from error
        except errors.RoostError as error:
            await self._failed(checkpoint, error)
            raise
        except BaseException:
            # This task was cancelled (another replica owns the transition now, or this replica
            # stops), or the code has a bug. The shield lets the row become FAILED at once. Without
            # it the row would stay WRITING until its lease runs out, and until then the session
            # could have no other checkpoint.
            await asyncio.shield(self._failed(checkpoint, None))
            raise
        await self._retention.prune(saved.key, keep)
        return saved

    async def _leased(self, checkpoint: Checkpoint, work: Awaitable[Checkpoint]) -> Checkpoint:
        """Run the work while the lease is renewed, and cancel it once the lease is lost.

        A writer that lost its lease must stop: another replica may have marked the checkpoint
        FAILED and may be deleting its bytes. One case looks like a lost lease and is none. The
        commit that makes the checkpoint READY also ends the lease, so a renewal at that moment is
        rejected before the work has returned. `_is_ready` tells the two apart.
        """
        job, over = asyncio.ensure_future(work), asyncio.Event()
        renewing = self._renew(checkpoint.checkpoint_id, over)
        renewal = asyncio.create_task(renewing, name="checkpoint lease")
        try:
            await asyncio.wait({job, renewal}, return_when=asyncio.FIRST_COMPLETED)
            if not job.done() and not await self._is_ready(checkpoint):
                raise Superseded
            return await job
        finally:
            job.cancel()
            # The renewal is asked to end instead of cancelled: cancelling a statement that is
            # running would cost its connection.
            over.set()
            await asyncio.wait({job, renewal}, timeout=5)

    async def _is_ready(self, checkpoint: Checkpoint) -> bool:
        """Whether the lease cannot be renewed because the checkpoint is READY."""
        found = await reads.get(self._database, checkpoint.tenant, checkpoint.checkpoint_id)
        return found is not None and found.ready

    async def _renew(self, checkpoint_id: UUID, over: asyncio.Event) -> None:
        """Renew the lease until `over` is set or the lease is lost. It is lost if the row is no
        longer WRITING, or if no renewal succeeded for the duration of the lease.
        """
        lease = self.settings.lease
        confirmed = monotonic()
        while monotonic() - confirmed < lease.total_seconds():
            with suppress(TimeoutError):
                async with asyncio.timeout(lease.total_seconds() * 0.3):
                    await over.wait()
                    return
            asked = monotonic()
            with suppress(errors.StorageUnavailable):
                if not await write.renew(self._database, checkpoint_id, lease):
                    return
                confirmed = asked

    async def _write(
        self, checkpoint: Checkpoint, where: Address, until: float, epoch: int, answers: bool
    ) -> Checkpoint:
        async with asyncio.timeout_at(_loop_time(until)):
            if checkpoint.kind is Kind.APPLICATION:
                proved = await self._application(checkpoint, where, until)
            else:
                proved = await self._volume(checkpoint, until)
            saved = await write.ready(
                self._database, checkpoint.checkpoint_id, proved, epoch=epoch, answers=answers
            )
        if saved is None:
            raise Superseded
        return saved

    async def _application(self, checkpoint: Checkpoint, where: Address, until: float) -> Proved:
        """Capture the state from the application, compress and store it, and read it back."""
        name = f"{self.settings.prefix}/{checkpoint.checkpoint_id}"
        writer = Writer(
            self._database,
            self._bucket,
            checkpoint.checkpoint_id,
            name,
            self.settings.database_limit,
        )
        packer = Packer()

        async def take(piece: bytes) -> None:
            await writer.write(await packer.add(piece))

        hook = specs.load(checkpoint.spec)["state_hook"]
        whole = await self._states.capture(where, hook, take, timeout=until - monotonic())
        await writer.write(await packer.end())
        await writer.end()
        try:
            await self._reader.prove(writer.written(checkpoint), whole)
        except Damaged as error:
            raise errors.StorageUnavailable(
                f"the checkpoint could not be read back as it was written ({error}); try again"
            ) from error
        return Proved(whole.size_bytes, writer.stored, whole.sha256)

    async def _volume(self, checkpoint: Checkpoint, until: float) -> Proved:
        """Create a snapshot at the provider, and wait until the provider reports it as complete."""
        volume_id = str(specs.load(checkpoint.spec)["mounts"][0]["volume_id"])
        begun = await self._volumes.snapshot(checkpoint.app, volume_id, timeout=until - monotonic())
        noted = await write.move(
            self._database, checkpoint.checkpoint_id, Place.PROVIDER, begun.snapshot_id
        )
        if not noted:
            raise Superseded
        while True:
            listed = await self._volumes.snapshots(
                checkpoint.app, volume_id, timeout=until - monotonic()
            )
            seen = next((s for s in listed if s.snapshot_id == begun.snapshot_id), begun)
            if seen.lost:
                raise errors.ProviderUnavailable(
                    "the provider could not take the snapshot; try again"
                )
            if seen.ready:
                return Proved(seen.size_bytes, seen.size_bytes, None)
            await asyncio.sleep(SNAPSHOT_PAUSE)

    async def _failed(self, checkpoint: Checkpoint, error: errors.RoostError | None) -> None:
        """Mark the checkpoint FAILED, unless it is FAILED already, and delete its bytes. If the
        database or the bucket does not answer now, the retention pass does both later.
        """
        reason = "INTERRUPTED" if error is None else error.reason
        if error is not None:
            _log.warning(
                "a checkpoint failed: %s",
                error,
                extra={"action": "save", "checkpoint_id": str(checkpoint.checkpoint_id)},
            )
        with suppress(errors.RoostError):
            failed = await write.fail(self._database, checkpoint.checkpoint_id, reason)
            if failed is None:
                failed = await reads.get(
                    self._database, checkpoint.tenant, checkpoint.checkpoint_id
                )
            # A checkpoint that was READY, and FAILED later because it is damaged, keeps its bytes.
            if failed and failed.state is CheckpointState.FAILED and not failed.ready_time:
                await self._retention.clean(failed)


def _translated(error: Exception) -> errors.RoostError:
    """The error that callers get for a save that was cut off."""
    if isinstance(error, Superseded):
        return errors.SessionStateConflict(
            "a transition of the session, or the loss of the writer's lease, ended the save"
        )
    if isinstance(error, TimeoutError):
        return errors.ProviderUnavailable("the save did not end within its time limit; try again")
    return errors.ProviderUnavailable(f"{error}; try again")


def _loop_time(until: float) -> float:
    """A time of `time.monotonic`, on the event loop's clock."""
    return asyncio.get_running_loop().time() + until - monotonic()
