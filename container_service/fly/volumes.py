"""Fly's volumes as a `VolumeProvider`: one HTTP call per method, and their JSON."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from container_service.containers.errors import (
    ContainerNotFound,
    OutcomeUnknown,
    ProviderUnavailable,
    VolumeNotFound,
)
from container_service.containers.model import Snapshot, Volume, VolumeCreateRequest, VolumeRef
from container_service.fly.call import Call
from container_service.fly.schema import read_list, read_number, read_object, read_text, read_time

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from container_service.containers.deadlines import Deadline
    from container_service.fly.transport import Transport

#: States of a deleted volume, which Fly still lists for a while.
_GONE = frozenset({"scheduling_destroy", "pending_destroy", "destroying", "destroyed"})

_LONG_AGO = datetime.fromtimestamp(0, UTC)


class FlyVolumes:
    """Fly's volumes as a `VolumeProvider`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def create_volume(self, request: VolumeCreateRequest, deadline: Deadline) -> Volume:
        """POST /volumes."""
        call = Call(
            "volume_create",
            request.app,
            "POST",
            f"apps/{request.app}/volumes",
            body=write_create(request),
        )
        answer = await self._transport.send(call, deadline)
        try:
            return read_volume(request.app, answer)
        except ProviderUnavailable as error:
            raise OutcomeUnknown(str(error)) from error

    async def get_volume(self, ref: VolumeRef, deadline: Deadline) -> Volume:
        """GET /volumes/{id}. A volume that is being destroyed counts as deleted."""
        call = Call("volume_get", ref.volume_id, "GET", _path(ref), repeatable=True)
        with _as_volume(ref):
            answer = await self._transport.send(call, deadline)
        volume = read_volume(ref.app, answer)
        if volume.provider_state in _GONE:
            raise VolumeNotFound(f"the volume is {volume.provider_state}")
        return volume

    async def list_volumes(self, app: str, deadline: Deadline) -> Sequence[Volume]:
        """GET /volumes, without deleted volumes."""
        call = Call("volume_list", app, "GET", f"apps/{app}/volumes", repeatable=True)
        rows = read_list(await self._transport.send(call, deadline))
        found = [read_volume(app, row) for row in rows]
        return [volume for volume in found if volume.provider_state not in _GONE]

    async def delete_volume(self, ref: VolumeRef, deadline: Deadline) -> None:
        """DELETE /volumes/{id}."""
        call = Call("volume_delete", ref.volume_id, "DELETE", _path(ref), repeatable=True)
        with _as_volume(ref):
            await self._transport.send(call, deadline)

    async def take_snapshot(self, ref: VolumeRef, deadline: Deadline) -> Snapshot | None:
        """POST /volumes/{id}/snapshots. The answer may be empty."""
        call = Call("snapshot", ref.volume_id, "POST", _path(ref, "snapshots"))
        with _as_volume(ref):
            answer = await self._transport.send(call, deadline)
        return read_begun_snapshot(ref.volume_id, answer)

    async def list_snapshots(self, ref: VolumeRef, deadline: Deadline) -> Sequence[Snapshot]:
        """GET /volumes/{id}/snapshots, newest first."""
        path = _path(ref, "snapshots")
        call = Call("snapshot_list", ref.volume_id, "GET", path, repeatable=True)
        with _as_volume(ref):
            rows = read_list(await self._transport.send(call, deadline))
        found = [read_snapshot(ref.volume_id, row) for row in rows]
        # Stable: snapshots of the same second stay in Fly's order.
        return sorted(found, key=lambda one: one.create_time or _LONG_AGO, reverse=True)


@contextmanager
def _as_volume(ref: VolumeRef) -> Iterator[None]:
    """Turn a 404 into VolumeNotFound, whatever Fly's text says was not found."""
    try:
        yield
    except ContainerNotFound as error:
        raise VolumeNotFound(
            str(error), volume_id=ref.volume_id, provider_request_id=error.provider_request_id
        ) from error


def _path(ref: VolumeRef, part: str = "") -> str:
    volume = f"apps/{ref.app}/volumes/{ref.volume_id}"
    return f"{volume}/{part}" if part else volume


def read_volume(app: str, body: Any) -> Volume:
    """Read a Volume object. Raises ProviderUnavailable if the body is none."""
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


def read_snapshot(volume_id: str, body: Any) -> Snapshot:
    """Read a VolumeSnapshot object. Raises ProviderUnavailable if the body is none."""
    snapshot = read_object(body)
    return Snapshot(
        snapshot_id=_id(snapshot, "snapshot"),
        volume_id=volume_id,
        provider_state=read_text(snapshot, "status"),
        size_bytes=read_number(snapshot, "size"),
        digest=read_text(snapshot, "digest"),
        create_time=read_time(snapshot.get("created_at")),
    )


def read_begun_snapshot(volume_id: str, body: Any) -> Snapshot | None:
    """The snapshot in the answer to its creation; None if the answer contains none."""
    message = body.get("Msg") if isinstance(body, dict) else None
    backup = message.get("backup") if isinstance(message, dict) else None
    if not isinstance(backup, dict) or not read_text(backup, "id"):
        return None
    return read_snapshot(volume_id, backup)


def write_create(request: VolumeCreateRequest) -> dict[str, Any]:
    """The body of a create."""
    body: dict[str, Any] = {"name": request.name}
    if request.region:
        body["region"] = request.region
    if request.snapshot_id:
        body["snapshot_id"] = request.snapshot_id
    # Fly's default is 3 GB, or the size of the snapshot; the service's default is 1 GB.
    if request.size_gb or not request.snapshot_id:
        body["size_gb"] = request.size_gb or 1
    return body


def _id(source: dict[str, Any], kind: str) -> str:
    found = read_text(source, "id")
    if not found:
        raise ProviderUnavailable(f"the provider answered with a {kind} without an id: retry")
    return found
