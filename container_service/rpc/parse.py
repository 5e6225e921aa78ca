"""Convert request messages to the model. Every function raises InvalidRequest and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from container_service.containers.create import CreateRequest
from container_service.containers.model import (
    SIZE_LIMIT_GB,
    SPEC_HASH_LABEL,
    WAITABLE_STATES,
    ContainerRef,
    ContainerSpec,
    ContainerState,
    StateHook,
    VolumeCreateRequest,
    VolumeRef,
)
from container_service.rpc.fields import Fields, item
from container_service.rpc.parse_spec import parse_spec, parse_state_hook
from roost.container.v1 import container_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

_EMPTY_RESTORE = pb.RestoreStateRequest()
_STATES = {
    pb.ContainerState.Value(f"CONTAINER_STATE_{state.name}"): state for state in ContainerState
}

#: Defaults of the contract, in seconds.
LEASE_SECONDS = 30
EXEC_SECONDS = 10.0


class NamesContainer(Protocol):
    """A message that identifies a container."""

    app: str
    container_id: str


class NamesVolume(Protocol):
    """A message that identifies a volume."""

    app: str
    volume_id: str


@dataclass(frozen=True, slots=True)
class LeaseTerms:
    """The lease to acquire, and how long to wait for it. Times in seconds."""

    ttl_seconds: int
    description: str
    wait_seconds: float


def container_ref(request: NamesContainer, default_app: str) -> ContainerRef:
    """The container that a message identifies."""
    fields = Fields()
    ref = _ref(fields, request, default_app)
    fields.done()
    return ref


def container_and_nonce(
    request: pb.StartContainerRequest
    | pb.SuspendContainerRequest
    | pb.DestroyContainerRequest
    | pb.CordonContainerRequest
    | pb.UncordonContainerRequest
    | pb.ReleaseLeaseRequest,
    default_app: str,
    *,
    required: bool = False,
) -> tuple[ContainerRef, str]:
    """The container, and the lease nonce."""
    fields = Fields()
    ref = _ref(fields, request, default_app)
    nonce = fields.nonce(request.lease_nonce, required=required)
    fields.done()
    return ref, nonce


def create_container(request: pb.CreateContainerRequest, default_app: str) -> CreateRequest:
    """The container to create."""
    fields = Fields()
    app = fields.app(request.app, default_app)
    name = fields.name(request.name)
    labels = fields.labels("labels", request.labels)
    if SPEC_HASH_LABEL in labels:
        fields.wrong(item("labels", SPEC_HASH_LABEL), "is reserved: the service sets it")
    if not request.HasField("spec"):
        fields.wrong("spec", "must be set")
    spec = parse_spec(fields, request.spec) if request.HasField("spec") else ContainerSpec("")
    fields.done()
    return CreateRequest(app, name, spec, labels)


def list_containers(
    request: pb.ListContainersRequest | pb.StreamContainersRequest, default_app: str
) -> tuple[str, dict[str, str]]:
    """The app, and the labels to filter by."""
    fields = Fields()
    app = fields.app(request.app, default_app)
    labels = fields.labels("labels", request.labels)
    fields.done()
    return app, labels


def resume_container(
    request: pb.ResumeContainerRequest, default_app: str
) -> tuple[ContainerRef, str]:
    """The container to resume, and the expected boot id."""
    fields = Fields()
    ref = _ref(fields, request, default_app)
    expected = fields.text("expected_boot_id", request.expected_boot_id, 64)
    fields.done()
    return ref, expected


def stop_container(
    request: pb.StopContainerRequest, default_app: str
) -> tuple[ContainerRef, str, float | None]:
    """The container to stop, the lease nonce, and the seconds before the main process is killed."""
    fields = Fields()
    ref = _ref(fields, request, default_app)
    nonce = fields.nonce(request.lease_nonce)
    timeout = request.timeout if request.HasField("timeout") else None
    seconds = fields.seconds("timeout", timeout, 0.1, 300)
    fields.done()
    return ref, nonce, seconds


def wait_container(
    request: pb.WaitContainerRequest, default_app: str
) -> tuple[ContainerRef, frozenset[ContainerState], float | None]:
    """The container, the states that end the wait, and the longest wait in seconds."""
    fields = Fields()
    ref = _ref(fields, request, default_app)
    states = set()
    for index, number in enumerate(request.states):
        state = _STATES.get(number)
        if state in WAITABLE_STATES:
            states.add(state)
        else:
            rule = "must be STARTED, STOPPED, SUSPENDED, DESTROYED or FAILED"
            fields.wrong(f"states[{index}]", rule)
    timeout = request.timeout if request.HasField("timeout") else None
    seconds = fields.seconds("timeout", timeout, 0, 600)
    fields.done()
    return ref, frozenset(states) or frozenset({ContainerState.STARTED}), seconds


def exec_container(
    request: pb.ExecContainerRequest, default_app: str
) -> tuple[ContainerRef, tuple[str, ...], float]:
    """The container, the command, and its timeout in seconds."""
    fields = Fields()
    ref = _ref(fields, request, default_app)
    command = fields.command("command", request.command, required=True)
    timeout = request.timeout if request.HasField("timeout") else None
    seconds = fields.seconds("timeout", timeout, 0.1, 60)
    fields.done()
    return ref, command, EXEC_SECONDS if seconds is None else seconds


def acquire_lease(
    request: pb.AcquireLeaseRequest, default_app: str
) -> tuple[ContainerRef, LeaseTerms]:
    """The container, and the lease to acquire."""
    fields = Fields()
    ref = _ref(fields, request, default_app)
    ttl = _ttl(fields, request)
    description = fields.text("description", request.description, 256)
    wait_timeout = request.wait_timeout if request.HasField("wait_timeout") else None
    wait_seconds = fields.seconds("wait_timeout", wait_timeout, 0, 600)
    fields.done()
    return ref, LeaseTerms(ttl, description, wait_seconds or 0.0)


def refresh_lease(
    request: pb.RefreshLeaseRequest, default_app: str
) -> tuple[ContainerRef, str, int]:
    """The container, the nonce of the lease, and its new duration in seconds from now."""
    fields = Fields()
    ref = _ref(fields, request, default_app)
    nonce = fields.nonce(request.lease_nonce, required=True)
    ttl = _ttl(fields, request)
    fields.done()
    return ref, nonce, ttl


def container_and_hook(
    request: pb.CaptureStateRequest | pb.RestoreStateRequest, default_app: str
) -> tuple[ContainerRef, StateHook]:
    """The container, and its state hook."""
    fields = Fields()
    ref = ContainerRef(
        fields.app(request.app, default_app), fields.container_id(request.container_id)
    )
    hook = parse_state_hook(fields, "state_hook", request.state_hook)
    if hook is None:
        fields.wrong("state_hook", "must be set to an http_path or a command")
    fields.done()
    assert hook is not None
    return ref, hook


async def restore_chunks(
    first: pb.RestoreStateRequest, later: AsyncIterator[pb.RestoreStateRequest]
) -> AsyncGenerator[bytes]:
    """The bytes of a restore. Only the first message may identify a container."""
    yield first.chunk
    async for message in later:
        fields = Fields()
        for name in ("app", "container_id", "state_hook"):
            if getattr(message, name) != getattr(_EMPTY_RESTORE, name):
                fields.wrong(name, "may be set in the first message only")
        fields.done()
        yield message.chunk


def volume_ref(request: NamesVolume, default_app: str) -> VolumeRef:
    """The volume that a message identifies."""
    fields = Fields()
    app = fields.app(request.app, default_app)
    ref = VolumeRef(app, fields.volume_id("volume_id", request.volume_id))
    fields.done()
    return ref


def list_volumes(request: pb.ListVolumesRequest, default_app: str) -> str:
    """The app whose volumes to list."""
    fields = Fields()
    app = fields.app(request.app, default_app)
    fields.done()
    return app


def create_volume(request: pb.CreateVolumeRequest, default_app: str) -> VolumeCreateRequest:
    """The volume to create."""
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
    return VolumeCreateRequest(app, name, region, request.size_gb, snapshot_id)


def _ref(fields: Fields, request: NamesContainer, default_app: str) -> ContainerRef:
    return ContainerRef(
        fields.app(request.app, default_app), fields.container_id(request.container_id)
    )


def _ttl(fields: Fields, request: pb.AcquireLeaseRequest | pb.RefreshLeaseRequest) -> int:
    value = request.ttl if request.HasField("ttl") else None
    seconds = fields.seconds("ttl", value, 1, 600, whole=True)
    return LEASE_SECONDS if seconds is None else int(seconds)
