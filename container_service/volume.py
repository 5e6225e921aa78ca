"""The words of the service for what outlives a container: volumes and their snapshots. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

#: The most that a volume may hold, in GB.
SIZE_LIMIT_GB = 500


@dataclass(frozen=True, slots=True)
class VolumeRef:
    """Names one volume."""

    app: str
    volume_id: str


@dataclass(frozen=True, slots=True)
class VolumeWish:
    """The volume that is wanted; a size of zero is the snapshot's, or the least there is."""

    app: str
    name: str
    region: str = ""
    size_gb: int = 0
    snapshot_id: str = ""


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume as the provider showed it."""

    ref: VolumeRef
    name: str = ""
    provider_state: str = ""
    region: str = ""
    size_gb: int = 0
    attached_container_id: str = ""
    create_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A copy of a volume at one moment, as the provider showed it."""

    snapshot_id: str
    volume_id: str
    provider_state: str = ""
    size_bytes: int = 0
    digest: str = ""
    create_time: datetime | None = None
