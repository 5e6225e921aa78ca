"""The records of apps and machines, in memory and on disk."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from local.fly.config.images import ImageRef
from local.fly.go_json import JsonObject, mapping, number, text, texts

_T = TypeVar("_T")

State = str
"""A machine's state, in Fly's words; see `states`."""


@dataclass(frozen=True)
class App:
    """An app: a name with an organisation and a network."""

    name: str
    org_slug: str
    network: str
    created_at_ms: int
    ips: list[JsonObject] = field(default_factory=list)
    """Its addresses, as the API renders them."""


@dataclass(frozen=True)
class Event:
    """One entry of a machine's history; ids are ULIDs and sort by time."""

    id: str
    type: str
    status: str
    source: str
    timestamp: int
    request: JsonObject | None = None


@dataclass(frozen=True)
class Version:
    """A config that the machine has had; the id was its `instance_id` then."""

    id: str
    config: JsonObject


@dataclass(frozen=True)
class Lease:
    """The exclusive right to change a machine until `expires_at` (unix seconds)."""

    nonce: str
    expires_at: float
    owner: str
    description: str
    version: str


@dataclass
class MachineRecord:
    """A machine, as stored on disk."""

    id: str
    app: str
    name: str
    region: str
    state: State
    instance_id: str
    config: JsonObject
    created_at: str
    updated_at: str
    private_ip: str
    cordoned: bool = False
    lease: Lease | None = None
    events: list[Event] = field(default_factory=list)
    versions: list[Version] = field(default_factory=list)
    state_event_id: str = ""
    """The event of the last change of state."""

    @property
    def metadata(self) -> dict[str, str]:
        """The labels of `config.metadata`."""
        return texts(self.config, "metadata")

    @property
    def image(self) -> ImageRef:
        """The image's name in its parts."""
        return ImageRef.parse(text(self.config, "image") or "")

    @property
    def rootfs_persist(self) -> str:
        """When the root file system is kept: never, restart or always."""
        return text(mapping(self.config, "rootfs") or {}, "persist") or "never"

    @property
    def memory_mb(self) -> int:
        """Its memory, in MB."""
        return number(mapping(self.config, "guest") or {}, "memory_mb") or 256

    @property
    def live(self) -> bool:
        """Whether it is neither destroyed nor being destroyed, and so holds its name."""
        return self.state not in ("destroyed", "destroying")

    def to_json(self) -> JsonObject:
        """For `from_json`. The result shares parts with the record, so write it at once."""
        # Not `asdict`, whose deep copy of fifty events took longer than the rest of a write.
        return {
            **vars(self),
            "lease": vars(self.lease) if self.lease else None,
            "events": [vars(event) for event in self.events],
            "versions": [vars(version) for version in self.versions],
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, object]) -> "MachineRecord":
        """Read what `to_json` wrote. It is not validated: only the store writes the files."""
        plain = dict(stored)
        plain["lease"] = _stored(Lease, stored["lease"]) if stored["lease"] else None
        plain["events"] = [_stored(Event, event) for event in _list(stored["events"])]
        plain["versions"] = [_stored(Version, version) for version in _list(stored["versions"])]
        return _stored(cls, plain)


def _stored(kind: type[_T], value: object) -> _T:
    assert isinstance(value, dict)
    return kind(**value)


def _list(value: object) -> list[object]:
    assert isinstance(value, list)
    return value
