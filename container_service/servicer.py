"""The gRPC face: parse, call, render.

What each method promises is written beside its RPC in the contract.
"""
# ruff: noqa: D102

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from container_service import convert, render
from container_service.booting import Booting
from container_service.context import Context, deadline_of
from container_service.creation import Creating
from container_service.halting import Halting
from container_service.leasing import Leasing
from container_service.state_servicer import StateServicer
from container_service.waiting import Waiting
from roost.container.v1 import container_service_pb2 as pb

if TYPE_CHECKING:
    from container_service.provider import Provider, VolumeProvider
    from container_service.transferring import Transferring


class ContainerServicer(StateServicer):
    """Answers roost.container.v1.ContainerService."""

    def __init__(
        self,
        provider: Provider,
        volumes: VolumeProvider,
        transferring: Transferring,
        default_app: str,
        lag_window: float,
    ) -> None:
        super().__init__(provider, volumes, transferring, default_app)
        self._provider = provider
        self._waiting = Waiting(provider, lag_window)
        self._leasing = Leasing(provider)
        self._creating = Creating(provider, lag_window)
        self._booting = Booting(provider, self._waiting)
        self._halting = Halting(provider, self._leasing, self._waiting)

    async def aclose(self) -> None:
        """End what goes on behind the calls."""
        await self._creating.aclose()
        await self._leasing.aclose()

    async def CreateContainer(
        self, request: pb.CreateContainerRequest, context: Context
    ) -> pb.CreateContainerResponse:
        wish = convert.parse_create(request, self._app)
        creation = await self._creating.create(wish, deadline_of(context))
        return pb.CreateContainerResponse(
            container=render.to_container(creation.container), adopted=creation.adopted
        )

    async def GetContainer(
        self, request: pb.GetContainerRequest, context: Context
    ) -> pb.GetContainerResponse:
        ref = convert.parse_ref(request, self._app)
        container = await self._provider.get(ref, deadline_of(context))
        return pb.GetContainerResponse(container=render.to_container(container))

    async def ListContainers(
        self, request: pb.ListContainersRequest, context: Context
    ) -> pb.ListContainersResponse:
        app, labels = convert.parse_list(request, self._app)
        begun = datetime.now(UTC)
        containers = await self._provider.list(
            app, labels, deadline_of(context), include_destroyed=request.include_destroyed
        )
        return pb.ListContainersResponse(
            containers=[render.to_container(container) for container in containers],
            list_time=render.to_timestamp(begun),
        )

    async def StartContainer(
        self, request: pb.StartContainerRequest, context: Context
    ) -> pb.StartContainerResponse:
        ref, nonce = convert.parse_ref_and_nonce(request, self._app)
        boot = await self._booting.start(ref, nonce, deadline_of(context))
        return pb.StartContainerResponse(
            container=render.to_container(boot.container), boot_id=boot.boot_id
        )

    async def SuspendContainer(
        self, request: pb.SuspendContainerRequest, context: Context
    ) -> pb.SuspendContainerResponse:
        ref, nonce = convert.parse_ref_and_nonce(request, self._app)
        container = await self._halting.suspend(ref, nonce, deadline_of(context))
        return pb.SuspendContainerResponse(container=render.to_container(container))

    async def ResumeContainer(
        self, request: pb.ResumeContainerRequest, context: Context
    ) -> pb.ResumeContainerResponse:
        ref, expected = convert.parse_resume(request, self._app)
        resumption = await self._booting.resume(ref, expected, deadline_of(context))
        return render.to_resume_response(resumption)

    async def StopContainer(
        self, request: pb.StopContainerRequest, context: Context
    ) -> pb.StopContainerResponse:
        ref, nonce, seconds = convert.parse_stop(request, self._app)
        container = await self._halting.stop(ref, nonce, seconds, deadline_of(context))
        return pb.StopContainerResponse(container=render.to_container(container))

    async def DestroyContainer(
        self, request: pb.DestroyContainerRequest, context: Context
    ) -> pb.DestroyContainerResponse:
        ref, nonce = convert.parse_ref_and_nonce(request, self._app)
        container = await self._halting.destroy(
            ref, nonce, deadline_of(context), force=request.force
        )
        return pb.DestroyContainerResponse(
            container=render.to_container(container) if container else None
        )

    async def CordonContainer(
        self, request: pb.CordonContainerRequest, context: Context
    ) -> pb.CordonContainerResponse:
        ref, nonce = convert.parse_ref_and_nonce(request, self._app)
        await self._provider.set_cordoned(ref, nonce, deadline_of(context), cordoned=True)
        return pb.CordonContainerResponse()

    async def UncordonContainer(
        self, request: pb.UncordonContainerRequest, context: Context
    ) -> pb.UncordonContainerResponse:
        ref, nonce = convert.parse_ref_and_nonce(request, self._app)
        await self._provider.set_cordoned(ref, nonce, deadline_of(context), cordoned=False)
        return pb.UncordonContainerResponse()

    async def WaitContainer(
        self, request: pb.WaitContainerRequest, context: Context
    ) -> pb.WaitContainerResponse:
        ref, states, seconds = convert.parse_wait(request, self._app)
        deadline = deadline_of(context)
        if seconds is not None:
            deadline = deadline.within(seconds)
        state = await self._waiting.until(ref, states, deadline)
        return pb.WaitContainerResponse(state=render.to_state(state))

    async def ExecContainer(
        self, request: pb.ExecContainerRequest, context: Context
    ) -> pb.ExecContainerResponse:
        ref, command, seconds = convert.parse_exec(request, self._app)
        result = await self._provider.execute(ref, command, seconds, deadline_of(context))
        return pb.ExecContainerResponse(
            exit_code=result.exit_code, stdout=result.stdout, stderr=result.stderr
        )

    async def AcquireLease(
        self, request: pb.AcquireLeaseRequest, context: Context
    ) -> pb.AcquireLeaseResponse:
        ref, terms = convert.parse_acquire(request, self._app)
        lease = await self._leasing.acquire(
            ref, terms.ttl_seconds, terms.description, terms.wait_seconds, deadline_of(context)
        )
        return pb.AcquireLeaseResponse(lease=render.to_lease(lease))

    async def RefreshLease(
        self, request: pb.RefreshLeaseRequest, context: Context
    ) -> pb.RefreshLeaseResponse:
        ref, nonce, ttl = convert.parse_refresh(request, self._app)
        lease = await self._provider.refresh_lease(ref, nonce, ttl, deadline_of(context))
        return pb.RefreshLeaseResponse(lease=render.to_lease(lease))

    async def ReleaseLease(
        self, request: pb.ReleaseLeaseRequest, context: Context
    ) -> pb.ReleaseLeaseResponse:
        ref, nonce = convert.parse_ref_and_nonce(request, self._app, required=True)
        await self._provider.release_lease(ref, nonce, deadline_of(context))
        return pb.ReleaseLeaseResponse()
