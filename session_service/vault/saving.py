"""Saving state: WRITING under a lease, READY once it is durable and proved, or else FAILED."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from time import monotonic
from typing import TYPE_CHECKING

from session_service import errors
from session_service.domain import spec as specs
from session_service.domain.checkpoint import Kind, Place
from session_service.ports import Address, ContainerAbsent, LeaseHeld, LeaseLost
from session_service.storage import checkpoint_lists, checkpoint_outcomes, checkpoints
from session_service.storage.checkpoint_outcomes import Proved
from session_service.vault.packing import Damaged, Packer
from session_service.vault.writing import Superseded, Writer

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from uuid import UUID

    from session_service.domain.checkpoint import Checkpoint
    from session_service.ports import Bucket, States, Volumes
    from session_service.storage.database import Database
    from session_service.vault.reading import Reader
    from session_service.vault.retention import Retention

_log = logging.getLogger(__name__)

#: Between looks at a snapshot that the provider is still making, in s.
SNAPSHOT_PAUSE = 0.5


@dataclass(frozen=True, slots=True)
class Habits:
    """How checkpoints are kept."""

    prefix: str = "roost"
    """Of the objects' names in the bucket."""
    database_limit: int = 16 * 1024 * 1024
    """The most stored bytes of one checkpoint that the database takes."""
    lease: timedelta = timedelta(seconds=10)
    """How long a writer may be silent."""
    volume_age: timedelta = timedelta(minutes=10)
    """How old a volume that a restore made must be to be deleted."""


class Saver:
    """Saves the state of containers that run."""

    def __init__(
        self,
        database: Database,
        states: States,
        volumes: Volumes,
        bucket: Bucket | None,
        reader: Reader,
        retention: Retention,
        habits: Habits,
    ) -> None:
        self._database = database
        self._states = states
        self._volumes = volumes
        self._bucket = bucket
        self._reader = reader
        self._retention = retention
        self.habits = habits

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
        """Write a checkpoint that was begun; it is READY, or FAILED and its bytes are gone.

        `epoch` is the session's when it was begun, `keep` how many the key keeps; with `answers`
        the decision that it is for is finished in the same commit. Raises errors.RoostError, and
        SessionStateConflict where somebody else said FAILED meanwhile.
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
            # Cancelled: the transition is another's now, or this replica stops. Or a fault.
            await asyncio.shield(self._failed(checkpoint, None))
            raise
        await self._retention.prune(saved.key, keep)
        return saved

    async def _leased(self, checkpoint: Checkpoint, work: Awaitable[Checkpoint]) -> Checkpoint:
        """The work, for as long as the lease is held."""
        job, over = asyncio.ensure_future(work), asyncio.Event()
        beating = self._beat(checkpoint.checkpoint_id, over)
        beat = asyncio.create_task(beating, name="checkpoint lease")
        try:
            await asyncio.wait({job, beat}, return_when=asyncio.FIRST_COMPLETED)
            if not job.done() and not await self._is_ready(checkpoint):
                raise Superseded
            return await job
        finally:
            job.cancel()
            # Told and not cancelled: a statement that is cut off costs a connection.
            over.set()
            await asyncio.wait({job, beat}, timeout=5)

    async def _is_ready(self, checkpoint: Checkpoint) -> bool:
        """Whether the lease is not to be had because its work was done in the same moment."""
        found = await checkpoint_lists.get(
            self._database, checkpoint.tenant, checkpoint.checkpoint_id
        )
        return found is not None and found.ready

    async def _beat(self, checkpoint_id: UUID, over: asyncio.Event) -> None:
        """Renew until the work is over or the lease lost: refused, or not confirmed for as long as
        it lasts.
        """
        lease = self.habits.lease
        confirmed = monotonic()
        while monotonic() - confirmed < lease.total_seconds():
            with suppress(TimeoutError):
                async with asyncio.timeout(lease.total_seconds() * 0.3):
                    await over.wait()
                    return
            asked = monotonic()
            with suppress(errors.StorageUnavailable):
                if not await checkpoints.renew(self._database, checkpoint_id, lease):
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
            saved = await checkpoint_outcomes.ready(
                self._database, checkpoint.checkpoint_id, proved, epoch=epoch, answers=answers
            )
        if saved is None:
            raise Superseded
        return saved

    async def _application(self, checkpoint: Checkpoint, where: Address, until: float) -> Proved:
        """Capture, compress, store, and read back."""
        name = f"{self.habits.prefix}/{checkpoint.checkpoint_id}"
        writer = Writer(
            self._database,
            self._bucket,
            checkpoint.checkpoint_id,
            name,
            self.habits.database_limit,
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
                f"what was read back of the checkpoint is not what was written ({error}); try again"
            ) from error
        return Proved(whole.size_bytes, writer.stored, whole.sha256)

    async def _volume(self, checkpoint: Checkpoint, until: float) -> Proved:
        """A snapshot at the provider, once it says that it is whole."""
        volume_id = str(specs.load(checkpoint.spec)["mounts"][0]["volume_id"])
        begun = await self._volumes.snapshot(checkpoint.app, volume_id, timeout=until - monotonic())
        noted = await checkpoints.move(
            self._database, checkpoint.checkpoint_id, Place.PROVIDER, begun.snapshot_id, None
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
        """Say FAILED and take the bytes away; what cannot be done now the janitor does."""
        reason = "INTERRUPTED" if error is None else error.reason
        if error is not None:
            _log.warning(
                "a checkpoint was not taken: %s",
                error,
                extra={"action": "save", "checkpoint_id": str(checkpoint.checkpoint_id)},
            )
        with suppress(errors.RoostError):
            failed = await checkpoint_outcomes.fail(
                self._database, checkpoint.checkpoint_id, reason
            )
            if failed is not None:
                await self._retention.clean(failed)


def _translated(error: Exception) -> errors.RoostError:
    """The refusal that a save which broke off is told as."""
    if isinstance(error, Superseded):
        return errors.SessionStateConflict(
            "the session was put to rest, or its writer's lease ran out, while it was being saved"
        )
    if isinstance(error, TimeoutError):
        return errors.ProviderUnavailable("saving took longer than it may; try again")
    return errors.ProviderUnavailable(f"{error}; try again")


def _loop_time(until: float) -> float:
    """A monotonic time on the event loop's clock."""
    return asyncio.get_running_loop().time() + until - monotonic()
