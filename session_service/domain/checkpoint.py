"""A checkpoint: state that was saved out of a session's container, and which one to go back to."""

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
    """What is saved."""

    APPLICATION = "APPLICATION"
    """The bytes that the application hands out through its state hook."""
    VOLUME = "VOLUME"
    """The volume that the container mounts, as a snapshot at the provider."""


class CheckpointState(StrEnum):
    """Where a checkpoint stands."""

    WRITING = "WRITING"
    READY = "READY"
    """Its bytes are durable, and what was read back is what was captured."""
    FAILED = "FAILED"
    """It never came to be, or was found damaged since; nothing is restored from it."""
    DELETING = "DELETING"
    """Deleted for all who ask; its bytes may still be there for a moment."""


class Reason(StrEnum):
    """Why a checkpoint was taken."""

    REQUESTED = "REQUESTED"
    STOP = "STOP"
    IDLE = "IDLE"
    SCHEDULE = "SCHEDULE"
    ROLLBACK = "ROLLBACK"
    """Before an older one was restored: restoring this one undoes that."""
    RECREATE = "RECREATE"
    """Before its container was made anew of another spec."""
    UNSPECIFIED = "UNSPECIFIED"
    """A later version's word, which this one does not know."""

    @classmethod
    def _missing_(cls, value: object) -> Reason:
        return cls.UNSPECIFIED


class Place(StrEnum):
    """Where a checkpoint's bytes are."""

    DATABASE = "DATABASE"
    BUCKET = "BUCKET"
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
    """Counts the checkpoints of its key: 1, 2, 3 …; a number is never used twice."""
    session_id: UUID
    generation: int
    """Of the container that it was taken of."""
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
    """What the container was made of, as JSON."""
    fingerprint: str
    size_bytes: int | None
    """Of the state itself; None before it is READY."""
    stored_bytes: int | None
    """Of what is kept of it, compressed."""
    sha256: bytes | None
    """Of the state itself; None for a VOLUME, whose snapshot has the provider's own digest."""
    place: Place | None
    object: str | None
    """Its name there: the bucket's key, or the provider's snapshot."""
    upload: str | None
    """The bucket's upload that is under way."""
    failure: str | None
    """Why it FAILED, as a machine-readable word."""
    decision_id: UUID | None
    """The decision of the call that it was taken for."""
    lease_until: datetime | None
    create_time: datetime
    ready_time: datetime | None

    @property
    def key(self) -> Key:
        """Whose it is."""
        return Key(self.tenant, self.project_id, self.user_id, self.slot)

    @property
    def ready(self) -> bool:
        """Whether state can be restored from it."""
        return self.state is CheckpointState.READY


def kind_for(spec: Mapping[str, Any]) -> Kind | None:
    """How the state of such a container is saved where nobody says; None where it cannot be.

    Any: JSON as the proto maps it.
    """
    if spec.get("state_hook"):
        return Kind.APPLICATION
    return Kind.VOLUME if spec.get("mounts") else None


def supports(spec: Mapping[str, Any], kind: Kind) -> bool:
    """Whether the spec says how this kind is saved. Any: JSON as the proto maps it."""
    return bool(spec.get("state_hook" if kind is Kind.APPLICATION else "mounts"))


def in_order(head: UUID | None, checkpoints: Iterable[Checkpoint]) -> tuple[Checkpoint, ...]:
    """READY checkpoints in the order in which a start should try them.

    First the one that the session's state descends from, then that one's parent, and so on: after a
    rollback the newest by number is what the user wanted to leave. Then the rest, newest first.
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
    """Which of a key's checkpoints may go: all but the newest `keep`, pinned ones apart, and never
    one that is needed.

    The newest always stays: what a rollback saved before it, and what a fork is to be made of,
    would else be gone before anybody could name it. Rows of an earlier version may say 0: it is 1.
    """
    kept = sorted(
        (item for item in checkpoints if item.ready and not item.pinned),
        key=lambda item: item.number,
        reverse=True,
    )
    return tuple(item for item in kept[max(1, keep) :] if item.checkpoint_id not in needed)
