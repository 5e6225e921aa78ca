"""The volume store: records and files of all volumes, and their background work."""

import asyncio
import logging
import time
from collections.abc import Coroutine
from pathlib import Path

from local.fly import errors
from local.fly.records.volume_records import UNFINISHED, SnapshotRecord, VolumeRecord
from local.fly.settings import Settings
from local.fly.store import Store
from local.fly.volumes.folder_copies import copy_folder

_log = logging.getLogger(__name__)

_SOFT_DELETED_S = 86_400


class VolumeStore:
    """The volumes of every app. Every change is saved in the step that makes it."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings = settings
        self._store = store
        self._volumes: dict[str, VolumeRecord] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._filled: dict[str, asyncio.Event] = {}

    def load(self, records: list[VolumeRecord], machines: set[str]) -> None:
        """Restore the records of an earlier run, and begin its unfinished copies again.

        `machines` are the ids of the live machines; claims of all others are released.
        """
        for record in records:
            self._volumes[record.id] = record
            if record.machine not in machines:
                record.machine = ""
                self.save(record)
        for record in records:
            if record.source:
                self.fill(record)

    async def close(self) -> None:
        """Cancel the background work; the next run begins it again."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def find(self, app: str, volume_id: str) -> VolumeRecord:
        """A volume of the app, also one deleted within the last day. Raises a 404."""
        record = self._volumes.get(volume_id)
        if record is None or record.app != app:
            raise errors.volume_not_found()
        if not record.live and time.time() - record.deleted_s > _SOFT_DELETED_S:
            raise errors.volume_not_found()
        return record

    def live(self, app: str, volume_id: str) -> VolumeRecord:
        """A volume of the app that is not deleted. Raises a 404."""
        record = self.find(app, volume_id)
        if not record.live:
            raise errors.volume_not_found()
        return record

    def ever(self, app: str, volume_id: str) -> VolumeRecord:
        """A volume of the app, however long deleted: its snapshots may exist. Raises a 404."""
        record = self._volumes.get(volume_id)
        if record is None or record.app != app:
            raise errors.volume_not_found()
        return record

    def all(self) -> list[VolumeRecord]:
        """Every volume, including deleted ones."""
        return list(self._volumes.values())

    def listed(self, app: str) -> list[VolumeRecord]:
        """The volumes of a listing, including those deleted within `volume_linger_ms`."""
        lingering_since = time.time() - self._settings.volume_linger_ms / 1000
        return [
            record
            for record in self._volumes.values()
            if record.app == app and (record.live or record.deleted_s > lingering_since)
        ]

    def add(self, record: VolumeRecord) -> None:
        """Add a new volume."""
        self._volumes[record.id] = record
        self._store.make_folder(self.files(record.id))
        self.save(record)

    def save(self, record: VolumeRecord) -> None:
        """Save a changed volume."""
        self._store.save_volume(record)

    def remove(self, record: VolumeRecord) -> None:
        """Remove a volume with its snapshots, when its app is deleted."""
        self._volumes.pop(record.id, None)
        self._store.remove_volume(record.id)

    def files(self, volume_id: str) -> Path:
        """The folder of a volume's files."""
        return self._store.volume_folder(volume_id) / "files"

    def snapshot_files(self, volume_id: str, snapshot_id: str) -> Path:
        """The folder of a snapshot's files."""
        return self._store.volume_folder(volume_id) / "snapshots" / snapshot_id

    def source(self, record: VolumeRecord) -> Path:
        """The folder from which a restored or forked volume is filled."""
        for volume in self._volumes.values():
            if volume.snapshot(record.source) is not None:
                return self.snapshot_files(volume.id, record.source)
        return self.files(record.source)

    def snapshot(self, snapshot_id: str) -> SnapshotRecord | None:
        """A snapshot of any volume, also of a deleted one; None if there is none."""
        found = (volume.snapshot(snapshot_id) for volume in self._volumes.values())
        return next((one for one in found if one is not None), None)

    def remove_snapshot(self, record: VolumeRecord, snapshot: SnapshotRecord) -> None:
        """Delete the files of a snapshot that was removed from its volume, and save the volume."""
        self._store.remove_folder(self.snapshot_files(record.id, snapshot.id))
        self.save(record)

    def fill(self, record: VolumeRecord) -> None:
        """Begin to copy the source's files into the volume, which then becomes `created`."""
        self._filled[record.id] = asyncio.Event()
        self.begin(self._fill(record), f"filling of {record.id}")

    async def filled(self, volume_id: str) -> None:
        """Wait until the volume is filled."""
        if volume_id in self._filled:
            await self._filled[volume_id].wait()

    def delete_unused_files(self, record: VolumeRecord) -> None:
        """Delete a deleted volume's files, unless they are still being copied."""
        copied = any(one.source == record.id for one in self._volumes.values())
        written = any(one.status in UNFINISHED for one in record.snapshots)
        if not record.live and not copied and not written:
            self._store.remove_folder(self.files(record.id))

    def begin(self, work: Coroutine[object, object, None], name: str) -> None:
        """Run a background task until it ends or the emulator ends."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    async def _fill(self, record: VolumeRecord) -> None:
        await asyncio.sleep(self._settings.volume_fill_ms / 1000)
        source, target = self.source(record), self.files(record.id)
        if source.exists():
            await asyncio.to_thread(copy_folder, source, target)
        origin = self._volumes.get(record.source)
        record.source = ""
        if record.live:
            record.state = "created"
        self.save(record)
        self._filled.pop(record.id).set()
        if origin is not None:
            self.delete_unused_files(origin)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("%s failed", task.get_name(), exc_info=task.exception())
