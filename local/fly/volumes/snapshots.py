"""Snapshots: copies of a volume's files, with Fly's states."""

import asyncio
import time
from pathlib import Path

from local.fly import errors, ids
from local.fly.clock import rfc3339_now
from local.fly.logs import ActionLog, Source
from local.fly.records.volume_records import GB, UNFINISHED, SnapshotRecord, VolumeRecord
from local.fly.settings import Settings
from local.fly.volumes.folder_copies import copy_folder, digest_of, size_of
from local.fly.volumes.volume_store import VolumeStore

_LONGEST_PERIOD_S = 60.0


class Snapshots:
    """Takes snapshots, one at a time per volume."""

    def __init__(self, settings: Settings, volume_store: VolumeStore, actions: ActionLog) -> None:
        self._settings = settings
        self._volume_store = volume_store
        self._actions = actions

    def resume(self) -> None:
        """Begin again the snapshots that an earlier run did not finish."""
        for volume in self._volume_store.all():
            for snapshot in volume.snapshots:
                if snapshot.status in UNFINISHED:
                    self._begin(volume, snapshot)

    def listed(self, volume: VolumeRecord) -> list[SnapshotRecord]:
        """The snapshots whose retention has not ended, newest first."""
        now = time.time()
        return [one for one in reversed(volume.snapshots) if not one.expired(now)]

    def take(self, volume: VolumeRecord, *, automatic: bool = False) -> SnapshotRecord:
        """Schedule a snapshot. Raises ApiError while another one is being written."""
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
        self._volume_store.save(volume)
        source: Source = "flyd" if automatic else "user"
        self._actions.volume(volume, "snapshot", source, {"snapshot": snapshot.id})
        self._begin(volume, snapshot)
        return snapshot

    async def run(self) -> None:
        """Take automatic snapshots and remove expired ones, until cancelled."""
        period = self._settings.auto_backup_ms / 1000
        while True:
            await asyncio.sleep(min(period / 2 or _LONGEST_PERIOD_S, _LONGEST_PERIOD_S))
            self.run_once(period)

    def run_once(self, period: float) -> None:
        """One pass: a volume whose last automatic snapshot is `period` seconds old gets another."""
        now = time.time()
        for volume in self._volume_store.all():
            self._remove_expired(volume, now)
            if period and _backed_up(volume) and now - _last_automatic(volume) >= period:
                self.take(volume, automatic=True)

    def _remove_expired(self, volume: VolumeRecord, now: float) -> None:
        """Remove expired snapshots from which no volume is being filled."""
        sources = {one.source for one in self._volume_store.all()}
        expired = [
            one
            for one in volume.snapshots
            if one.expired(now) and one.status not in UNFINISHED and one.id not in sources
        ]
        for snapshot in expired:
            volume.snapshots.remove(snapshot)
            self._volume_store.remove_snapshot(volume, snapshot)

    def _begin(self, volume: VolumeRecord, snapshot: SnapshotRecord) -> None:
        self._volume_store.begin(self._write(volume, snapshot), f"snapshot {snapshot.id}")

    async def _write(self, volume: VolumeRecord, snapshot: SnapshotRecord) -> None:
        half = self._settings.snapshot_ms / 2000
        await asyncio.sleep(half)
        snapshot.status = "running"
        self._volume_store.save(volume)
        source = self._volume_store.files(volume.id)
        target = self._volume_store.snapshot_files(volume.id, snapshot.id)
        snapshot.size, snapshot.digest = await asyncio.to_thread(_copied, source, target)
        await asyncio.sleep(half)
        snapshot.status = "created"
        self._volume_store.save(volume)
        self._actions.volume(volume, "snapshot_created", "flyd", {"snapshot": snapshot.id})
        self._volume_store.delete_unused_files(volume)


def _backed_up(volume: VolumeRecord) -> bool:
    written = any(one.status in UNFINISHED for one in volume.snapshots)
    return volume.state == "created" and volume.auto_backup_enabled and not written


def _last_automatic(volume: VolumeRecord) -> float:
    """The time of the newest automatic snapshot, or else the volume's creation; unix seconds."""
    taken = [one.created_s for one in volume.snapshots if one.automatic]
    return max(taken, default=volume.created_ms / 1000)


def _copied(source: Path, target: Path) -> tuple[int, str]:
    """Copy a folder; return the size and the digest of the copy."""
    copy_folder(source, target)
    return size_of(target), digest_of(target)
