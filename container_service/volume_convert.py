"""Messages about volumes into the service's words. Raises InvalidRequest and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from container_service.fields import Fields
from container_service.volume import SIZE_LIMIT_GB, VolumeRef, VolumeWish

if TYPE_CHECKING:
    from roost.container.v1 import container_service_pb2 as pb


class Named(Protocol):
    """A message that names a volume."""

    app: str
    volume_id: str


def parse_ref(request: Named, default_app: str) -> VolumeRef:
    """The volume that a message names."""
    fields = Fields()
    app = fields.app(request.app, default_app)
    ref = VolumeRef(app, fields.volume_id("volume_id", request.volume_id))
    fields.done()
    return ref


def parse_app(request: pb.ListVolumesRequest, default_app: str) -> str:
    """The application whose volumes to list."""
    fields = Fields()
    app = fields.app(request.app, default_app)
    fields.done()
    return app


def parse_create(request: pb.CreateVolumeRequest, default_app: str) -> VolumeWish:
    """The volume that is wanted."""
    fields = Fields()
    app = fields.app(request.app, default_app)
    name = fields.volume_name(request.name)
    region = fields.text("region", request.region, 64)
    if not 0 <= request.size_gb <= SIZE_LIMIT_GB:
        fields.wrong("size_gb", f"must be between 1 and {SIZE_LIMIT_GB}, or 0 for the default")
    snapshot_id = request.snapshot_id
    if snapshot_id:
        fields.volume_id("snapshot_id", snapshot_id)
    fields.done()
    return VolumeWish(app, name, region, request.size_gb, snapshot_id)
