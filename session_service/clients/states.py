"""The state of applications, and volumes, over gRPC: `ports.States` and `ports.Volumes`."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.json_format import ParseDict

from roost.container.v1 import container_service_pb2 as pb
from roost.container.v1.container_service_pb2_grpc import ContainerServiceStub
from session_service import errors, points
from session_service.clients.containers import translated
from session_service.ports import ContainerAbsent, Snapshot, Volume, Whole

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from session_service.ports import Address

#: Fly's words for a snapshot that is whole (fly/FACTS of the provider: waiting, running, created).
SNAPSHOT_DONE = frozenset({"created"})
#: And for volumes: one that still hydrates can be mounted, one that is restored cannot.
VOLUME_READY = frozenset({"created", "hydrating"})
VOLUME_GOING = frozenset({"scheduling_destroy", "pending_destroy", "destroying", "destroyed"})
SNAPSHOT_LOST = frozenset({"failed", "error", "deleted"})


class GrpcStates:
    """States over one channel to container_service, kept for the life of the process."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = ContainerServiceStub(channel)

    async def capture(
        self,
        address: Address,
        hook: Mapping[str, Any],
        take: Callable[[bytes], Awaitable[None]],
        *,
        timeout: float,
    ) -> Whole:
        return await points.around("capture", self._capture(address, hook, take, timeout))

    async def _capture(
        self,
        address: Address,
        hook: Mapping[str, Any],
        take: Callable[[bytes], Awaitable[None]],
        timeout: float,
    ) -> Whole:
        request = pb.CaptureStateRequest(
            app=address.app, container_id=address.container_id, state_hook=_hook(hook)
        )
        tally, size, told = hashlib.sha256(), 0, None
        call = self._stub.CaptureState(request, timeout=_left(timeout))
        try:
            async for message in call:
                if message.chunk:
                    size += len(message.chunk)
                    tally.update(message.chunk)
                    await take(message.chunk)
                if message.sha256:
                    told = Whole(message.total_bytes, message.sha256)
        except grpc.aio.AioRpcError as error:
            raise translated(error) from error
        finally:
            call.cancel()
        if told != Whole(size, tally.digest()):
            raise errors.ProviderUnavailable("the state did not come whole; try again")
        return told

    async def restore(
        self,
        address: Address,
        hook: Mapping[str, Any],
        pieces: AsyncIterator[bytes],
        *,
        timeout: float,
    ) -> Whole:
        return await points.around("restore", self._restore(address, hook, pieces, timeout))

    async def _restore(
        self,
        address: Address,
        hook: Mapping[str, Any],
        pieces: AsyncIterator[bytes],
        timeout: float,
    ) -> Whole:
        # Written by hand: an iterator that raises would be told as a cancelled call.
        call = self._stub.RestoreState(timeout=_left(timeout))
        try:
            try:
                await call.write(
                    pb.RestoreStateRequest(
                        app=address.app, container_id=address.container_id, state_hook=_hook(hook)
                    )
                )
                async for piece in pieces:
                    await call.write(pb.RestoreStateRequest(chunk=piece))
                await call.done_writing()
            except asyncio.InvalidStateError:
                # The call is over already; its answer says why.
                pass
            answer = await call
        except grpc.aio.AioRpcError as error:
            raise translated(error) from error
        finally:
            call.cancel()
        return Whole(answer.bytes_written, answer.sha256)


class GrpcVolumes:
    """Volumes over one channel to container_service, kept for the life of the process."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = ContainerServiceStub(channel)

    async def snapshot(self, app: str, volume_id: str, *, timeout: float) -> Snapshot:
        request = pb.CreateVolumeSnapshotRequest(app=app, volume_id=volume_id)
        answer = await _answered(self._stub.CreateVolumeSnapshot(request, timeout=_left(timeout)))
        return _snapshot(answer.snapshot)

    async def snapshots(self, app: str, volume_id: str, *, timeout: float) -> list[Snapshot]:
        request = pb.ListVolumeSnapshotsRequest(app=app, volume_id=volume_id)
        answer = await _answered(self._stub.ListVolumeSnapshots(request, timeout=_left(timeout)))
        return [_snapshot(each) for each in answer.snapshots]

    async def get(self, app: str, volume_id: str, *, timeout: float) -> Volume:
        request = pb.GetVolumeRequest(app=app, volume_id=volume_id)
        answer = await _answered(self._stub.GetVolume(request, timeout=_left(timeout)))
        return _volume(answer.volume)

    async def create_from(
        self, app: str, name: str, like: Volume, snapshot_id: str, *, timeout: float
    ) -> Volume:
        for each in await self.listed(app, timeout=timeout):
            if each.name == name:
                return each
        request = pb.CreateVolumeRequest(
            app=app,
            name=name,
            region=like.region,
            size_gb=like.size_gb,
            snapshot_id=snapshot_id,
        )
        creating = _answered(self._stub.CreateVolume(request, timeout=_left(timeout)))
        answer = await points.around("create_volume", creating)
        return _volume(answer.volume)

    async def listed(self, app: str, *, timeout: float) -> list[Volume]:
        request = pb.ListVolumesRequest(app=app)
        answer = await _answered(self._stub.ListVolumes(request, timeout=_left(timeout)))
        there = (each for each in answer.volumes if each.provider_state not in VOLUME_GOING)
        return [_volume(each) for each in there]

    async def delete(self, app: str, volume_id: str, *, timeout: float) -> None:
        request = pb.DeleteVolumeRequest(app=app, volume_id=volume_id)
        deleting = _answered(self._stub.DeleteVolume(request, timeout=_left(timeout)))
        await points.around("delete_volume", deleting)


async def _answered(call: Awaitable[Any]) -> Any:
    """The answer, its error translated. Any: answers of every method."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raised = translated(error)
        if isinstance(raised, ContainerAbsent):
            # Of a volume or a snapshot, whatever the provider's text calls it.
            raise errors.VolumeAbsent(str(raised)) from error
        raise raised from error


def _hook(hook: Mapping[str, Any]) -> pb.StateHook:
    return ParseDict(dict(hook), pb.StateHook(), ignore_unknown_fields=True)


def _left(timeout: float) -> float:
    if timeout <= 0:
        raise errors.ProviderUnavailable("no time is left to ask the provider; try again")
    return timeout


def _snapshot(each: pb.VolumeSnapshot) -> Snapshot:
    ready, lost = each.provider_state in SNAPSHOT_DONE, each.provider_state in SNAPSHOT_LOST
    return Snapshot(each.snapshot_id, ready, each.size_bytes, lost)


def _volume(each: pb.Volume) -> Volume:
    ready = each.provider_state in VOLUME_READY
    return Volume(each.volume_id, each.name, each.region, each.size_gb, ready)
