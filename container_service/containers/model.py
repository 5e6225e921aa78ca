"""The values that the service speaks of: containers, specs, leases, volumes, snapshots. No I/O."""

from __future__ import annotations

import enum
import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

#: The label that stores the hash of a container's spec. The service sets it; a caller may not.
SPEC_HASH_LABEL = "roost_spec_hash"

#: The largest memory of a container, in MB. Fly does not support suspend above 2 GB.
MEMORY_LIMIT_MB = 2048

#: Part of every spec hash. Raise it when the canonical form changes: hashes of the old form then
#: never equal hashes of the new form.
SPEC_HASH_VERSION = 1

#: Largest volume, in GB.
SIZE_LIMIT_GB = 500


class ContainerState(enum.Enum):
    """What a container is doing. Callers must not treat UNKNOWN as stopped or destroyed."""

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


#: The states that a caller may wait for.
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
    """Whether the provider restarts the main process when it exits by itself."""

    NO = "no"
    ON_FAILURE = "on-failure"
    ALWAYS = "always"


class MemoryPreserved(enum.Enum):
    """Whether memory survived a suspend. YES and NO are proved by the boot id; UNKNOWN means
    that nothing is proved.
    """

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class ContainerRef:
    """Identifies one container."""

    app: str
    container_id: str


@dataclass(frozen=True, slots=True)
class Container:
    """A container as observed at the provider.

    `ref` and `state` are always set. The other fields keep their defaults unless the container was
    read.
    """

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
    """The size of a machine; memory in MB."""

    cpu_kind: Literal["shared", "performance"] = "shared"
    cpus: int = 1
    memory_mb: int = 256


@dataclass(frozen=True, slots=True)
class ServicePort:
    """A port of the application that the provider routes traffic to."""

    internal_port: int
    protocol: Literal["tcp", "udp"] = "tcp"
    autostart: bool = True


@dataclass(frozen=True, slots=True)
class Mount:
    """A volume mounted at an absolute path of the container."""

    volume_id: str
    path: str


@dataclass(frozen=True, slots=True)
class StateHook:
    """How to read and write the application's own state: by an HTTP path or by a shell command."""

    kind: Literal["http_path", "command"]
    value: str


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """The specification of a container, with every default filled in."""

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
    """The exclusive right to change a container until `expire_time` (the provider's clock)."""

    nonce: str
    expire_time: datetime | None = None
    owner: str = ""
    description: str = ""

    def __repr__(self) -> str:
        """Omit the nonce: it grants access, so it must not reach logs and tracebacks."""
        return f"Lease(nonce='***', expire_time={self.expire_time!r})"


@dataclass(frozen=True, slots=True)
class ExecResult:
    """The result of a command that ran to its end."""

    exit_code: int
    stdout: str
    stderr: str


@dataclass(frozen=True, slots=True)
class VolumeRef:
    """Identifies one volume."""

    app: str
    volume_id: str


@dataclass(frozen=True, slots=True)
class VolumeCreateRequest:
    """A volume to create. `size_gb` 0 means the size of the snapshot, or 1 GB without one."""

    app: str
    name: str
    region: str = ""
    size_gb: int = 0
    snapshot_id: str = ""


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume as observed at the provider."""

    ref: VolumeRef
    name: str = ""
    provider_state: str = ""
    region: str = ""
    size_gb: int = 0
    attached_container_id: str = ""
    create_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A copy of a volume at one moment, as observed at the provider."""

    snapshot_id: str
    volume_id: str
    provider_state: str = ""
    size_bytes: int = 0
    digest: str = ""
    create_time: datetime | None = None


def spec_hash(spec: ContainerSpec) -> str:
    """The SHA-256, in hex, of the spec's canonical JSON. Equal specs have equal hashes."""
    canonical = json.dumps(
        {"version": SPEC_HASH_VERSION, **asdict(spec)},
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=False,
        default=_plain,
    )
    return hashlib.sha256(canonical.encode()).hexdigest()


def _plain(value: object) -> object:
    """Encode the types that JSON does not have."""
    if isinstance(value, enum.Enum):
        return value.value
    raise TypeError(f"a spec holds a {type(value).__name__}, which has no canonical form")
