"""The operations on volumes: each checks and commits; the volume store copies in the background."""

import time
from dataclasses import dataclass

from local.fly import errors, ids, regions
from local.fly.clock import rfc3339_now, unix_ms
from local.fly.errors import ApiError
from local.fly.faults import FaultContext, Faults
from local.fly.logs import ActionLog
from local.fly.records.volume_records import GB, SnapshotRecord, VolumeRecord
from local.fly.settings import Settings
from local.fly.volumes.volume_store import VolumeStore

SIZE_GB, SIZE_MAX_GB = 3, 500
RETENTION_DAYS = 5
RETENTION_MAX_DAYS = 60


@dataclass(frozen=True)
class VolumeRequest:
    """The requested properties of a new volume; zero and empty mean Fly's default."""

    name: str
    region: str = ""
    size_gb: int = 0
    encrypted: bool = True
    fstype: str = "ext4"
    snapshot_id: str = ""
    source_volume_id: str = ""
    retention: int = RETENTION_DAYS
    auto_backup: bool = True
    unique_zone: bool = True
    """Whether to place it on a host that has no volume of the same name of this app."""
    app_wide: bool = False
    """Whether `unique_zone` applies to volumes of any name."""


class Volumes:
    """Create, change and delete volumes."""

    def __init__(
        self, settings: Settings, volume_store: VolumeStore, actions: ActionLog, faults: Faults
    ):
        self._settings = settings
        self._volume_store = volume_store
        self._actions = actions
        self._faults = faults

    def create(self, app: str, request: VolumeRequest) -> VolumeRecord:
        """Create a volume: empty, from a snapshot, or as a fork of another volume."""
        size_gb, state, source = self._origin(app, request)
        if self._faults.fire("capacity", FaultContext("volume_create", app)):
            raise errors.no_room_for_volume()
        region = regions.place(request.region, self._settings.region)
        record = VolumeRecord(
            id=ids.volume_id(),
            app=app,
            name=request.name,
            region=region,
            zone=self._zone(app, request, region),
            size_gb=size_gb,
            state=state,
            created_at=rfc3339_now(),
            created_ms=unix_ms(),
            encrypted=request.encrypted,
            fstype=request.fstype,
            snapshot_retention=request.retention,
            auto_backup_enabled=request.auto_backup,
            source=source,
        )
        self._volume_store.add(record)
        self._log(record, "volume_create", {"source": source} if source else {})
        if source:
            self._volume_store.fill(record)
        return record

    def update(
        self, record: VolumeRecord, retention: int | None, auto_backup: bool | None
    ) -> VolumeRecord:
        """Change the backup settings; None leaves one unchanged."""
        if retention is not None:
            record.snapshot_retention = checked_retention(retention)
        if auto_backup is not None:
            record.auto_backup_enabled = auto_backup
        self._volume_store.save(record)
        return record

    def extend(self, record: VolumeRecord, size_gb: int) -> VolumeRecord:
        """Extend the volume. Raises a 400 for a smaller size."""
        if size_gb < record.size_gb:
            raise ApiError(400, "invalid_argument: a volume can only be extended, not shrunk")
        record.size_gb = _checked_size(size_gb)
        self._volume_store.save(record)
        self._log(record, "volume_extend", {"size_gb": size_gb})
        return record

    def delete(self, record: VolumeRecord) -> VolumeRecord:
        """Delete the volume. Its snapshots stay until their retention ends."""
        if record.machine:
            raise errors.volume_bound(record.machine)
        record.state = "pending_destroy"
        record.deleted_s = time.time()
        self._volume_store.save(record)
        self._log(record, "volume_destroy", {})
        self._volume_store.delete_unused_files(record)
        return record

    def remove_app(self, app: str) -> None:
        """Remove the volumes of a deleted app."""
        for record in self._volume_store.all():
            if record.app == app:
                self._volume_store.remove(record)

    def _origin(self, app: str, request: VolumeRequest) -> tuple[int, str, str]:
        """Size, first state, and the id of the snapshot or volume to copy from."""
        if request.snapshot_id and request.source_volume_id:
            raise ApiError(400, "invalid_argument: snapshot_id and source_volume_id exclude")
        if request.snapshot_id:
            snapshot = self._finished(request.snapshot_id)
            least = snapshot.volume_size // GB
            return _at_least(request.size_gb, least), "restoring", request.snapshot_id
        if request.source_volume_id:
            least = self._volume_store.live(app, request.source_volume_id).size_gb
            return _at_least(request.size_gb, least), "hydrating", request.source_volume_id
        return _checked_size(request.size_gb or SIZE_GB), "created", ""

    def _zone(self, app: str, request: VolumeRequest, region: str) -> str:
        """The host for a volume. Raises ApiError when every host of the region is excluded."""
        if not self._settings.zones:
            return ids.zone()
        zones = [f"{number:04x}" for number in range(self._settings.zones)]
        taken = [
            one.zone
            for one in self._volume_store.all()
            if (one.app, one.region) == (app, region)
            and one.live
            and (request.app_wide or one.name == request.name)
        ]
        free = [zone for zone in zones if zone not in taken]
        if request.unique_zone and not free:
            raise errors.no_room_for_volume()
        return (free or zones)[0]

    def _finished(self, snapshot_id: str) -> SnapshotRecord:
        snapshot = self._volume_store.snapshot(snapshot_id)
        if snapshot is None or snapshot.expired(time.time()):
            raise ApiError(404, "snapshot not found")
        if snapshot.status != "created":
            raise ApiError(412, f"failed_precondition: snapshot is {snapshot.status}")
        return snapshot

    def _log(self, record: VolumeRecord, action: str, detail: dict[str, object]) -> None:
        self._actions.volume(record, action, "user", detail)


def checked_retention(days: int) -> int:
    """The days, if within Fly's limits. Raises a 400."""
    if not 1 <= days <= RETENTION_MAX_DAYS:
        raise ApiError(
            400, f"invalid_argument: snapshot_retention must be 1 to {RETENTION_MAX_DAYS} days"
        )
    return days


def _checked_size(size_gb: int) -> int:
    if not 1 <= size_gb <= SIZE_MAX_GB:
        raise ApiError(400, f"invalid_argument: size_gb must be 1 to {SIZE_MAX_GB}")
    return size_gb


def _at_least(size_gb: int, least: int) -> int:
    if size_gb and size_gb < least:
        raise ApiError(400, f"invalid_argument: size_gb must be {least} or more")
    return _checked_size(size_gb or least)
