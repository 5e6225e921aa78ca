"""`ports.Containers` over gRPC: the client of container_service."""

from __future__ import annotations

import asyncio
import logging
import re
from contextlib import aclosing, suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import ParseDict
from google.rpc import error_details_pb2, status_pb2

from roost.container.v1 import container_service_pb2 as pb
from roost.container.v1.container_service_pb2_grpc import ContainerServiceStub
from session_service import errors, failpoints
from session_service.domain.session import ContainerState
from session_service.ports import (
    Address,
    Booted,
    ContainerAbsent,
    LeaseHeld,
    LeaseLost,
    Seen,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from google.protobuf.message import Message
    from google.protobuf.timestamp_pb2 import Timestamp

_log = logging.getLogger(__name__)
T = TypeVar("T", bound="Message")

_MEMORY: Mapping[int, bool | None] = {
    pb.MEMORY_PRESERVED_YES: True,
    pb.MEMORY_PRESERVED_NO: False,
}
_ERRORS: Mapping[str, type[errors.RoostError]] = {
    "SUSPEND_UNSUPPORTED": errors.SuspendUnsupported,
    "PROVIDER_CAPACITY": errors.ProviderCapacity,
    "PROVIDER_RATE_LIMITED": errors.ProviderRateLimited,
    "PROVIDER_REFUSED": errors.ProviderRefused,
    "INVALID_FIELD": errors.ProviderRefused,
    "REQUEST_ID_REUSED": errors.ProviderRefused,
    "VOLUME_NOT_FOUND": errors.VolumeAbsent,
    "VOLUME_IN_USE": errors.VolumeInUse,
    "STATE_HOOK_FAILED": errors.StateHookFailed,
    "STATE_TOO_LARGE": errors.CheckpointTooLarge,
}
BOOT_ID_COMMAND = ("cat", "/proc/sys/kernel/random/boot_id")
BOOT_ID = re.compile(r"[A-Za-z0-9-]{1,64}")
#: The longest wait for a state, and the longest lease, that container_service accepts, in s.
LONGEST = 600.0
#: Containers of a listing that are converted at once, if the listing comes as a whole.
PART = 100
_WAITED = (pb.CONTAINER_STATE_SUSPENDED, pb.CONTAINER_STATE_STOPPED)


def _details(error: grpc.aio.AioRpcError) -> tuple[str, dict[str, str], float | None]:
    """The error's machine-readable reason ("" without one), metadata, and retry delay in s."""
    reason, metadata, delay = "", {}, None
    for key, value in error.trailing_metadata() or ():
        if key != "grpc-status-details-bin" or not isinstance(value, bytes):
            continue
        for detail in status_pb2.Status.FromString(value).details:
            info = error_details_pb2.ErrorInfo()
            retry = error_details_pb2.RetryInfo()
            if detail.Unpack(info):
                reason, metadata = info.reason, dict(info.metadata)
            elif detail.Unpack(retry):
                delay = retry.retry_delay.ToTimedelta().total_seconds()
    return reason, metadata, delay


def translated(error: grpc.aio.AioRpcError) -> Exception:
    """Translate an error of container_service into an error of this service.

    An error with an unknown reason becomes ProviderUnavailable: the call may have taken effect.
    """
    reason, metadata, delay = _details(error)
    text = error.details() or error.code().name
    metadata["container_reason"] = reason or error.code().name
    match reason:
        case "CONTAINER_NOT_FOUND":
            return ContainerAbsent(text)
        case "LEASE_HELD":
            return LeaseHeld(text)
        case "LEASE_LOST":
            return LeaseLost(text)
    kind = _ERRORS.get(reason)
    if kind is None:
        return errors.ProviderUnavailable(
            f"the container provider did not answer clearly ({text}); try again",
            metadata,
            delay or 1.0,
        )
    if issubclass(kind, errors.Retryable):
        return kind(text, metadata, delay or 1.0)
    return kind(text, metadata)


def _time(stamp: Timestamp) -> datetime:
    return stamp.ToDatetime(tzinfo=UTC)


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromTimedelta(timedelta(seconds=seconds))
    return duration


def state_of(number: int) -> ContainerState:
    """The container's state. A number that this version does not know is UNKNOWN: it must not be
    taken for a container that is stopped or destroyed.
    """
    try:
        name = pb.ContainerState.Name(number)  # type: ignore[arg-type]  # any int may come
    except ValueError:
        return ContainerState.UNKNOWN
    return ContainerState(name.removeprefix("CONTAINER_STATE_"))


def _seen(container: pb.Container) -> Seen:
    started = container.last_start_time if container.HasField("last_start_time") else None
    return Seen(
        Address(container.app, container.container_id),
        state_of(container.state),
        container.region,
        container.cordoned,
        None if started is None else _time(started),
        dict(container.labels),
        _time(container.create_time) if container.HasField("create_time") else None,
    )


def valid_boot_id(text: str) -> str | None:
    """The boot id in a guest's output, or None if the output is not a boot id.

    The user's code controls the output. Two empty outputs would be equal and prove nothing, and
    unchecked text must not be written to the database.
    """
    boot_id = text.strip()
    return boot_id if BOOT_ID.fullmatch(boot_id) else None


class _NoStreamContainers(Exception):
    """container_service is of a version before StreamContainers."""


class GrpcContainers:
    """Calls container_service over one channel, which stays open as long as the process runs."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = ContainerServiceStub(channel)

    async def _call(
        self,
        failpoint: str,
        method: grpc.aio.UnaryUnaryMultiCallable[Any, T],
        request: Message,
        timeout: float,
    ) -> T:
        """Make one call with a time-out (s), and translate its error. `failpoint` is its name in
        `failpoints`.
        """
        if timeout <= 0:
            raise errors.ProviderUnavailable(
                "no time is left for a call of the provider; try again"
            )
        try:
            return await failpoints.around(failpoint, method(request, timeout=timeout))
        except grpc.aio.AioRpcError as error:
            raise translated(error) from error

    async def create(
        self,
        app: str,
        name: str,
        spec: Mapping[str, Any],
        labels: Mapping[str, str],
        *,
        timeout: float,
    ) -> Seen:
        message = ParseDict(dict(spec), pb.ContainerSpec(), ignore_unknown_fields=True)
        request = pb.CreateContainerRequest(app=app, name=name, spec=message, labels=labels)
        return _seen(
            (await self._call("create", self._stub.CreateContainer, request, timeout)).container
        )

    async def get(self, address: Address, *, timeout: float) -> Seen:
        request = pb.GetContainerRequest(app=address.app, container_id=address.container_id)
        return _seen((await self._call("get", self._stub.GetContainer, request, timeout)).container)

    async def list(self, app: str, labels: Mapping[str, str], *, timeout: float) -> list[Seen]:
        answer = await self._listed(app, labels, timeout)
        return [_seen(container) for container in answer.containers]

    async def _listed(
        self, app: str, labels: Mapping[str, str], timeout: float
    ) -> pb.ListContainersResponse:
        request = pb.ListContainersRequest(app=app, labels=labels)
        return await self._call("list", self._stub.ListContainers, request, timeout)

    async def stream(self, app: str, *, timeout: float) -> AsyncGenerator[Sequence[Seen], None]:
        with suppress(_NoStreamContainers):
            async with aclosing(self._streamed(app, timeout)) as parts:
                async for part in parts:
                    yield part
            return
        answer = await self._listed(app, {}, timeout)
        for begin in range(0, len(answer.containers), PART):
            yield [_seen(container) for container in answer.containers[begin : begin + PART]]
            await asyncio.sleep(0)

    async def _streamed(self, app: str, timeout: float) -> AsyncGenerator[Sequence[Seen], None]:
        call = self._stub.StreamContainers(pb.StreamContainersRequest(app=app), timeout=timeout)
        count, complete = 0, False
        try:
            message = await failpoints.around("stream", call.read())
            while isinstance(message, pb.StreamContainersResponse):
                count += len(message.containers)
                # Neither a stream that was cut off nor one that lacks a message is a whole list.
                complete = message.complete and message.container_count == count
                if message.containers:
                    yield [_seen(container) for container in message.containers]
                message = await call.read()
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED and not count:
                raise _NoStreamContainers from error
            raise translated(error) from error
        finally:
            call.cancel()
        if not complete:
            raise errors.ProviderUnavailable(
                "the list of containers ended before it was complete; try again"
            )

    async def wait_started(self, address: Address, *, timeout: float) -> None:
        request = pb.WaitContainerRequest(
            app=address.app,
            container_id=address.container_id,
            states=[pb.CONTAINER_STATE_STARTED, pb.CONTAINER_STATE_FAILED],
            timeout=_duration(min(timeout, LONGEST)),
        )
        answer = await self._call("wait_started", self._stub.WaitContainer, request, timeout + 1)
        if answer.state == pb.CONTAINER_STATE_FAILED:
            raise errors.ProviderRefused(
                "the container could not be started: check spec.image and spec.command"
            )

    async def wait_paused(self, address: Address, *, timeout: float) -> ContainerState | None:
        request = pb.WaitContainerRequest(
            app=address.app,
            container_id=address.container_id,
            states=_WAITED,
            timeout=_duration(min(timeout, LONGEST)),
        )
        try:
            answer = await self._call("wait_paused", self._stub.WaitContainer, request, timeout + 2)
        except errors.ProviderUnavailable as error:
            if error.metadata.get("container_reason") == "WAIT_TIMED_OUT":
                return None
            raise
        return state_of(answer.state)

    async def read_boot_id(self, address: Address, *, timeout: float) -> str | None:
        output = await self._read("read_boot_id", address, BOOT_ID_COMMAND, timeout)
        return None if output is None else valid_boot_id(output)

    async def read_text(
        self, address: Address, command: Sequence[str], *, timeout: float
    ) -> str | None:
        return await self._read("read_text", address, command, timeout)

    async def _read(
        self, failpoint: str, address: Address, command: Sequence[str], timeout: float
    ) -> str | None:
        request = pb.ExecContainerRequest(
            app=address.app, container_id=address.container_id, command=command
        )
        try:
            answer = await self._call(failpoint, self._stub.ExecContainer, request, timeout)
        except (errors.RoostError, ContainerAbsent, LeaseHeld, LeaseLost) as error:
            _log.warning(
                "the guest did not answer: %s",
                error,
                extra={"action": failpoint, "container_id": address.container_id},
            )
            return None
        return answer.stdout if answer.exit_code == 0 else None

    async def resume(
        self, address: Address, expected_boot_id: str | None, *, timeout: float
    ) -> Booted:
        request = pb.ResumeContainerRequest(
            app=address.app,
            container_id=address.container_id,
            expected_boot_id=expected_boot_id or "",
        )
        answer = await self._call("resume", self._stub.ResumeContainer, request, timeout)
        boot_id = valid_boot_id(answer.boot_id)
        preserved = None if boot_id is None else _MEMORY.get(answer.memory_preserved)
        return Booted(preserved, boot_id, answer.evidence)

    async def suspend(self, address: Address, nonce: str, *, timeout: float) -> Seen:
        request = pb.SuspendContainerRequest(
            app=address.app, container_id=address.container_id, lease_nonce=nonce
        )
        return _seen(
            (await self._call("suspend", self._stub.SuspendContainer, request, timeout)).container
        )

    async def stop(self, address: Address, nonce: str, *, timeout: float) -> Seen:
        request = pb.StopContainerRequest(
            app=address.app, container_id=address.container_id, lease_nonce=nonce
        )
        return _seen(
            (await self._call("stop", self._stub.StopContainer, request, timeout)).container
        )

    async def destroy(self, address: Address, nonce: str | None, *, timeout: float) -> None:
        request = pb.DestroyContainerRequest(
            app=address.app, container_id=address.container_id, lease_nonce=nonce or "", force=True
        )
        try:
            await self._call("destroy", self._stub.DestroyContainer, request, timeout)
        except ContainerAbsent:
            return

    async def cordon(self, address: Address, nonce: str, *, timeout: float) -> None:
        request = pb.CordonContainerRequest(
            app=address.app, container_id=address.container_id, lease_nonce=nonce
        )
        await self._call("cordon", self._stub.CordonContainer, request, timeout)

    async def uncordon(self, address: Address, *, timeout: float) -> None:
        request = pb.UncordonContainerRequest(app=address.app, container_id=address.container_id)
        await self._call("uncordon", self._stub.UncordonContainer, request, timeout)

    async def acquire_lease(
        self, address: Address, *, ttl: float, wait: float, timeout: float
    ) -> str:
        request = pb.AcquireLeaseRequest(
            app=address.app,
            container_id=address.container_id,
            ttl=_duration(min(ttl, LONGEST)),
            description="roost session_service",
            wait_timeout=_duration(min(wait, LONGEST)),
        )
        answer = await self._call("acquire_lease", self._stub.AcquireLease, request, timeout)
        return answer.lease.nonce

    async def release_lease(self, address: Address, nonce: str, *, timeout: float) -> None:
        request = pb.ReleaseLeaseRequest(
            app=address.app, container_id=address.container_id, lease_nonce=nonce
        )
        try:
            await self._call("release_lease", self._stub.ReleaseLease, request, timeout)
        except (errors.RoostError, ContainerAbsent, LeaseHeld, LeaseLost) as error:
            _log.warning(
                "a container's lease could not be released; it will expire: %s",
                error,
                extra={"action": "release_lease", "container_id": address.container_id},
            )
