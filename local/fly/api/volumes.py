"""Volumes and their snapshots."""

import asyncio
import re

from local.fly import config_shape, view, wire
from local.fly.calls import Call, Operation, Reply
from local.fly.copies import size_of
from local.fly.errors import ApiError
from local.fly.limits import ACTION
from local.fly.volume_records import VolumeRecord
from local.fly.volumes import RETENTION_DAYS, VolumeWish, checked_retention
from local.fly.wire import JsonObject
from local.fly.world import World

_STEM = "/v1/apps/{app}/volumes"
_NAME = re.compile(r"[a-z0-9_]{1,30}")


async def create(world: World, call: Call) -> Reply:
    """Make a volume: empty, from a snapshot, or as a fork."""
    world.fleet.app(call.app)
    record = world.volumes.create(call.app, _wish(call.json("main.createVolumeRequest")))
    return Reply(200, view.volume(record))


async def list_(world: World, call: Call) -> Reply:
    """The volumes of an app."""
    world.fleet.app(call.app)
    found = world.shelf.listed(call.app)
    if call.flag("summary"):
        return Reply(200, [view.volume(record) for record in found])
    return Reply(200, [await _show(world, record) for record in found])


async def list_org(world: World, call: Call) -> Reply:
    """The volumes of all apps of an organisation, in one page."""
    apps = {app.name for app in world.fleet.apps(call.path["org"])}
    found = [record for app in sorted(apps) for record in world.shelf.listed(app)]
    rows = [view.volume(record) | {"app_name": record.app} for record in found]
    return Reply(200, {"volumes": rows})


async def get(world: World, call: Call) -> Reply:
    """One volume."""
    return Reply(200, await _show(world, world.shelf.find(call.app, call.volume_id)))


async def update(world: World, call: Call) -> Reply:
    """Change how it is backed up."""
    record = world.shelf.live(call.app, call.volume_id)
    body = call.json("main.updateVolumeRequest")
    retention = wire.number(body, "snapshot_retention")
    world.volumes.update(record, retention, wire.flag(body, "auto_backup_enabled"))
    return Reply(200, await _show(world, record))


async def extend(world: World, call: Call) -> Reply:
    """Make it larger."""
    record = world.shelf.live(call.app, call.volume_id)
    size_gb = wire.number(call.json("main.extendVolumeRequest"), "size_gb")
    if size_gb is None:
        raise ApiError(400, "invalid_argument: size_gb is required")
    world.volumes.extend(record, size_gb)
    needs_restart = bool(record.machine) and world.settings.extend_needs_restart
    shown = await _show(world, record)
    return Reply(200, {"volume": shown, "needs_restart": needs_restart})


async def delete(world: World, call: Call) -> Reply:
    """Delete it. The answer says `destroyed` (Fly docs); reads say what it is, a day long."""
    record = world.volumes.delete(world.shelf.live(call.app, call.volume_id))
    return Reply(200, view.volume(record) | {"state": "destroyed"})


async def list_snapshots(world: World, call: Call) -> Reply:
    """Its snapshots, also those of a volume that was deleted."""
    record = world.shelf.ever(call.app, call.volume_id)
    return Reply(200, [view.snapshot(one) for one in world.snapshots.listed(record)])


async def take_snapshot(world: World, call: Call) -> Reply:
    """Schedule a snapshot."""
    record = world.shelf.live(call.app, call.volume_id)
    snapshot = world.snapshots.take(record)
    return Reply(200, {"Msg": {"backup": view.snapshot(snapshot)}})


async def _show(world: World, record: VolumeRecord) -> JsonObject:
    used = await asyncio.to_thread(size_of, world.shelf.files(record.id)) if record.live else 0
    return view.volume(record, bytes_used=used)


def _wish(body: JsonObject) -> VolumeWish:
    name = wire.text(body, "name") or ""
    if not _NAME.fullmatch(name):
        text = "name must be 1 to 30 lower-case letters, digits and underscores"
        raise ApiError(400, f"invalid_argument: {text}")
    fstype = wire.text(body, "fstype") or "ext4"
    if fstype not in ("ext4", "raw"):
        raise ApiError(400, "invalid_argument: fstype must be ext4 or raw")
    # Fly places the volume where a machine like this has room; here every host has.
    config_shape.check(
        {"guest": wire.mapping(body, "compute"), "image": wire.text(body, "compute_image")}
    )
    retention = wire.number(body, "snapshot_retention")
    return VolumeWish(
        name=name,
        region=wire.text(body, "region") or "",
        size_gb=wire.number(body, "size_gb") or 0,
        encrypted=_or(wire.flag(body, "encrypted"), True),
        fstype=fstype,
        snapshot_id=wire.text(body, "snapshot_id") or "",
        source_volume_id=wire.text(body, "source_volume_id") or "",
        retention=RETENTION_DAYS if retention is None else checked_retention(retention),
        auto_backup=_or(wire.flag(body, "auto_backup_enabled"), True),
        unique_zone=_or(wire.flag(body, "require_unique_zone"), True),
        app_wide=_or(wire.flag(body, "unique_zone_app_wide"), False),
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
