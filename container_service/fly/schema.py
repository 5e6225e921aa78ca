"""Convert Fly's JSON to the model, and specs to Fly's JSON.

Reading is lenient, because Fly adds fields and values without notice: a missing field gets its
default, an unknown state is UNKNOWN. Only a body of the wrong kind is an error.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any

from container_service.containers.errors import ProviderUnavailable
from container_service.containers.model import (
    SPEC_HASH_LABEL,
    Container,
    ContainerRef,
    ContainerSpec,
    ContainerState,
    ExecResult,
    Lease,
    ServicePort,
    spec_hash,
)

Json = Any
Object = Mapping[str, Any]

_STATES = {
    "creating": ContainerState.CREATED,
    "created": ContainerState.CREATED,
    "starting": ContainerState.STARTING,
    "restarting": ContainerState.STARTING,
    "started": ContainerState.STARTED,
    "stopping": ContainerState.STOPPING,
    "stopped": ContainerState.STOPPED,
    "suspending": ContainerState.SUSPENDING,
    "suspended": ContainerState.SUSPENDED,
    "updating": ContainerState.UPDATING,
    "replacing": ContainerState.UPDATING,
    "destroying": ContainerState.DESTROYING,
    "destroyed": ContainerState.DESTROYED,
    "failed": ContainerState.FAILED,
    "launch_failed": ContainerState.FAILED,
}

#: The public ports of a container's first TCP service; Fly's edge terminates HTTP and TLS there.
_PUBLIC_PORTS = (
    {"port": 80, "handlers": ["http"]},
    {"port": 443, "handlers": ["tls", "http"]},
)


def read_state(word: str) -> ContainerState:
    """The state for a word of Fly's; UNKNOWN for a word that is not in the table."""
    return _STATES.get(word, ContainerState.UNKNOWN)


def read_machine(app: str, body: Json) -> Container:
    """Read a Machine object. Raises ProviderUnavailable if the body is none."""
    machine = read_object(body)
    container_id = machine.get("id")
    if not isinstance(container_id, str) or not container_id:
        raise ProviderUnavailable("the provider answered with a machine without an id: retry")
    word = read_text(machine, "state")
    labels = read_metadata(machine) or {}
    return Container(
        ref=ContainerRef(app, container_id),
        state=read_state(word),
        provider_state=word,
        name=read_text(machine, "name"),
        region=read_text(machine, "region"),
        version=read_text(machine, "instance_id") or read_text(machine, "version"),
        labels={key: value for key, value in labels.items() if key != SPEC_HASH_LABEL},
        spec_hash=labels.get(SPEC_HASH_LABEL, ""),
        cordoned=machine.get("cordoned") is True,
        create_time=read_time(machine.get("created_at")),
        update_time=read_time(machine.get("updated_at")),
        last_start_time=last_start_time(machine.get("events")),
        host_reachable=machine.get("host_status", "ok") in ("ok", "", None),
    )


def read_list(body: Json) -> list[Object]:
    """Read a list of objects. Raises ProviderUnavailable rather than return an incomplete list."""
    if not isinstance(body, list):
        raise ProviderUnavailable("the provider answered a list request without a list: retry")
    return [read_object(item) for item in body]


def read_metadata(machine: Object) -> dict[str, str] | None:
    """The metadata of a machine; None if Fly cannot read it, as when the host is unreachable."""
    for name in ("config", "incomplete_config"):
        config = machine.get(name)
        if isinstance(config, dict):
            metadata = config.get("metadata") or {}
            if isinstance(metadata, dict):
                return {str(key): str(value) for key, value in metadata.items()}
    return None


def may_have_labels(machine: Object, labels: Mapping[str, str]) -> bool:
    """Whether a machine has the labels. True if its metadata is unreadable; see `Provider.list`."""
    metadata = read_metadata(machine)
    if metadata is None:
        return True
    return all(metadata.get(key) == value for key, value in labels.items())


def last_start_time(events: Json) -> datetime | None:
    """The time of the newest start event. Fly records resumes and automatic restarts as starts."""
    newest = 0
    for event in events if isinstance(events, list) else ():
        if isinstance(event, dict) and event.get("type") == "start":
            moment = event.get("timestamp")
            # A requested start is an event too, of status `starting`; only a completed one counts.
            if event.get("status", "started") == "started" and isinstance(moment, int):
                newest = max(newest, moment)
    return _from_unix(newest / 1000) if newest else None


def read_lease(body: Json) -> Lease:
    """Read a lease: in an envelope, as Fly sends it, or flat, as Fly's documentation shows it."""
    answer = read_object(body)
    lease = answer.get("data") if isinstance(answer.get("data"), dict) else answer
    assert isinstance(lease, dict)
    nonce = read_text(lease, "nonce")
    if not nonce:
        raise ProviderUnavailable("the provider answered with a lease without a nonce: retry")
    expires = lease.get("expires_at")
    expire_time = _from_unix(expires) if isinstance(expires, int | float) else None
    return Lease(nonce, expire_time, read_text(lease, "owner"), read_text(lease, "description"))


def read_exec(body: Json) -> ExecResult:
    """Read the result of a command. Fly may omit fields that are zero or empty."""
    answer = read_object(body)
    code = answer.get("exit_code", 0)
    return ExecResult(
        exit_code=code if isinstance(code, int) else -1,
        stdout=read_text(answer, "stdout"),
        stderr=read_text(answer, "stderr"),
    )


def read_wait(body: Json, states: Collection[ContainerState]) -> ContainerState | None:
    """The state that ended a wait. Fly names it, but older answers contain `ok` only."""
    state = read_state(read_text(body, "state") if isinstance(body, dict) else "")
    if state in states:
        return state
    return next(iter(states)) if len(states) == 1 else None


def write_create(name: str, spec: ContainerSpec, labels: Mapping[str, str]) -> Object:
    """The body of a create."""
    body: dict[str, Any] = {"name": name, "config": write_config(spec, labels)}
    if spec.region:
        body["region"] = spec.region
    return body


def write_config(spec: ContainerSpec, labels: Mapping[str, str]) -> Object:
    """The configuration of a machine. No swap, no schedule: Fly suspends no machine with either."""
    config: dict[str, Any] = {
        "image": spec.image,
        "env": dict(spec.env),
        "guest": {
            "cpu_kind": spec.guest.cpu_kind,
            "cpus": spec.guest.cpus,
            "memory_mb": spec.guest.memory_mb,
        },
        "rootfs": {"persist": "never" if spec.ephemeral_root_filesystem else "restart"},
        "services": [_write_service(port, index) for index, port in enumerate(spec.services)],
        "restart": {"policy": spec.restart_policy.value},
        "stop_config": {"timeout": write_duration(spec.stop_timeout_seconds)},
        "metadata": {**labels, SPEC_HASH_LABEL: spec_hash(spec)},
    }
    if spec.command:
        config["init"] = {"cmd": list(spec.command)}
    if spec.mounts:
        config["mounts"] = [{"volume": m.volume_id, "path": m.path} for m in spec.mounts]
    return config


def write_duration(seconds: float) -> str:
    """A duration in Go's format."""
    return f"{round(seconds * 1000)}ms" if seconds % 1 else f"{int(seconds)}s"


def _write_service(port: ServicePort, index: int) -> Object:
    public = index == 0 and port.protocol == "tcp"
    return {
        "protocol": port.protocol,
        "internal_port": port.internal_port,
        "ports": [dict(p) for p in _PUBLIC_PORTS] if public else [{"port": port.internal_port}],
        "autostart": port.autostart,
        # Roost decides when a container is paused, not Fly's proxy.
        "autostop": "off",
    }


def read_object(body: Json) -> dict[str, Any]:
    """The body as an object. Raises ProviderUnavailable if it is none."""
    if not isinstance(body, dict):
        raise ProviderUnavailable("the provider answered without a JSON object: retry")
    return body


def read_text(source: Object, name: str) -> str:
    """A string member; empty if it is missing or not a string."""
    value = source.get(name)
    return value if isinstance(value, str) else ""


def read_number(source: Object, name: str) -> int:
    """An integer member; zero if it is missing or not an integer."""
    value = source.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def read_time(value: Json) -> datetime | None:
    """An RFC 3339 time; None if the value is none."""
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _from_unix(seconds: float) -> datetime | None:
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, OSError, ValueError):
        return None
