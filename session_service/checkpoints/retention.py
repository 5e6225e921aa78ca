"""Deletes checkpoints past their retention, and volumes that restores created.

A volume is deleted only if it has a row that was committed before the volume was requested. A
listing of the provider alone never deletes one. docs/reconcile.md lists the guards.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from session_service.domain.checkpoint import CheckpointState, Kind, Place, beyond
from session_service.errors import RoostError, StorageUnavailable, VolumeAbsent
from session_service.storage.checkpoint import reads, removal, write
from session_service.storage.checkpoint import volumes as rows

if TYPE_CHECKING:
    from collections.abc import Iterable

    from session_service.domain.checkpoint import Checkpoint
    from session_service.domain.decision import Decision
    from session_service.domain.session import Key
    from session_service.ports import Bucket, Volume, Volumes
    from session_service.storage.checkpoint.volumes import DueVolume
    from session_service.storage.database import Database


_log = logging.getLogger(__name__)

#: Checkpoints that each step of a pass handles, at most.
PASS_LIMIT = 200
#: How long the row of a FAILED checkpoint is kept.
FAILURES_KEPT = timedelta(days=7)


class Retention:
    """Deletes checkpoints: first for readers, then the bytes, then the row.

    The order makes a crash between two steps harmless. Once the row says DELETING or FAILED, no
    start restores the checkpoint. While the row exists, it says where the bytes are, so that a
    later pass can delete them.
    """

    def __init__(self, database: Database, bucket: Bucket | None) -> None:
        self._database = database
        self._bucket = bucket

    async def prune(self, key: Key, keep: int) -> None:
        """Delete the oldest checkpoints of a key beyond the newest `keep`, unless they are needed.

        Does not raise StorageUnavailable: the next save of the key prunes again.
        """
        with suppress(StorageUnavailable):
            kept = await reads.kept(self._database, key)
            # No checkpoint is excluded here: the statement of `withdraw` spares needed ones.
            for checkpoint in beyond(kept, keep, frozenset()):
                await self.delete(checkpoint)

    async def delete(self, checkpoint: Checkpoint, decision: Decision | None = None) -> bool:
        """Delete a checkpoint, and commit the call's decision with it. Returns False if the
        checkpoint is pinned or needed, or if the decision's request id is taken.

        Once it is withdrawn, True is returned even if its bytes cannot be deleted now: a later pass
        does that. Raises StorageUnavailable.
        """
        withdrawn = await removal.withdraw(self._database, checkpoint.checkpoint_id, decision)
        if withdrawn is None:
            return False
        with suppress(StorageUnavailable):
            await self.clean(withdrawn)
        return True

    async def clean(self, checkpoint: Checkpoint) -> None:
        """Delete the bytes of a checkpoint that is DELETING or FAILED. Raises StorageUnavailable.

        A snapshot at the provider is not deleted: the provider deletes it when it expires.
        """
        await write.delete(self._database, checkpoint.checkpoint_id)
        # Not by its place: that is forgotten once the bytes of a FAILED one were deleted, and its
        # writer may have stored one more part since.
        if checkpoint.kind is Kind.APPLICATION and checkpoint.object is not None:
            await self._clean_bucket(checkpoint.object, single=checkpoint.place is Place.BUCKET)
        if checkpoint.state is CheckpointState.DELETING:
            await removal.remove(self._database, checkpoint.checkpoint_id)
        else:
            await removal.note_cleaned(self._database, checkpoint.checkpoint_id)

    async def _clean_bucket(self, name: str, *, single: bool) -> None:
        """Delete the checkpoint's parts; with `single`, its one object."""
        if self._bucket is None:
            raise StorageUnavailable("no bucket is configured here to delete an object from")
        for each in [name] if single else await self._bucket.list(name):
            await self._bucket.delete(each)

    async def shot(self) -> int:
        """One pass: checkpoints whose writer is gone, old failures, and bytes that are left over.
        Returns of how many checkpoints the bytes were deleted.

        Raises StorageUnavailable.
        """
        await write.fail_expired(self._database)
        for checkpoint_id in await removal.old_failures(self._database, FAILURES_KEPT, PASS_LIMIT):
            await removal.withdraw(self._database, checkpoint_id)
        deleted = 0
        for checkpoint in await removal.find_uncleaned(self._database, PASS_LIMIT):
            try:
                await self.clean(checkpoint)
                deleted += 1
            except StorageUnavailable as error:
                _log.warning(
                    "the bytes of a checkpoint could not be deleted yet: %s",
                    error,
                    extra={"action": "retention", "checkpoint_id": str(checkpoint.checkpoint_id)},
                )
        return deleted


#: Rows of volumes that one pass checks, at most.
VOLUMES_PER_PASS = 100
#: Volumes that one pass tries to delete, at most.
DELETE_LIMIT = 10
#: Timeout of one provider call, in s.
TIMEOUT = 10.0
#: A volume that the listing lacked in so many tries was never created: its row is deleted.
ABSENT_TRIES = 3


@dataclass(slots=True)
class DeletedVolumes:
    """What one pass checked and deleted."""

    checked: int = 0
    """How many rows of volumes were checked."""
    deleted: list[str] = field(default_factory=list)
    """The ids of the volumes that were deleted."""


class VolumeDeletion:
    """Deletes volumes that restores created and that no session needs, a few in a pass."""

    def __init__(
        self, database: Database, volumes: Volumes, min_age: timedelta, *, deletes: bool
    ) -> None:
        """`min_age` is how old a volume must be. `deletes` is False on a copy of the database,
        whose volumes belong to the original: then nothing is deleted.
        """
        self._database = database
        self._volumes = volumes
        self._min_age = min_age
        self._deletes = deletes

    async def shot(self) -> DeletedVolumes:
        """One pass over the volumes that are due. Raises StorageUnavailable."""
        result = DeletedVolumes()
        if not self._deletes:
            return result
        unneeded: dict[str, list[DueVolume]] = defaultdict(list)
        left = DELETE_LIMIT
        while left and result.checked < VOLUMES_PER_PASS:
            # At most as many as can still be tried: this read postpones each of its rows, and
            # more and more the rows of volumes that are not needed.
            found = await rows.claim_due(self._database, self._min_age, left)
            result.checked += len(found)
            for row in [row for row in found if not row.needed]:
                unneeded[row.app].append(row)
                left -= 1
            if not found:
                break
        for app, of_app in unneeded.items():
            await self._delete_of_app(app, of_app, result)
        return result

    async def _delete_of_app(
        self, app: str, unneeded: Iterable[DueVolume], result: DeletedVolumes
    ) -> None:
        """Delete the volumes of an app. They are looked up by name in one listing, which also has
        volumes that were created twice, and volumes whose id was never recorded.
        """
        try:
            listed = await self._volumes.listed(app, timeout=TIMEOUT)
        except RoostError as error:
            _log.warning(
                "volumes could not be listed: %s",
                error,
                extra={"action": "delete_volumes", "app": app},
            )
            return
        for row in unneeded:
            try:
                await self._delete(row, listed, result)
            except RoostError as error:
                _log.info(
                    "a volume that no session needs was not deleted yet: %s",
                    error,
                    extra={"action": "delete_volumes", "app": app, "volume": row.name},
                )

    async def _delete(
        self, row: DueVolume, listed: Iterable[Volume], result: DeletedVolumes
    ) -> None:
        created = {volume.volume_id for volume in listed if volume.name == row.name}
        if row.volume_id is not None:
            created.add(row.volume_id)
        used = {volume_id for volume_id in created if await self._is_used(row.app, volume_id)}
        for volume_id in sorted(created - used):
            await self._volumes.delete(row.app, volume_id, timeout=TIMEOUT)
            result.deleted.append(volume_id)
            _log.info(
                "deleted a volume that a restore created and that no session needs",
                extra={
                    "action": "delete_volumes",
                    "app": row.app,
                    "volume": row.name,
                    "volume_id": volume_id,
                    "session_id": str(row.session_id),
                },
            )
        if not used and (created or row.tries >= ABSENT_TRIES):
            await rows.remove(self._database, row.app, row.name)

    async def _is_used(self, app: str, volume_id: str) -> bool:
        """Whether a session mounts the volume, or a checkpoint depends on a snapshot of it.

        At Fly snapshots outlive their volume, but Roost does not depend on that.
        """
        if await rows.is_mounted(self._database, volume_id):
            return True
        saved = await rows.saved_of(self._database, app, volume_id)
        if any(writing for writing, _ in saved):
            return True
        if not saved:
            return False
        try:
            listed = await self._volumes.snapshots(app, volume_id, timeout=TIMEOUT)
        except VolumeAbsent:
            return False
        existing = {snapshot.snapshot_id for snapshot in listed if not snapshot.lost}
        return any(snapshot in existing for _, snapshot in saved)
