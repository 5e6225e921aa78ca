"""Messages into the service's words. Raises InvalidRequest and nothing else, whatever comes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from container_service.container import (
    SPEC_HASH_LABEL,
    WAITABLE_STATES,
    ContainerRef,
    ContainerSpec,
    ContainerState,
)
from container_service.creation import Wish
from container_service.fields import Fields, item
from container_service.specs import parse_spec
from roost.container.v1 import container_service_pb2 as pb

_STATES = {
    pb.ContainerState.Value(f"CONTAINER_STATE_{state.name}"): state for state in ContainerState
}

LEASE_SECONDS = 30
EXEC_SECONDS = 10.0


class Named(Protocol):
    """A message that names a container."""

    app: str
    container_id: str


@dataclass(frozen=True, slots=True)
class LeaseTerms:
    """For how long and for what a lease is asked."""

    ttl_seconds: int
    description: str
    wait_seconds: float


def parse_ref(request: Named, default_app: str) -> ContainerRef:
    """The container that a message names."""
    fields = Fields()
    ref = _ref(fields, request, default_app)
    fields.done()
    return ref


def parse_ref_and_nonce(
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
    """The container that a message names, and the lease nonce that it shows."""
    fields = Fields()
    ref = _ref(fields, request, default_app)
    nonce = fields.nonce(request.lease_nonce, required=required)
    fields.done()
    return ref, nonce


def parse_create(request: pb.CreateContainerRequest, default_app: str) -> Wish:
    """The container that is wanted."""
    fields = Fields()
    app = fields.app(request.app, default_app)
    name = fields.name(request.name)
    labels = fields.labels("labels", request.labels)
    if SPEC_HASH_LABEL in labels:
        fields.wrong(item("labels", SPEC_HASH_LABEL), "is set by the service itself")
    if not request.HasField("spec"):
        fields.wrong("spec", "must be set")
    spec = parse_spec(fields, request.spec) if request.HasField("spec") else ContainerSpec("")
    fields.done()
    return Wish(app, name, spec, labels)


def parse_list(request: pb.ListContainersRequest, default_app: str) -> tuple[str, dict[str, str]]:
    """The application to list, and the labels to look for."""
    fields = Fields()
    app = fields.app(request.app, default_app)
    labels = fields.labels("labels", request.labels)
    fields.done()
    return app, labels


def parse_resume(request: pb.ResumeContainerRequest, default_app: str) -> tuple[ContainerRef, str]:
    """The container to resume, and the boot id that is expected."""
    fields = Fields()
    ref = _ref(fields, request, default_app)
    expected = fields.text("expected_boot_id", request.expected_boot_id, 64)
    fields.done()
    return ref, expected


def parse_stop(
    request: pb.StopContainerRequest, default_app: str
) -> tuple[ContainerRef, str, float | None]:
    """The container to stop, the lease nonce, and the seconds that it is given."""
    fields = Fields()
    ref = _ref(fields, request, default_app)
    nonce = fields.nonce(request.lease_nonce)
    timeout = request.timeout if request.HasField("timeout") else None
    seconds = fields.seconds("timeout", timeout, 0.1, 300)
    fields.done()
    return ref, nonce, seconds


def parse_wait(
    request: pb.WaitContainerRequest, default_app: str
) -> tuple[ContainerRef, frozenset[ContainerState], float | None]:
    """The container to wait for, the states that end the wait, and the seconds that it may take."""
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


def parse_exec(
    request: pb.ExecContainerRequest, default_app: str
) -> tuple[ContainerRef, tuple[str, ...], float]:
    """The container, the command to run in it, and the seconds that it may take."""
    fields = Fields()
    ref = _ref(fields, request, default_app)
    command = fields.command("command", request.command, required=True)
    timeout = request.timeout if request.HasField("timeout") else None
    seconds = fields.seconds("timeout", timeout, 0.1, 60)
    fields.done()
    return ref, command, EXEC_SECONDS if seconds is None else seconds


def parse_acquire(
    request: pb.AcquireLeaseRequest, default_app: str
) -> tuple[ContainerRef, LeaseTerms]:
    """The container, and the terms of the lease that is asked for."""
    fields = Fields()
    ref = _ref(fields, request, default_app)
    ttl = _ttl(fields, request)
    description = fields.text("description", request.description, 256)
    patience = request.wait_timeout if request.HasField("wait_timeout") else None
    wait_seconds = fields.seconds("wait_timeout", patience, 0, 600)
    fields.done()
    return ref, LeaseTerms(ttl, description, wait_seconds or 0.0)


def parse_refresh(
    request: pb.RefreshLeaseRequest, default_app: str
) -> tuple[ContainerRef, str, int]:
    """The container, the lease's nonce, and the seconds to hold it from now on."""
    fields = Fields()
    ref = _ref(fields, request, default_app)
    nonce = fields.nonce(request.lease_nonce, required=True)
    ttl = _ttl(fields, request)
    fields.done()
    return ref, nonce, ttl


def _ref(fields: Fields, request: Named, default_app: str) -> ContainerRef:
    return ContainerRef(
        fields.app(request.app, default_app), fields.container_id(request.container_id)
    )


def _ttl(fields: Fields, request: pb.AcquireLeaseRequest | pb.RefreshLeaseRequest) -> int:
    value = request.ttl if request.HasField("ttl") else None
    seconds = fields.seconds("ttl", value, 1, 600, whole=True)
    return LEASE_SECONDS if seconds is None else int(seconds)
