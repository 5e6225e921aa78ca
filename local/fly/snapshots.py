"""Snapshots: real copies of a volume's files, in Fly's states."""

import asyncio
import time
from pathlib import Path

from local.fly import errors, ids
from local.fly.clock import rfc3339_now
from local.fly.copies import copy_folder, digest_of, size_of
from local.fly.log import ActionLog, Source
from local.fly.settings import Settings
from local.fly.shelf import Shelf
from local.fly.volume_records import GB, UNFINISHED, SnapshotRecord, VolumeRecord

_SWEEP_S = 60.0


class Snapshots:
    """Takes snapshots, one at a time of a volume."""

    def __init__(self, settings: Settings, shelf: Shelf, actions: ActionLog) -> None:
        self._settings = settings
        self._shelf = shelf
        self._actions = actions

    def resume(self) -> None:
        """Begin those again that an earlier run did not finish."""
        for volume in self._shelf.all():
            for snapshot in volume.snapshots:
                if snapshot.status in UNFINISHED:
                    self._begin(volume, snapshot)

    def listed(self, volume: VolumeRecord) -> list[SnapshotRecord]:
        """Those whose retention is not over, newest first."""
        now = time.time()
        return [one for one in reversed(volume.snapshots) if not one.expired(now)]

    def take(self, volume: VolumeRecord, *, automatic: bool = False) -> SnapshotRecord:
        """Schedule one; a second while it is being written is refused."""
        for earlier in volume.snapshots:
            if earlier.status in UNFINISHED:
                raise errors.snapshot_scheduled(earlier.created_at)
        snapshot = SnapshotRecord(
            id=ids.snapshot_id(),
            created_at=rfc3339_now(),
            created_s=time.time(),
            retention_days=volume.snapshot_retention,
            volume_size=volume.size_gb * GB,
            automatic=automatic,
        )
        volume.snapshots.append(snapshot)
        self._shelf.save(volume)
        source: Source = "flyd" if automatic else "user"
        self._actions.volume(volume, "snapshot", source, {"snapshot": snapshot.id})
        self._begin(volume, snapshot)
        return snapshot

    async def run(self) -> None:
        """Take the automatic ones and remove those whose time is over, until cancelled."""
        period = self._settings.auto_backup_ms / 1000
        while True:
            await asyncio.sleep(min(period / 2 or _SWEEP_S, _SWEEP_S))
            self.sweep(period)

    def sweep(self, period: float) -> None:
        """One pass; volumes whose last automatic snapshot is `period` seconds old get another."""
        now = time.time()
        for volume in self._shelf.all():
            self._remove_expired(volume, now)
            if period and _backed_up(volume) and now - _last_automatic(volume) >= period:
                self.take(volume, automatic=True)

    def _remove_expired(self, volume: VolumeRecord, now: float) -> None:
        """Remove what nothing is being filled from any more."""
        sources = {one.source for one in self._shelf.all()}
        expired = [
            one
            for one in volume.snapshots
            if one.expired(now) and one.status not in UNFINISHED and one.id not in sources
        ]
        for snapshot in expired:
            volume.snapshots.remove(snapshot)
            self._shelf.forget_snapshot(volume, snapshot)

    def _begin(self, volume: VolumeRecord, snapshot: SnapshotRecord) -> None:
        self._shelf.begin(self._write(volume, snapshot), f"snapshot {snapshot.id}")

    async def _write(self, volume: VolumeRecord, snapshot: SnapshotRecord) -> None:
        half = self._settings.snapshot_ms / 2000
        await asyncio.sleep(half)
        snapshot.status = "running"
        self._shelf.save(volume)
        source = self._shelf.files(volume.id)
        target = self._shelf.snapshot_files(volume.id, snapshot.id)
        snapshot.size, snapshot.digest = await asyncio.to_thread(_copied, source, target)
        await asyncio.sleep(half)
        snapshot.status = "created"
        self._shelf.save(volume)
        self._actions.volume(volume, "snapshot_created", "flyd", {"snapshot": snapshot.id})
        self._shelf.drop_unused_files(volume)


def _backed_up(volume: VolumeRecord) -> bool:
    written = any(one.status in UNFINISHED for one in volume.snapshots)
    return volume.state == "created" and volume.auto_backup_enabled and not written


def _last_automatic(volume: VolumeRecord) -> float:
    """When the newest was taken; of a volume that has none yet, when that was made."""
    taken = [one.created_s for one in volume.snapshots if one.automatic]
    return max(taken, default=volume.created_ms / 1000)


def _copied(source: Path, target: Path) -> tuple[int, str]:
    """Copy; the size and the digest of the copy."""
    copy_folder(source, target)
    return size_of(target), digest_of(target)
