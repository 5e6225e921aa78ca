"""The JSON of the API, rendered from records."""

from dataclasses import asdict

from local.fly.config import checks
from local.fly.go_json import JsonObject
from local.fly.machines.machine import Machine
from local.fly.records.machine_records import App, Event, Lease, MachineRecord
from local.fly.records.volume_records import BLOCK, GB, SnapshotRecord, VolumeRecord

_OVERVIEW = ("image", "guest", "metadata")
_ONLY_IN_FULL = ("config", "checks", "events", "host_status", "nonce")


def machine(seen: Machine, *, summary: bool = False, nonce: str = "") -> JsonObject:
    """The Machine object. A summary omits config, checks, events and host status."""
    record = seen.record
    shown: JsonObject = {
        "id": record.id,
        "name": record.name,
        "state": record.state,
        "region": record.region,
        "instance_id": record.instance_id,
        "version": record.instance_id,
        "private_ip": record.private_ip,
        "image_ref": record.image.to_json(),
        "config": record.config,
        "created_at": record.created_at,
        "updated_at": record.updated_at,
        "cordoned": record.cordoned,
        "events": events(record, limit=20),
        "checks": checks.shown(
            record.config, seen.checks if seen.guest is not None else {}, record.updated_at
        ),
        "host_status": "ok",
    }
    if nonce:
        shown["nonce"] = nonce
    if summary:
        return {name: value for name, value in shown.items() if name not in _ONLY_IN_FULL}
    return shown


def org_machine(record: MachineRecord, *, summary: bool) -> JsonObject:
    """The OrgMachine object: app, state and, unless a summary, part of the config."""
    shown: JsonObject = {
        "app_name": record.app,
        "id": record.id,
        "name": record.name,
        "state": record.state,
        "region": record.region,
        "instance_id": record.instance_id,
        "version": record.instance_id,
        "private_ip": record.private_ip,
        "created_at": record.created_at,
        "updated_at": record.updated_at,
    }
    kept = {name: record.config[name] for name in _OVERVIEW if name in record.config}
    return shown if summary else shown | {"config": kept}


def events(record: MachineRecord, limit: int) -> list[JsonObject]:
    """At most `limit` events, newest first."""
    return [_event(event) for event in reversed(record.events[-limit:])]


def app(found: App, machines: int, volumes: int) -> JsonObject:
    """The App object."""
    return {
        "id": found.name,
        "name": found.name,
        "status": "deployed" if machines else "pending",
        "network": found.network,
        "internal_numeric_id": found.created_at_ms % 1_000_000_007,
        "machine_count": machines,
        "volume_count": volumes,
        "organization": {
            "name": found.org_slug,
            "slug": found.org_slug,
            "internal_numeric_id": 1,
        },
    }


def volume(record: VolumeRecord, bytes_used: int = 0) -> JsonObject:
    """The Volume object. `attached_machine_id` is present only while a machine claims it."""
    total = record.size_gb * GB
    free = max(total - bytes_used, 0) // BLOCK
    shown: JsonObject = {
        "id": record.id,
        "name": record.name,
        "state": record.state,
        "size_gb": record.size_gb,
        "region": record.region,
        "zone": record.zone,
        "encrypted": record.encrypted,
        "created_at": record.created_at,
        "blocks": total // BLOCK,
        "block_size": BLOCK,
        "blocks_free": free,
        "blocks_avail": free,
        "bytes_total": total,
        "bytes_used": bytes_used,
        "fstype": record.fstype,
        "snapshot_retention": record.snapshot_retention,
        "auto_backup_enabled": record.auto_backup_enabled,
        "host_status": "ok",
        "type": "local",
    }
    if record.machine:
        shown |= {"attached_machine_id": record.machine}
    return shown


def snapshot(record: SnapshotRecord) -> JsonObject:
    """The VolumeSnapshot object."""
    return {
        "id": record.id,
        "size": record.size,
        "volume_size": record.volume_size,
        "digest": record.digest,
        "created_at": record.created_at,
        "status": record.status,
        "retention_days": record.retention_days,
    }


def lease(held: Lease) -> JsonObject:
    """The lease envelope; `expires_at` is in unix seconds."""
    data = asdict(held) | {"expires_at": int(held.expires_at)}
    return {"status": "success", "data": data}


def _event(event: Event) -> JsonObject:
    return {name: value for name, value in vars(event).items() if value is not None}
