"""The verbs of volumes: each checks, commits, and leaves copying to the shelf."""

import time
from dataclasses import dataclass

from local.fly import errors, ids, regions
from local.fly.clock import rfc3339_now, unix_ms
from local.fly.errors import ApiError
from local.fly.faults import Faults, Occasion
from local.fly.log import ActionLog
from local.fly.settings import Settings
from local.fly.shelf import Shelf
from local.fly.volume_records import GB, SnapshotRecord, VolumeRecord

SIZE_GB, SIZE_MAX_GB = 3, 500
RETENTION_DAYS = 5
RETENTION_MAX_DAYS = 60


@dataclass(frozen=True)
class VolumeWish:
    """What a new volume is asked to be; zero and empty mean Fly's default."""

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
    """Whether it wants a host that has none of this app's volumes of the same name."""
    app_wide: bool = False
    """Whether volumes of any name keep it away."""


class Volumes:
    """What can be done to volumes."""

    def __init__(self, settings: Settings, shelf: Shelf, actions: ActionLog, faults: Faults):
        self._settings = settings
        self._shelf = shelf
        self._actions = actions
        self._faults = faults

    def create(self, app: str, wish: VolumeWish) -> VolumeRecord:
        """Make a volume: empty, from a snapshot, or as a fork of another volume."""
        size_gb, state, source = self._origin(app, wish)
        if self._faults.fire("capacity", Occasion("volume_create", app)):
            raise errors.no_room_for_volume()
        region = regions.place(wish.region, self._settings.region)
        record = VolumeRecord(
            id=ids.volume_id(),
            app=app,
            name=wish.name,
            region=region,
            zone=self._zone(app, wish, region),
            size_gb=size_gb,
            state=state,
            created_at=rfc3339_now(),
            created_ms=unix_ms(),
            encrypted=wish.encrypted,
            fstype=wish.fstype,
            snapshot_retention=wish.retention,
            auto_backup_enabled=wish.auto_backup,
            source=source,
        )
        self._shelf.add(record)
        self._log(record, "volume_create", {"source": source} if source else {})
        if source:
            self._shelf.fill(record)
        return record

    def update(
        self, record: VolumeRecord, retention: int | None, auto_backup: bool | None
    ) -> VolumeRecord:
        """Change how it is backed up; what is None stays."""
        if retention is not None:
            record.snapshot_retention = checked_retention(retention)
        if auto_backup is not None:
            record.auto_backup_enabled = auto_backup
        self._shelf.save(record)
        return record

    def extend(self, record: VolumeRecord, size_gb: int) -> VolumeRecord:
        """Make it larger; it is never made smaller."""
        if size_gb < record.size_gb:
            raise ApiError(400, "invalid_argument: a volume can only be extended, not shrunk")
        record.size_gb = _checked_size(size_gb)
        self._shelf.save(record)
        self._log(record, "volume_extend", {"size_gb": size_gb})
        return record

    def delete(self, record: VolumeRecord) -> VolumeRecord:
        """Delete it; its snapshots stay until their retention ends."""
        if record.machine:
            raise errors.volume_bound(record.machine)
        record.state = "pending_destroy"
        record.deleted_s = time.time()
        self._shelf.save(record)
        self._log(record, "volume_destroy", {})
        self._shelf.drop_unused_files(record)
        return record

    def forget_app(self, app: str) -> None:
        """Remove the volumes of an app that is gone."""
        for record in self._shelf.all():
            if record.app == app:
                self._shelf.forget(record)

    def _origin(self, app: str, wish: VolumeWish) -> tuple[int, str, str]:
        """Size, first state, and the id of what is to be copied into it."""
        if wish.snapshot_id and wish.source_volume_id:
            raise ApiError(400, "invalid_argument: snapshot_id and source_volume_id exclude")
        if wish.snapshot_id:
            snapshot = self._finished(wish.snapshot_id)
            least = snapshot.volume_size // GB
            return _at_least(wish.size_gb, least), "restoring", wish.snapshot_id
        if wish.source_volume_id:
            least = self._shelf.live(app, wish.source_volume_id).size_gb
            return _at_least(wish.size_gb, least), "hydrating", wish.source_volume_id
        return _checked_size(wish.size_gb or SIZE_GB), "created", ""

    def _zone(self, app: str, wish: VolumeWish, region: str) -> str:
        """The host for a volume, or the refusal where every host of the region has one already."""
        if not self._settings.zones:
            return ids.zone()
        zones = [f"{number:04x}" for number in range(self._settings.zones)]
        taken = [
            one.zone
            for one in self._shelf.all()
            if (one.app, one.region) == (app, region)
            and one.live
            and (wish.app_wide or one.name == wish.name)
        ]
        free = [zone for zone in zones if zone not in taken]
        if wish.unique_zone and not free:
            raise errors.no_room_for_volume()
        return (free or zones)[0]

    def _finished(self, snapshot_id: str) -> SnapshotRecord:
        snapshot = self._shelf.snapshot(snapshot_id)
        if snapshot is None or snapshot.expired(time.time()):
            raise ApiError(404, "snapshot not found")
        if snapshot.status != "created":
            raise ApiError(412, f"failed_precondition: snapshot is {snapshot.status}")
        return snapshot

    def _log(self, record: VolumeRecord, action: str, detail: dict[str, object]) -> None:
        self._actions.volume(record, action, "user", detail)


def checked_retention(days: int) -> int:
    """Days within what Fly keeps snapshots for, or a 400."""
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
