"""Convert a ContainerSpec message to the model, with every default filled in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, cast

from container_service.containers.model import (
    MEMORY_LIMIT_MB,
    ContainerSpec,
    Guest,
    Mount,
    RestartPolicy,
    ServicePort,
    StateHook,
)
from roost.container.v1 import container_service_pb2 as pb

if TYPE_CHECKING:
    from container_service.rpc.fields import Fields

_RESTART_POLICIES = {
    pb.RESTART_POLICY_UNSPECIFIED: RestartPolicy.ON_FAILURE,
    pb.RESTART_POLICY_NO: RestartPolicy.NO,
    pb.RESTART_POLICY_ON_FAILURE: RestartPolicy.ON_FAILURE,
    pb.RESTART_POLICY_ALWAYS: RestartPolicy.ALWAYS,
}
#: Numbers of CPUs that a machine of each kind may have (Fly docs: machine sizing).
_CPUS = {"shared": (1, 2, 4, 6, 8), "performance": (1, 2, 4, 8, 16)}
#: The smallest memory per CPU, and the step of memory sizes, in MB.
_MEMORY = {"shared": (256, 256), "performance": (2048, 1024)}

#: The largest number of characters of a hook's path or command.
HOOK_LIMIT = 1024


def parse_spec(fields: Fields, spec: pb.ContainerSpec) -> ContainerSpec:
    """The spec. Faults are added to `fields`; the result is meaningless if there are any."""
    if " " in spec.image:
        fields.wrong("spec.image", "must not contain spaces")
    policy = _RESTART_POLICIES.get(spec.restart_policy)
    if policy is None:
        fields.wrong("spec.restart_policy", "is not a value that this version of the service knows")
    _check_activity(fields, spec.activity)
    # Only checked: session_service compares it, the provider does not get it.
    fields.text("spec.secret_generation", spec.secret_generation, 64)
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
        state_hook=parse_state_hook(fields, "spec.state_hook", spec.state_hook),
        stop_timeout_seconds=5.0 if stop_timeout is None else float(stop_timeout),
    )


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
        rule = f"must be between {least} and {MEMORY_LIMIT_MB}, so that Fly can suspend the machine"
        fields.wrong("spec.guest.memory_mb", rule)
    elif memory % step:
        fields.wrong("spec.guest.memory_mb", f"must be a multiple of {step}")
    return Guest(cast("Literal['shared', 'performance']", kind), cpus, memory)


def _services(fields: Fields, spec: pb.ContainerSpec) -> tuple[ServicePort, ...]:
    if len(spec.services) > 16:
        fields.wrong("spec.services", "must have at most 16 entries")
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
                cast("Literal['tcp', 'udp']", protocol),
                autostart=not port.disable_autostart,
            )
        )
    if len({(port.internal_port, port.protocol) for port in services}) < len(services):
        fields.wrong("spec.services", "must not contain a port twice")
    return tuple(services) or (ServicePort(internal_port=8080),)


def _mounts(fields: Fields, spec: pb.ContainerSpec) -> tuple[Mount, ...]:
    if len(spec.mounts) > 1:
        fields.wrong("spec.mounts", "must have at most one entry")
        return ()
    mounts = []
    for mount in spec.mounts:
        volume_id = fields.volume_id("spec.mounts[0].volume_id", mount.volume_id)
        path = fields.text("spec.mounts[0].path", mount.path, 256)
        if not path.startswith("/"):
            fields.wrong("spec.mounts[0].path", "must be an absolute path")
        mounts.append(Mount(volume_id, path))
    return tuple(mounts)


def _check_activity(fields: Fields, source: pb.ActivitySource) -> None:
    """Check only: session_service uses it, and it is no part of the container or its spec hash."""
    match source.WhichOneof("source"):
        case "http_path":
            fields.http_path("spec.activity.http_path", source.http_path, HOOK_LIMIT)
        case "connections_port":
            if not 1 <= source.connections_port <= 65_535:
                fields.wrong("spec.activity.connections_port", "must be between 1 and 65535")


def parse_state_hook(fields: Fields, field: str, hook: pb.StateHook) -> StateHook | None:
    """The state hook of a message; None if it is not set."""
    match hook.WhichOneof("hook"):
        case "http_path":
            value = fields.http_path(f"{field}.http_path", hook.http_path, HOOK_LIMIT)
            return StateHook("http_path", value)
        case "command":
            value = fields.text(f"{field}.command", hook.command, HOOK_LIMIT, required=True)
            return StateHook("command", value)
    return None
