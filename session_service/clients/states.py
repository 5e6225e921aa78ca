"""`ports.States` and `ports.Volumes` over gRPC: application state and volumes by way of
container_service.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.json_format import ParseDict

from roost.container.v1 import container_service_pb2 as pb
from roost.container.v1.container_service_pb2_grpc import ContainerServiceStub
from session_service import errors, failpoints
from session_service.clients.containers import translated
from session_service.ports import ContainerAbsent, Snapshot, Volume, Whole

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from session_service.ports import Address

#: Fly's states of a complete snapshot. Before it, a snapshot is `waiting`, then `running`.
SNAPSHOT_DONE = frozenset({"created"})
#: Fly's states of a snapshot that cannot be used, now or later.
SNAPSHOT_LOST = frozenset({"failed", "error", "deleted"})
#: Fly's states of a volume that can be mounted. A volume that is still `hydrating` can be mounted;
#: one that is still `restoring` cannot.
VOLUME_READY = frozenset({"created", "hydrating"})
#: Fly's states of a volume that is deleted, or is being deleted.
VOLUME_DELETED = frozenset({"scheduling_destroy", "pending_destroy", "destroying", "destroyed"})


class GrpcStates:
    """Calls container_service over one channel, which stays open as long as the process runs."""

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
        return await failpoints.around("capture", self._capture(address, hook, take, timeout))

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
        digest, size, announced = hashlib.sha256(), 0, None
        call = self._stub.CaptureState(request, timeout=_positive(timeout))
        try:
            async for message in call:
                if message.chunk:
                    size += len(message.chunk)
                    digest.update(message.chunk)
                    await take(message.chunk)
                if message.sha256:
                    announced = Whole(message.total_bytes, message.sha256)
        except grpc.aio.AioRpcError as error:
            raise translated(error) from error
        finally:
            call.cancel()
        # A stream that ended early has no announcement, or one that does not match.
        if announced != Whole(size, digest.digest()):
            raise errors.ProviderUnavailable("the state was not received completely; try again")
        return announced

    async def restore(
        self,
        address: Address,
        hook: Mapping[str, Any],
        pieces: AsyncIterator[bytes],
        *,
        timeout: float,
    ) -> Whole:
        return await failpoints.around("restore", self._restore(address, hook, pieces, timeout))

    async def _restore(
        self,
        address: Address,
        hook: Mapping[str, Any],
        pieces: AsyncIterator[bytes],
        timeout: float,
    ) -> Whole:
        # The requests are written here, and not by an iterator that is given to grpc: if the
        # iterator raised, grpc would report a cancelled call in place of its error.
        call = self._stub.RestoreState(timeout=_positive(timeout))
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
                # The call has ended already. Awaiting it below raises the error.
                pass
            answer = await call
        except grpc.aio.AioRpcError as error:
            raise translated(error) from error
        finally:
            call.cancel()
        return Whole(answer.bytes_written, answer.sha256)


class GrpcVolumes:
    """Calls container_service over one channel, which stays open as long as the process runs."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = ContainerServiceStub(channel)

    async def snapshot(self, app: str, volume_id: str, *, timeout: float) -> Snapshot:
        request = pb.CreateVolumeSnapshotRequest(app=app, volume_id=volume_id)
        answer = await _result(self._stub.CreateVolumeSnapshot(request, timeout=_positive(timeout)))
        return _snapshot(answer.snapshot)

    async def snapshots(self, app: str, volume_id: str, *, timeout: float) -> list[Snapshot]:
        request = pb.ListVolumeSnapshotsRequest(app=app, volume_id=volume_id)
        answer = await _result(self._stub.ListVolumeSnapshots(request, timeout=_positive(timeout)))
        return [_snapshot(each) for each in answer.snapshots]

    async def get(self, app: str, volume_id: str, *, timeout: float) -> Volume:
        request = pb.GetVolumeRequest(app=app, volume_id=volume_id)
        answer = await _result(self._stub.GetVolume(request, timeout=_positive(timeout)))
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
        creating = _result(self._stub.CreateVolume(request, timeout=_positive(timeout)))
        answer = await failpoints.around("create_volume", creating)
        return _volume(answer.volume)

    async def listed(self, app: str, *, timeout: float) -> list[Volume]:
        request = pb.ListVolumesRequest(app=app)
        answer = await _result(self._stub.ListVolumes(request, timeout=_positive(timeout)))
        existing = (each for each in answer.volumes if each.provider_state not in VOLUME_DELETED)
        return [_volume(each) for each in existing]

    async def delete(self, app: str, volume_id: str, *, timeout: float) -> None:
        request = pb.DeleteVolumeRequest(app=app, volume_id=volume_id)
        deleting = _result(self._stub.DeleteVolume(request, timeout=_positive(timeout)))
        await failpoints.around("delete_volume", deleting)


async def _result(call: Awaitable[Any]) -> Any:
    """Await the call, and translate its error. Any: responses of every method."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raised = translated(error)
        if isinstance(raised, ContainerAbsent):
            # These calls name no container: a volume or a snapshot is missing.
            raise errors.VolumeAbsent(str(raised)) from error
        raise raised from error


def _hook(hook: Mapping[str, Any]) -> pb.StateHook:
    return ParseDict(dict(hook), pb.StateHook(), ignore_unknown_fields=True)


def _positive(timeout: float) -> float:
    if timeout <= 0:
        raise errors.ProviderUnavailable("no time is left for a call of the provider; try again")
    return timeout


def _snapshot(each: pb.VolumeSnapshot) -> Snapshot:
    ready, lost = each.provider_state in SNAPSHOT_DONE, each.provider_state in SNAPSHOT_LOST
    return Snapshot(each.snapshot_id, ready, each.size_bytes, lost)


def _volume(each: pb.Volume) -> Volume:
    ready = each.provider_state in VOLUME_READY
    return Volume(each.volume_id, each.name, each.region, each.size_gb, ready)
