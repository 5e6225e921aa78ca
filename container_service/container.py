"""The words of the service: containers, what they are made of, leases. Pure."""

from __future__ import annotations

import enum
import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

#: The label that keeps the hash of a container's spec. Set by the service, never by a caller.
SPEC_HASH_LABEL = "roost_spec_hash"

#: The most memory that a container may have: above it a suspend is no longer dependable.
MEMORY_LIMIT_MB = 2048

#: Part of every spec hash. Raise it when the canonical form changes, so that old hashes differ
#: visibly and are not compared as if they meant the same.
SPEC_HASH_VERSION = 1


class ContainerState(enum.Enum):
    """What a container is doing. UNKNOWN is never read as stopped or gone."""

    UNKNOWN = "unknown"
    CREATED = "created"
    STARTING = "starting"
    STARTED = "started"
    STOPPING = "stopping"
    STOPPED = "stopped"
    SUSPENDING = "suspending"
    SUSPENDED = "suspended"
    UPDATING = "updating"
    DESTROYING = "destroying"
    DESTROYED = "destroyed"
    FAILED = "failed"


#: States that a wait can end in.
WAITABLE_STATES = frozenset(
    {
        ContainerState.STARTED,
        ContainerState.STOPPED,
        ContainerState.SUSPENDED,
        ContainerState.DESTROYED,
        ContainerState.FAILED,
    }
)


class RestartPolicy(enum.Enum):
    """What to do when the main process ends by itself."""

    NO = "no"
    ON_FAILURE = "on-failure"
    ALWAYS = "always"


class MemoryPreserved(enum.Enum):
    """Whether memory is the same as before: proved, disproved, or neither."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class ContainerRef:
    """Names one container."""

    app: str
    container_id: str


@dataclass(frozen=True, slots=True)
class Container:
    """A container as the provider showed it: `ref` and `state` always, the rest if it was read."""

    ref: ContainerRef
    state: ContainerState
    provider_state: str = ""
    name: str = ""
    region: str = ""
    version: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    spec_hash: str = ""
    cordoned: bool = False
    create_time: datetime | None = None
    update_time: datetime | None = None
    last_start_time: datetime | None = None
    host_reachable: bool = True


@dataclass(frozen=True, slots=True)
class Guest:
    """The size of a machine."""

    cpu_kind: Literal["shared", "performance"] = "shared"
    cpus: int = 1
    memory_mb: int = 256


@dataclass(frozen=True, slots=True)
class ServicePort:
    """A port of the application that the provider routes to."""

    internal_port: int
    protocol: Literal["tcp", "udp"] = "tcp"
    autostart: bool = True


@dataclass(frozen=True, slots=True)
class Mount:
    """A volume in a container's file system."""

    volume_id: str
    path: str


@dataclass(frozen=True, slots=True)
class StateHook:
    """How the application hands out and takes back its own state."""

    kind: Literal["http_path", "command"]
    value: str


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """What a container is made of, with every default filled in."""

    image: str
    env: Mapping[str, str] = field(default_factory=dict)
    guest: Guest = Guest()
    region: str = ""
    services: tuple[ServicePort, ...] = (ServicePort(internal_port=8080),)
    command: tuple[str, ...] = ()
    ephemeral_root_filesystem: bool = False
    restart_policy: RestartPolicy = RestartPolicy.ON_FAILURE
    mounts: tuple[Mount, ...] = ()
    state_hook: StateHook | None = None
    stop_timeout_seconds: float = 5.0


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to change a container until `expire_time`, by the provider's clock."""

    nonce: str
    expire_time: datetime | None = None
    owner: str = ""
    description: str = ""

    def __repr__(self) -> str:
        """The nonce is a key: it stays out of logs and tracebacks."""
        return f"Lease(nonce='***', expire_time={self.expire_time!r})"


@dataclass(frozen=True, slots=True)
class ExecResult:
    """What a command did."""

    exit_code: int
    stdout: str
    stderr: str


def spec_hash(spec: ContainerSpec) -> str:
    """The hash of a spec's canonical form: equal for specs that mean the same container."""
    canonical = json.dumps(
        {"version": SPEC_HASH_VERSION, **asdict(spec)},
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=False,
        default=_plain,
    )
    return hashlib.sha256(canonical.encode()).hexdigest()


def _plain(value: object) -> object:
    """Render what JSON has no word for."""
    if isinstance(value, enum.Enum):
        return value.value
    raise TypeError(f"a spec holds a {type(value).__name__}, which has no canonical form")
