"""Messages into the service's words. Raises InvalidRequest and nothing else, whatever comes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, cast

from container_service.container import (
    MEMORY_LIMIT_MB,
    SPEC_HASH_LABEL,
    WAITABLE_STATES,
    ContainerRef,
    ContainerSpec,
    ContainerState,
    Guest,
    Mount,
    RestartPolicy,
    ServicePort,
    StateHook,
)
from container_service.creation import Wish
from container_service.fields import Fields, item
from roost.container.v1 import container_service_pb2 as pb

_RESTART_POLICIES = {
    pb.RESTART_POLICY_UNSPECIFIED: RestartPolicy.ON_FAILURE,
    pb.RESTART_POLICY_NO: RestartPolicy.NO,
    pb.RESTART_POLICY_ON_FAILURE: RestartPolicy.ON_FAILURE,
    pb.RESTART_POLICY_ALWAYS: RestartPolicy.ALWAYS,
}
_STATES = {
    pb.ContainerState.Value(f"CONTAINER_STATE_{state.name}"): state for state in ContainerState
}
#: What a shared and a performance machine may have of processors (Fly docs: machine sizing).
_CPUS = {"shared": (1, 2, 4, 6, 8), "performance": (1, 2, 4, 8, 16)}
#: Least memory per processor, and the step that memory comes in, in MB.
_MEMORY = {"shared": (256, 256), "performance": (2048, 1024)}

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
    seconds = fields.seconds("timeout", timeout, 0.1, 600)
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


def parse_spec(fields: Fields, spec: pb.ContainerSpec) -> ContainerSpec:
    """What a container is to be made of, with every default filled in."""
    if " " in spec.image:
        fields.wrong("spec.image", "must not hold spaces")
    policy = _RESTART_POLICIES.get(spec.restart_policy)
    if policy is None:
        fields.wrong("spec.restart_policy", "is not a value that this version knows")
    stop_timeout = fields.seconds(
        "spec.stop_timeout",
        spec.stop_timeout if spec.HasField("stop_timeout") else None,
        0.1,
        300,
    )
    return ContainerSpec(
        image=fields.text("spec.image", spec.image, 512, required=True),
        env=fields.env("spec.env", spec.env),
        guest=_guest(fields, spec.guest),
        region=fields.text("spec.region", spec.region, 64),
        services=_services(fields, spec),
        command=fields.command("spec.command", spec.command),
        ephemeral_root_filesystem=spec.ephemeral_root_filesystem,
        restart_policy=policy or RestartPolicy.ON_FAILURE,
        mounts=_mounts(fields, spec),
        state_hook=_state_hook(fields, spec),
        stop_timeout_seconds=5.0 if stop_timeout is None else float(stop_timeout),
    )


def _ref(fields: Fields, request: Named, default_app: str) -> ContainerRef:
    return ContainerRef(
        fields.app(request.app, default_app), fields.container_id(request.container_id)
    )


def _ttl(fields: Fields, request: pb.AcquireLeaseRequest | pb.RefreshLeaseRequest) -> int:
    value = request.ttl if request.HasField("ttl") else None
    seconds = fields.seconds("ttl", value, 1, 600, whole=True)
    return LEASE_SECONDS if seconds is None else int(seconds)


def _guest(fields: Fields, guest: pb.Guest) -> Guest:
    kind = guest.cpu_kind or "shared"
    if kind not in _CPUS:
        fields.wrong("spec.guest.cpu_kind", 'must be "shared" or "performance"')
        return Guest()
    cpus = guest.cpus or 1
    if cpus not in _CPUS[kind]:
        rule = ", ".join(str(count) for count in _CPUS[kind])
        fields.wrong("spec.guest.cpus", f"must be one of {rule}")
        return Guest()
    per_cpu, step = _MEMORY[kind]
    least = per_cpu * cpus
    memory = guest.memory_mb or least
    if not least <= memory <= MEMORY_LIMIT_MB:
        rule = f"must be between {least} and {MEMORY_LIMIT_MB}, for a suspend to be dependable"
        fields.wrong("spec.guest.memory_mb", rule)
    elif memory % step:
        fields.wrong("spec.guest.memory_mb", f"must be a multiple of {step}")
    return Guest(cast(Literal["shared", "performance"], kind), cpus, memory)


def _services(fields: Fields, spec: pb.ContainerSpec) -> tuple[ServicePort, ...]:
    if len(spec.services) > 16:
        fields.wrong("spec.services", "must be at most 16")
        return ()
    services = []
    for index, port in enumerate(spec.services):
        path = f"spec.services[{index}]"
        protocol = port.protocol or "tcp"
        if protocol not in ("tcp", "udp"):
            fields.wrong(f"{path}.protocol", 'must be "tcp" or "udp"')
        if not 1 <= port.internal_port <= 65_535:
            fields.wrong(f"{path}.internal_port", "must be between 1 and 65535")
        services.append(
            ServicePort(
                port.internal_port,
                cast(Literal["tcp", "udp"], protocol),
                autostart=not port.disable_autostart,
            )
        )
    if len({(port.internal_port, port.protocol) for port in services}) < len(services):
        fields.wrong("spec.services", "must not name a port twice")
    return tuple(services) or (ServicePort(internal_port=8080),)


def _mounts(fields: Fields, spec: pb.ContainerSpec) -> tuple[Mount, ...]:
    if len(spec.mounts) > 1:
        fields.wrong("spec.mounts", "must be at most one")
        return ()
    mounts = []
    for mount in spec.mounts:
        volume_id = fields.volume_id("spec.mounts[0].volume_id", mount.volume_id)
        path = fields.text("spec.mounts[0].path", mount.path, 256)
        if not path.startswith("/"):
            fields.wrong("spec.mounts[0].path", "must be an absolute path")
        mounts.append(Mount(volume_id, path))
    return tuple(mounts)


def _state_hook(fields: Fields, spec: pb.ContainerSpec) -> StateHook | None:
    kind = spec.state_hook.WhichOneof("hook")
    if kind is None:
        return None
    field = f"spec.state_hook.{kind}"
    value = fields.text(field, getattr(spec.state_hook, kind), 1024, required=True)
    if kind == "http_path" and not value.startswith("/"):
        fields.wrong(field, "must begin with a slash")
    return StateHook(kind, value)
