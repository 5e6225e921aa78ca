"""The records of volumes and their snapshots."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from local.fly.go_json import JsonObject

GB = 1024**3
BLOCK = 4096

UNFINISHED = frozenset({"pending", "running"})
"""States of a snapshot that is still being written."""

GONE = frozenset({"pending_destroy", "destroyed"})
"""States of a volume that was deleted."""


@dataclass
class SnapshotRecord:
    """A copy of a volume's files at one moment."""

    id: str
    created_at: str
    created_s: float
    retention_days: int
    volume_size: int
    status: str = "pending"
    size: int = 0
    digest: str = ""
    automatic: bool = False
    """Whether the schedule took it, and not a client."""

    def expired(self, now: float) -> bool:
        """Whether its retention has ended at `now` (unix seconds)."""
        return now - self.created_s > self.retention_days * 86_400


@dataclass
class VolumeRecord:
    """A volume: a folder of files that one machine at a time may claim."""

    id: str
    app: str
    name: str
    region: str
    zone: str
    size_gb: int
    state: str
    created_at: str
    created_ms: int
    encrypted: bool = True
    fstype: str = "ext4"
    snapshot_retention: int = 5
    auto_backup_enabled: bool = True
    machine: str = ""
    """The id of the machine that claims it, until some time after that machine's end."""
    source: str = ""
    """The id of the snapshot or volume from which it is still being filled."""
    deleted_s: float = 0.0
    """The time of its deletion, in unix seconds."""
    snapshots: list[SnapshotRecord] = field(default_factory=list)

    @property
    def live(self) -> bool:
        """Whether it is not deleted."""
        return self.state not in GONE

    def snapshot(self, snapshot_id: str) -> SnapshotRecord | None:
        """Its snapshot of this id."""
        return next((one for one in self.snapshots if one.id == snapshot_id), None)

    def to_json(self) -> JsonObject:
        """For `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, object]) -> "VolumeRecord":
        """Read what `to_json` wrote. It is not validated: only the store writes the files."""
        rows = stored["snapshots"]
        assert isinstance(rows, list)
        plain: dict[str, object] = {**stored, "snapshots": [SnapshotRecord(**row) for row in rows]}
        return cls(**plain)  # type: ignore[arg-type]  # each value was written from its field
