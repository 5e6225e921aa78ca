"""Fly's volumes behind the port: one method a verb, one HTTP call each."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from container_service.errors import (
    ContainerNotFound,
    OutcomeUnknown,
    ProviderUnavailable,
    VolumeNotFound,
)
from container_service.fly import schema, volume_schema
from container_service.fly.transport import Call, Transport

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from container_service.deadlines import Deadline
    from container_service.volume import Snapshot, Volume, VolumeRef, VolumeWish

#: States of a volume that was deleted and lingers in listings.
_GONE = frozenset({"scheduling_destroy", "pending_destroy", "destroying", "destroyed"})

_LONG_AGO = datetime.fromtimestamp(0, UTC)


class FlyVolumes:
    """Fly's volumes as a `VolumeProvider`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def create_volume(self, wish: VolumeWish, deadline: Deadline) -> Volume:
        """POST /volumes."""
        call = Call(
            "volume_create",
            wish.app,
            "POST",
            f"apps/{wish.app}/volumes",
            body=volume_schema.write_create(wish),
        )
        answer = await self._transport.send(call, deadline)
        try:
            return volume_schema.read_volume(wish.app, answer)
        except ProviderUnavailable as error:
            raise OutcomeUnknown(str(error)) from error

    async def get_volume(self, ref: VolumeRef, deadline: Deadline) -> Volume:
        """GET /volumes/{id}; one that is about to be destroyed is not there any more."""
        call = Call("volume_get", ref.volume_id, "GET", _path(ref), repeatable=True)
        with _as_volume(ref):
            answer = await self._transport.send(call, deadline)
        volume = volume_schema.read_volume(ref.app, answer)
        if volume.provider_state in _GONE:
            raise VolumeNotFound(f"the volume is {volume.provider_state}")
        return volume

    async def list_volumes(self, app: str, deadline: Deadline) -> Sequence[Volume]:
        """GET /volumes, without those that were deleted and linger."""
        call = Call("volume_list", app, "GET", f"apps/{app}/volumes", repeatable=True)
        rows = schema.read_machines(await self._transport.send(call, deadline))
        found = [volume_schema.read_volume(app, row) for row in rows]
        return [volume for volume in found if volume.provider_state not in _GONE]

    async def delete_volume(self, ref: VolumeRef, deadline: Deadline) -> None:
        """DELETE /volumes/{id}."""
        call = Call("volume_delete", ref.volume_id, "DELETE", _path(ref), repeatable=True)
        with _as_volume(ref):
            await self._transport.send(call, deadline)

    async def take_snapshot(self, ref: VolumeRef, deadline: Deadline) -> Snapshot | None:
        """POST /volumes/{id}/snapshots; its answer may be empty."""
        call = Call("snapshot", ref.volume_id, "POST", _path(ref, "snapshots"))
        with _as_volume(ref):
            answer = await self._transport.send(call, deadline)
        return volume_schema.read_begun(ref.volume_id, answer)

    async def list_snapshots(self, ref: VolumeRef, deadline: Deadline) -> Sequence[Snapshot]:
        """GET /volumes/{id}/snapshots, newest first."""
        path = _path(ref, "snapshots")
        call = Call("snapshot_list", ref.volume_id, "GET", path, repeatable=True)
        with _as_volume(ref):
            rows = schema.read_machines(await self._transport.send(call, deadline))
        found = [volume_schema.read_snapshot(ref.volume_id, row) for row in rows]
        # Those of one second stay in Fly's order.
        return sorted(found, key=lambda one: one.create_time or _LONG_AGO, reverse=True)


@contextmanager
def _as_volume(ref: VolumeRef) -> Iterator[None]:
    """A 404 is the volume's, whatever Fly's text says is not found."""
    try:
        yield
    except ContainerNotFound as error:
        raise VolumeNotFound(
            str(error), volume_id=ref.volume_id, provider_request_id=error.provider_request_id
        ) from error


def _path(ref: VolumeRef, part: str = "") -> str:
    volume = f"apps/{ref.app}/volumes/{ref.volume_id}"
    return f"{volume}/{part}" if part else volume
