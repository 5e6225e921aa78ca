"""A checkpoint: state that was saved from a session's container; and the order to restore them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from session_service.domain.session import Key

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime
    from uuid import UUID


class Kind(StrEnum):
    """How the state of a container is saved."""

    APPLICATION = "APPLICATION"
    """The bytes that the application returns through its state hook."""
    VOLUME = "VOLUME"
    """A snapshot, at the provider, of the volume that the container mounts."""


class CheckpointState(StrEnum):
    """The state of a checkpoint."""

    WRITING = "WRITING"
    READY = "READY"
    """Its bytes are durable, and were read back and compared with what was captured."""
    FAILED = "FAILED"
    """It was not completed, or was found damaged later; it is never restored."""
    DELETING = "DELETING"
    """Deleted for every caller; its bytes may still exist for a moment."""


class Reason(StrEnum):
    """Why a checkpoint was taken."""

    REQUESTED = "REQUESTED"
    STOP = "STOP"
    IDLE = "IDLE"
    SCHEDULE = "SCHEDULE"
    ROLLBACK = "ROLLBACK"
    """Taken before a rollback to an older checkpoint; restoring this one undoes the rollback."""
    RECREATE = "RECREATE"
    """Taken before its container was recreated from another spec."""
    UNSPECIFIED = "UNSPECIFIED"
    """A value of a later version, which this version does not know."""

    @classmethod
    def _missing_(cls, value: object) -> Reason:
        return cls.UNSPECIFIED


class Place(StrEnum):
    """Where a checkpoint's bytes are stored."""

    DATABASE = "DATABASE"
    PARTS = "PARTS"
    """The bucket, in one object for each part."""
    BUCKET = "BUCKET"
    """The bucket, as a single object: written by a former version, and only read."""
    PROVIDER = "PROVIDER"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint's row. Times are the database's."""

    checkpoint_id: UUID
    tenant: str
    project_id: str
    user_id: str
    slot: str
    number: int
    """Its number among the checkpoints of its key: 1, 2, 3 …; a number is never used twice."""
    session_id: UUID
    generation: int
    """The generation of the container that it was taken from."""
    parent_id: UUID | None
    """The checkpoint that the session's state descended from when this one was taken, or the
    nearest of its ancestors that is still kept."""
    kind: Kind
    state: CheckpointState
    reason: Reason
    label: str
    pinned: bool
    app: str
    spec: str
    """The container's spec, as JSON."""
    fingerprint: str
    size_bytes: int | None
    """The size of the state itself; None before it is READY."""
    stored_bytes: int | None
    """The size of its stored bytes, compressed."""
    sha256: bytes | None
    """The SHA-256 of the state itself; None for a VOLUME, whose snapshot the provider checks."""
    place: Place | None
    object: str | None
    """Its name in that place: the folder of its parts or the object in the bucket, or the id of
    the provider's snapshot. The folder's name stays when the bytes of a failed checkpoint are
    deleted."""
    failure: str | None
    """Why it FAILED, as a machine-readable word."""
    decision_id: UUID | None
    """The decision of the call that took it."""
    lease_until: datetime | None
    create_time: datetime
    ready_time: datetime | None

    @property
    def key(self) -> Key:
        """The key of its session."""
        return Key(self.tenant, self.project_id, self.user_id, self.slot)

    @property
    def ready(self) -> bool:
        """Whether it can be restored."""
        return self.state is CheckpointState.READY


def kind_for(spec: Mapping[str, Any]) -> Kind | None:
    """How the state of a container with this spec is saved by default; None if it cannot be.

    Any: JSON as the proto maps it.
    """
    if spec.get("state_hook"):
        return Kind.APPLICATION
    return Kind.VOLUME if spec.get("mounts") else None


def supports(spec: Mapping[str, Any], kind: Kind) -> bool:
    """Whether state of this spec can be saved as this kind. Any: JSON as the proto maps it."""
    return bool(spec.get("state_hook" if kind is Kind.APPLICATION else "mounts"))


def in_order(head: UUID | None, checkpoints: Iterable[Checkpoint]) -> tuple[Checkpoint, ...]:
    """READY checkpoints in the order in which a start should try them.

    First `head`, which the session's state descends from, then its parent, and so on: after a
    rollback the newest checkpoint has the state that the user wanted to leave. Then the others,
    newest first.
    """
    left = {item.checkpoint_id: item for item in checkpoints if item.ready}
    line: list[Checkpoint] = []
    while head is not None and head in left:
        line.append(left.pop(head))
        head = line[-1].parent_id
    return (*line, *sorted(left.values(), key=lambda item: item.create_time, reverse=True))


def beyond(
    checkpoints: Iterable[Checkpoint], keep: int, needed: frozenset[UUID]
) -> tuple[Checkpoint, ...]:
    """The checkpoints of a key to delete: all READY ones but the newest `keep`. Pinned ones do not
    count and stay, as do the `needed` ones.

    The newest one always stays, so 0, which rows of an earlier version may have, counts as 1.
    Otherwise the checkpoint before a rollback, or the one that a fork is to start from, would be
    deleted before a caller could name it.
    """
    kept = sorted(
        (item for item in checkpoints if item.ready and not item.pinned),
        key=lambda item: item.number,
        reverse=True,
    )
    return tuple(item for item in kept[max(1, keep) :] if item.checkpoint_id not in needed)
