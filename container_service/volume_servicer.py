"""The gRPC face of volumes and snapshots: parse, call, render."""
# ruff: noqa: D102, N802

from __future__ import annotations

from typing import TYPE_CHECKING

from container_service import render, volume_convert
from container_service.context import Context, deadline_of
from container_service.storing import Storing
from roost.container.v1 import container_service_pb2 as pb
from roost.container.v1 import container_service_pb2_grpc as rpc

if TYPE_CHECKING:
    from container_service.provider import Provider, VolumeProvider


class VolumeServicer(rpc.ContainerServiceServicer):
    """Answers the contract's calls about volumes and snapshots."""

    def __init__(self, provider: Provider, volumes: VolumeProvider, default_app: str) -> None:
        self._app = default_app
        self._volumes = volumes
        self._storing = Storing(provider, volumes)

    async def CreateVolume(
        self, request: pb.CreateVolumeRequest, context: Context
    ) -> pb.CreateVolumeResponse:
        wish = volume_convert.parse_create(request, self._app)
        volume = await self._volumes.create_volume(wish, deadline_of(context))
        return pb.CreateVolumeResponse(volume=render.to_volume(volume))

    async def GetVolume(
        self, request: pb.GetVolumeRequest, context: Context
    ) -> pb.GetVolumeResponse:
        ref = volume_convert.parse_ref(request, self._app)
        volume = await self._volumes.get_volume(ref, deadline_of(context))
        return pb.GetVolumeResponse(volume=render.to_volume(volume))

    async def ListVolumes(
        self, request: pb.ListVolumesRequest, context: Context
    ) -> pb.ListVolumesResponse:
        app = volume_convert.parse_app(request, self._app)
        volumes = await self._volumes.list_volumes(app, deadline_of(context))
        return pb.ListVolumesResponse(volumes=[render.to_volume(volume) for volume in volumes])

    async def DeleteVolume(
        self, request: pb.DeleteVolumeRequest, context: Context
    ) -> pb.DeleteVolumeResponse:
        ref = volume_convert.parse_ref(request, self._app)
        await self._storing.delete(ref, deadline_of(context))
        return pb.DeleteVolumeResponse()

    async def CreateVolumeSnapshot(
        self, request: pb.CreateVolumeSnapshotRequest, context: Context
    ) -> pb.CreateVolumeSnapshotResponse:
        ref = volume_convert.parse_ref(request, self._app)
        snapshot = await self._storing.take_snapshot(ref, deadline_of(context))
        return pb.CreateVolumeSnapshotResponse(snapshot=render.to_snapshot(snapshot))

    async def ListVolumeSnapshots(
        self, request: pb.ListVolumeSnapshotsRequest, context: Context
    ) -> pb.ListVolumeSnapshotsResponse:
        ref = volume_convert.parse_ref(request, self._app)
        snapshots = await self._volumes.list_snapshots(ref, deadline_of(context))
        return pb.ListVolumeSnapshotsResponse(
            snapshots=[render.to_snapshot(snapshot) for snapshot in snapshots]
        )
