"""Volumes and their snapshots."""

import asyncio
import re

from local.fly import go_json
from local.fly.api import rendering
from local.fly.api.operation import Call, Operation, Reply
from local.fly.config import type_check
from local.fly.errors import ApiError
from local.fly.go_json import JsonObject
from local.fly.rate_limits import ACTION
from local.fly.records.volume_records import VolumeRecord
from local.fly.volumes.folder_copies import size_of
from local.fly.volumes.volumes import RETENTION_DAYS, VolumeRequest, checked_retention
from local.fly.wiring import Backend

_STEM = "/v1/apps/{app}/volumes"
_NAME = re.compile(r"[a-z0-9_]{1,30}")


async def create(backend: Backend, call: Call) -> Reply:
    """Create a volume: empty, from a snapshot, or as a fork."""
    backend.fleet.app(call.app)
    record = backend.volumes.create(
        call.app, _volume_request(call.json("main.createVolumeRequest"))
    )
    return Reply(200, rendering.volume(record))


async def list_(backend: Backend, call: Call) -> Reply:
    """The volumes of an app."""
    backend.fleet.app(call.app)
    found = backend.volume_store.listed(call.app)
    if call.flag("summary"):
        return Reply(200, [rendering.volume(record) for record in found])
    return Reply(200, [await _show(backend, record) for record in found])


async def list_org(backend: Backend, call: Call) -> Reply:
    """The volumes of all apps of an organisation, in one page."""
    apps = {app.name for app in backend.fleet.apps(call.path["org"])}
    found = [record for app in sorted(apps) for record in backend.volume_store.listed(app)]
    rows = [rendering.volume(record) | {"app_name": record.app} for record in found]
    return Reply(200, {"volumes": rows})


async def get(backend: Backend, call: Call) -> Reply:
    """One volume."""
    return Reply(200, await _show(backend, backend.volume_store.find(call.app, call.volume_id)))


async def update(backend: Backend, call: Call) -> Reply:
    """Change the backup settings."""
    record = backend.volume_store.live(call.app, call.volume_id)
    body = call.json("main.updateVolumeRequest")
    retention = go_json.number(body, "snapshot_retention")
    backend.volumes.update(record, retention, go_json.flag(body, "auto_backup_enabled"))
    return Reply(200, await _show(backend, record))


async def extend(backend: Backend, call: Call) -> Reply:
    """Extend the volume."""
    record = backend.volume_store.live(call.app, call.volume_id)
    size_gb = go_json.number(call.json("main.extendVolumeRequest"), "size_gb")
    if size_gb is None:
        raise ApiError(400, "invalid_argument: size_gb is required")
    backend.volumes.extend(record, size_gb)
    needs_restart = bool(record.machine) and backend.settings.extend_needs_restart
    shown = await _show(backend, record)
    return Reply(200, {"volume": shown, "needs_restart": needs_restart})


async def delete(backend: Backend, call: Call) -> Reply:
    """Delete it. The answer says `destroyed` (Fly docs); reads show `pending_destroy` for a day."""
    record = backend.volumes.delete(backend.volume_store.live(call.app, call.volume_id))
    return Reply(200, rendering.volume(record) | {"state": "destroyed"})


async def list_snapshots(backend: Backend, call: Call) -> Reply:
    """The snapshots of a volume, also of a deleted one."""
    record = backend.volume_store.ever(call.app, call.volume_id)
    return Reply(200, [rendering.snapshot(one) for one in backend.snapshots.listed(record)])


async def take_snapshot(backend: Backend, call: Call) -> Reply:
    """Schedule a snapshot."""
    record = backend.volume_store.live(call.app, call.volume_id)
    snapshot = backend.snapshots.take(record)
    return Reply(200, {"Msg": {"backup": rendering.snapshot(snapshot)}})


async def _show(backend: Backend, record: VolumeRecord) -> JsonObject:
    used = (
        await asyncio.to_thread(size_of, backend.volume_store.files(record.id))
        if record.live
        else 0
    )
    return rendering.volume(record, bytes_used=used)


def _volume_request(body: JsonObject) -> VolumeRequest:
    name = go_json.text(body, "name") or ""
    if not _NAME.fullmatch(name):
        text = "name must be 1 to 30 lower-case letters, digits and underscores"
        raise ApiError(400, f"invalid_argument: {text}")
    fstype = go_json.text(body, "fstype") or "ext4"
    if fstype not in ("ext4", "raw"):
        raise ApiError(400, "invalid_argument: fstype must be ext4 or raw")
    # Fly uses these to choose a host with capacity; here every host has it. Types are checked.
    type_check.check(
        {"guest": go_json.mapping(body, "compute"), "image": go_json.text(body, "compute_image")}
    )
    retention = go_json.number(body, "snapshot_retention")
    return VolumeRequest(
        name=name,
        region=go_json.text(body, "region") or "",
        size_gb=go_json.number(body, "size_gb") or 0,
        encrypted=_or(go_json.flag(body, "encrypted"), True),
        fstype=fstype,
        snapshot_id=go_json.text(body, "snapshot_id") or "",
        source_volume_id=go_json.text(body, "source_volume_id") or "",
        retention=RETENTION_DAYS if retention is None else checked_retention(retention),
        auto_backup=_or(go_json.flag(body, "auto_backup_enabled"), True),
        unique_zone=_or(go_json.flag(body, "require_unique_zone"), True),
        app_wide=_or(go_json.flag(body, "unique_zone_app_wide"), False),
    )


def _or(given: bool | None, default: bool) -> bool:
    return default if given is None else given


OPERATIONS = (
    Operation("volume_create", "POST", _STEM, create, rate=ACTION),
    Operation("volume_list", "GET", _STEM, list_, rate=ACTION),
    Operation("volume_list", "GET", "/v1/orgs/{org}/volumes", list_org, rate=ACTION),
    Operation("volume_get", "GET", _STEM + "/{volume}", get, rate=ACTION),
    Operation("volume_update", "PUT", _STEM + "/{volume}", update, rate=ACTION),
    Operation("volume_extend", "PUT", _STEM + "/{volume}/extend", extend, rate=ACTION),
    Operation("volume_delete", "DELETE", _STEM + "/{volume}", delete, rate=ACTION),
    Operation("snapshot_list", "GET", _STEM + "/{volume}/snapshots", list_snapshots, rate=ACTION),
    Operation("snapshot", "POST", _STEM + "/{volume}/snapshots", take_snapshot, rate=ACTION),
)
