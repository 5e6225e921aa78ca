"""ContainerService: parse each message, call a use case, render the result.

The contract, protos/roost/container/v1, documents what each RPC promises.
"""
# ruff: noqa: D102

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

import grpc.aio

from container_service.containers.create import Creator
from container_service.containers.deadlines import Deadline
from container_service.containers.errors import ServiceError
from container_service.containers.lease import Leases
from container_service.containers.start import Starter
from container_service.containers.stop import Stopper
from container_service.containers.volumes import VolumeOperations
from container_service.containers.wait import Waiter
from container_service.rpc import parse, render
from roost.container.v1 import container_service_pb2 as pb
from roost.container.v1 import container_service_pb2_grpc as rpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from container_service.containers.provider import Provider, VolumeProvider
    from container_service.containers.state_transfer import StateTransfer

Context = grpc.aio.ServicerContext[Any, Any]

#: Seconds for a call whose caller set no deadline.
DEFAULT_SECONDS = 60.0
#: A message of a stream has at least so many containers, apart from the last ones.
MESSAGE_CONTAINERS = 100
#: Seconds of the caller's deadline that are kept back, so that our error reaches the caller before
#: its own DEADLINE_EXCEEDED.
MARGIN_SECONDS = 0.25
#: Seconds after the end of its messages in which a call may turn out to be cancelled; see
#: `_until_half_close`.
CANCEL_SECONDS = 0.1
#: Seconds for which the rest of a rejected restore is read; see `_drain`.
DRAIN_SECONDS = 5.0


class ContainerServicer(rpc.ContainerServiceServicer):
    """Implements roost.container.v1.ContainerService."""

    def __init__(
        self,
        provider: Provider,
        volumes: VolumeProvider,
        state_transfer: StateTransfer,
        default_app: str,
        lag_window: float,
    ) -> None:
        """`default_app`: for calls that name no app. `lag_window`: seconds; see `Waiter`."""
        self._app = default_app
        self._provider = provider
        self._volumes = volumes
        self._state_transfer = state_transfer
        self._volume_operations = VolumeOperations(provider, volumes)
        self._waiter = Waiter(provider, lag_window)
        self._leases = Leases(provider)
        self._creator = Creator(provider, lag_window)
        self._starter = Starter(provider, self._waiter)
        self._stopper = Stopper(provider, self._leases, self._waiter)

    async def aclose(self) -> None:
        """End the background work: cancel creates without callers, wait for lease releases."""
        await self._creator.aclose()
        await self._leases.aclose()

    async def CreateContainer(
        self, request: pb.CreateContainerRequest, context: Context
    ) -> pb.CreateContainerResponse:
        wanted = parse.create_container(request, self._app)
        created = await self._creator.create(wanted, deadline_of(context))
        return pb.CreateContainerResponse(
            container=render.to_container(created.container), adopted=created.adopted
        )

    async def GetContainer(
        self, request: pb.GetContainerRequest, context: Context
    ) -> pb.GetContainerResponse:
        ref = parse.container_ref(request, self._app)
        container = await self._provider.get(ref, deadline_of(context))
        return pb.GetContainerResponse(container=render.to_container(container))

    async def ListContainers(
        self, request: pb.ListContainersRequest, context: Context
    ) -> pb.ListContainersResponse:
        app, labels = parse.list_containers(request, self._app)
        list_time = datetime.now(UTC)
        containers = await self._provider.list(
            app, labels, deadline_of(context), include_destroyed=request.include_destroyed
        )
        return pb.ListContainersResponse(
            containers=[render.to_container(container) for container in containers],
            list_time=render.to_timestamp(list_time),
        )

    async def StreamContainers(
        self, request: pb.StreamContainersRequest, context: Context
    ) -> AsyncIterator[pb.StreamContainersResponse]:
        app, labels = parse.list_containers(request, self._app)
        list_time, count = datetime.now(UTC), 0
        listed = self._provider.stream(
            app, labels, deadline_of(context), include_destroyed=request.include_destroyed
        )
        message = pb.StreamContainersResponse()
        async with aclosing(listed) as parts:
            async for part in parts:
                message.containers.extend(map(render.to_container, part))
                if len(message.containers) >= MESSAGE_CONTAINERS:
                    count += len(message.containers)
                    yield message
                    message = pb.StreamContainersResponse()
        if message.containers:
            count += len(message.containers)
            yield message
        yield pb.StreamContainersResponse(
            complete=True, container_count=count, list_time=render.to_timestamp(list_time)
        )

    async def StartContainer(
        self, request: pb.StartContainerRequest, context: Context
    ) -> pb.StartContainerResponse:
        ref, nonce = parse.container_and_nonce(request, self._app)
        started = await self._starter.start(ref, nonce, deadline_of(context))
        return pb.StartContainerResponse(
            container=render.to_container(started.container), boot_id=started.boot_id
        )

    async def SuspendContainer(
        self, request: pb.SuspendContainerRequest, context: Context
    ) -> pb.SuspendContainerResponse:
        ref, nonce = parse.container_and_nonce(request, self._app)
        container = await self._stopper.suspend(ref, nonce, deadline_of(context))
        return pb.SuspendContainerResponse(container=render.to_container(container))

    async def ResumeContainer(
        self, request: pb.ResumeContainerRequest, context: Context
    ) -> pb.ResumeContainerResponse:
        ref, expected = parse.resume_container(request, self._app)
        resumed = await self._starter.resume(ref, expected, deadline_of(context))
        return render.to_resume_response(resumed)

    async def StopContainer(
        self, request: pb.StopContainerRequest, context: Context
    ) -> pb.StopContainerResponse:
        ref, nonce, seconds = parse.stop_container(request, self._app)
        container = await self._stopper.stop(ref, nonce, seconds, deadline_of(context))
        return pb.StopContainerResponse(container=render.to_container(container))

    async def DestroyContainer(
        self, request: pb.DestroyContainerRequest, context: Context
    ) -> pb.DestroyContainerResponse:
        ref, nonce = parse.container_and_nonce(request, self._app)
        container = await self._stopper.destroy(
            ref, nonce, deadline_of(context), force=request.force
        )
        return pb.DestroyContainerResponse(
            container=render.to_container(container) if container else None
        )

    async def CordonContainer(
        self, request: pb.CordonContainerRequest, context: Context
    ) -> pb.CordonContainerResponse:
        ref, nonce = parse.container_and_nonce(request, self._app)
        await self._provider.set_cordoned(ref, nonce, deadline_of(context), cordoned=True)
        return pb.CordonContainerResponse()

    async def UncordonContainer(
        self, request: pb.UncordonContainerRequest, context: Context
    ) -> pb.UncordonContainerResponse:
        ref, nonce = parse.container_and_nonce(request, self._app)
        await self._provider.set_cordoned(ref, nonce, deadline_of(context), cordoned=False)
        return pb.UncordonContainerResponse()

    async def WaitContainer(
        self, request: pb.WaitContainerRequest, context: Context
    ) -> pb.WaitContainerResponse:
        ref, states, seconds = parse.wait_container(request, self._app)
        deadline = deadline_of(context)
        if seconds is not None:
            deadline = deadline.within(seconds)
        state = await self._waiter.until(ref, states, deadline)
        return pb.WaitContainerResponse(state=render.to_state(state))

    async def ExecContainer(
        self, request: pb.ExecContainerRequest, context: Context
    ) -> pb.ExecContainerResponse:
        ref, command, seconds = parse.exec_container(request, self._app)
        result = await self._provider.execute(ref, command, seconds, deadline_of(context))
        return pb.ExecContainerResponse(
            exit_code=result.exit_code, stdout=result.stdout, stderr=result.stderr
        )

    async def AcquireLease(
        self, request: pb.AcquireLeaseRequest, context: Context
    ) -> pb.AcquireLeaseResponse:
        ref, terms = parse.acquire_lease(request, self._app)
        lease = await self._leases.acquire(
            ref, terms.ttl_seconds, terms.description, terms.wait_seconds, deadline_of(context)
        )
        return pb.AcquireLeaseResponse(lease=render.to_lease(lease))

    async def RefreshLease(
        self, request: pb.RefreshLeaseRequest, context: Context
    ) -> pb.RefreshLeaseResponse:
        ref, nonce, ttl = parse.refresh_lease(request, self._app)
        lease = await self._provider.refresh_lease(ref, nonce, ttl, deadline_of(context))
        return pb.RefreshLeaseResponse(lease=render.to_lease(lease))

    async def ReleaseLease(
        self, request: pb.ReleaseLeaseRequest, context: Context
    ) -> pb.ReleaseLeaseResponse:
        ref, nonce = parse.container_and_nonce(request, self._app, required=True)
        await self._provider.release_lease(ref, nonce, deadline_of(context))
        return pb.ReleaseLeaseResponse()

    async def CaptureState(
        self, request: pb.CaptureStateRequest, context: Context
    ) -> AsyncIterator[pb.CaptureStateResponse]:
        ref, hook = parse.container_and_hook(request, self._app)
        captured = self._state_transfer.capture(ref, hook, deadline_of(context))
        async with aclosing(captured) as parts:
            async for part in parts:
                yield render.to_capture_response(part)

    async def RestoreState(
        self, request_iterator: AsyncIterator[pb.RestoreStateRequest], context: Context
    ) -> pb.RestoreStateResponse:
        deadline = deadline_of(context)
        try:
            return await self._restore(request_iterator, deadline)
        except ServiceError:
            await _drain(request_iterator, deadline.within(DRAIN_SECONDS))
            raise

    async def CreateVolume(
        self, request: pb.CreateVolumeRequest, context: Context
    ) -> pb.CreateVolumeResponse:
        wanted = parse.create_volume(request, self._app)
        volume = await self._volumes.create_volume(wanted, deadline_of(context))
        return pb.CreateVolumeResponse(volume=render.to_volume(volume))

    async def GetVolume(
        self, request: pb.GetVolumeRequest, context: Context
    ) -> pb.GetVolumeResponse:
        ref = parse.volume_ref(request, self._app)
        volume = await self._volumes.get_volume(ref, deadline_of(context))
        return pb.GetVolumeResponse(volume=render.to_volume(volume))

    async def ListVolumes(
        self, request: pb.ListVolumesRequest, context: Context
    ) -> pb.ListVolumesResponse:
        app = parse.list_volumes(request, self._app)
        volumes = await self._volumes.list_volumes(app, deadline_of(context))
        return pb.ListVolumesResponse(volumes=[render.to_volume(volume) for volume in volumes])

    async def DeleteVolume(
        self, request: pb.DeleteVolumeRequest, context: Context
    ) -> pb.DeleteVolumeResponse:
        ref = parse.volume_ref(request, self._app)
        await self._volume_operations.delete(ref, deadline_of(context))
        return pb.DeleteVolumeResponse()

    async def CreateVolumeSnapshot(
        self, request: pb.CreateVolumeSnapshotRequest, context: Context
    ) -> pb.CreateVolumeSnapshotResponse:
        ref = parse.volume_ref(request, self._app)
        snapshot = await self._volume_operations.take_snapshot(ref, deadline_of(context))
        return pb.CreateVolumeSnapshotResponse(snapshot=render.to_snapshot(snapshot))

    async def ListVolumeSnapshots(
        self, request: pb.ListVolumeSnapshotsRequest, context: Context
    ) -> pb.ListVolumeSnapshotsResponse:
        ref = parse.volume_ref(request, self._app)
        snapshots = await self._volumes.list_snapshots(ref, deadline_of(context))
        return pb.ListVolumeSnapshotsResponse(
            snapshots=[render.to_snapshot(snapshot) for snapshot in snapshots]
        )

    async def _restore(
        self, messages: AsyncIterator[pb.RestoreStateRequest], deadline: Deadline
    ) -> pb.RestoreStateResponse:
        first = await anext(aiter(messages), pb.RestoreStateRequest())
        ref, hook = parse.container_and_hook(first, self._app)
        chunks = parse.restore_chunks(first, _until_half_close(messages))
        digest = await self._state_transfer.restore(ref, hook, chunks, deadline)
        return pb.RestoreStateResponse(bytes_written=digest.total_bytes, sha256=digest.sha256)


def deadline_of(context: Context) -> Deadline:
    """The deadline for the use case: MARGIN_SECONDS before that of the caller."""
    # Typed as float, but None where the caller set no deadline.
    remaining = cast("float | None", context.time_remaining())
    if remaining is None:
        return Deadline.after(DEFAULT_SECONDS)
    return Deadline.after(remaining - min(MARGIN_SECONDS, remaining / 10))


async def _until_half_close(
    messages: AsyncIterator[pb.RestoreStateRequest],
) -> AsyncIterator[pb.RestoreStateRequest]:
    """The messages, ended only if the caller ended them.

    A call that is cancelled ends its messages too, just before grpc.aio cancels this task. The end
    must not reach the application first: it would take half a state for a whole one.
    """
    async for message in messages:
        yield message
    await asyncio.sleep(CANCEL_SECONDS)


async def _drain(messages: AsyncIterator[pb.RestoreStateRequest], deadline: Deadline) -> None:
    """Read and discard the rest of a stream.

    gRPC for Python reports to a caller that still writes when the call ends only that its write
    failed (INTERNAL), and not the status of the call. So a rejected caller may finish writing.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(deadline.remaining()):
            async for _ in messages:
                pass
