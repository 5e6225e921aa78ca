"""Fly's volumes and snapshots, read as leniently as its machines."""

from __future__ import annotations

from typing import Any

from container_service.errors import ProviderUnavailable
from container_service.fly.schema import read_number, read_object, read_text, read_time
from container_service.volume import Snapshot, Volume, VolumeRef, VolumeWish

Json = Any


def read_volume(app: str, body: Json) -> Volume:
    """A Volume object. Raises ProviderUnavailable where it is none."""
    volume = read_object(body)
    return Volume(
        ref=VolumeRef(app, _id(volume, "volume")),
        name=read_text(volume, "name"),
        provider_state=read_text(volume, "state"),
        region=read_text(volume, "region"),
        size_gb=read_number(volume, "size_gb"),
        attached_container_id=read_text(volume, "attached_machine_id"),
        create_time=read_time(volume.get("created_at")),
    )


def read_snapshot(volume_id: str, body: Json) -> Snapshot:
    """A VolumeSnapshot object. Raises ProviderUnavailable where it is none."""
    snapshot = read_object(body)
    return Snapshot(
        snapshot_id=_id(snapshot, "snapshot"),
        volume_id=volume_id,
        provider_state=read_text(snapshot, "status"),
        size_bytes=read_number(snapshot, "size"),
        digest=read_text(snapshot, "digest"),
        create_time=read_time(snapshot.get("created_at")),
    )


def read_begun(volume_id: str, body: Json) -> Snapshot | None:
    """The snapshot that was begun, as Fly's docs show it; None where the answer holds none."""
    told = body.get("Msg") if isinstance(body, dict) else None
    backup = told.get("backup") if isinstance(told, dict) else None
    if not isinstance(backup, dict) or not read_text(backup, "id"):
        return None
    return read_snapshot(volume_id, backup)


def write_create(wish: VolumeWish) -> dict[str, Any]:
    """The body that creates a volume."""
    body: dict[str, Any] = {"name": wish.name}
    if wish.region:
        body["region"] = wish.region
    if wish.snapshot_id:
        body["snapshot_id"] = wish.snapshot_id
    # Fly's own default is 3 GB; of a snapshot it is the snapshot's size.
    if wish.size_gb or not wish.snapshot_id:
        body["size_gb"] = wish.size_gb or 1
    return body


def _id(source: dict[str, Any], kind: str) -> str:
    found = read_text(source, "id")
    if not found:
        raise ProviderUnavailable(f"the provider answered with a {kind} that has no id")
    return found
