"""The session, its container, and what can be said of them: frozen values as the rows hold them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING

from session_service.domain.states import LIVE, State, Transition

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

DEFAULT_TENANT = "default"
DEFAULT_SLOT = "default"


class Continuity(IntEnum):
    """What the user gets back; a higher number is more. The numbers are the contract's."""

    NONE = 1
    CHECKPOINT = 2
    FILESYSTEM = 3
    MEMORY = 4


class PauseDepth(StrEnum):
    """How deep a session rests."""

    SUSPENDED = "SUSPENDED"
    STOPPED = "STOPPED"
    CHECKPOINT = "CHECKPOINT"


class Outcome(StrEnum):
    """What a start did."""

    REUSED = "REUSED"
    RESUMED = "RESUMED"
    RESTARTED = "RESTARTED"
    RESTORED = "RESTORED"
    CREATED = "CREATED"


class Mode(StrEnum):
    """What a start may do about a session that is there."""

    UNSPECIFIED = "UNSPECIFIED"
    CONTINUE = "CONTINUE"
    FRESH = "FRESH"
    FAIL_IF_LIVE = "FAIL_IF_LIVE"


class Rung(StrEnum):
    """A step of the ladder, best first."""

    LIVE = "LIVE"
    RESUME = "RESUME"
    RESTART = "RESTART"
    RESTORE = "RESTORE"
    CREATE = "CREATE"


class AttemptResult(StrEnum):
    """How trying a rung went."""

    SUCCEEDED = "SUCCEEDED"
    DEGRADED = "DEGRADED"
    FAILED = "FAILED"


class EndReason(StrEnum):
    """Why a session ended."""

    REQUESTED = "REQUESTED"
    REPLACED = "REPLACED"
    CREATE_FAILED = "CREATE_FAILED"
    MAX_LIFETIME = "MAX_LIFETIME"
    EPHEMERAL = "EPHEMERAL"
    EXPIRED = "EXPIRED"
    SUPERSEDED = "SUPERSEDED"


class Cause(StrEnum):
    """Why a transition began that nobody asked for."""

    IDLE = "IDLE"
    """Nobody was there for longer than its policy allows."""
    DEEPEN = "DEEPEN"
    """It rested for long enough to rest deeper."""
    EXPIRE = "EXPIRE"
    """It rested for so long that it ends."""
    GRACE_OVER = "GRACE_OVER"
    """Ended for longer than the grace period."""
    ABANDONED = "ABANDONED"
    """Its first start failed, and nobody came back for it."""
    LOST = "LOST"
    """Its container was found lost."""
    WOKEN = "WOKEN"
    """Its container was found running, woken by traffic."""
    FELL = "FELL"
    """Its container was found at rest, put there by the provider or by itself."""


class ConditionType(StrEnum):
    """Something out of the ordinary about a session."""

    PROVIDER_UNREACHABLE = "PROVIDER_UNREACHABLE"
    SUSPEND_FAILED_STILL_RUNNING = "SUSPEND_FAILED_STILL_RUNNING"
    MEMORY_LOST = "MEMORY_LOST"
    CONTAINER_LOST = "CONTAINER_LOST"
    FINGERPRINT_CHANGED = "FINGERPRINT_CHANGED"
    CHECKPOINT_FAILED = "CHECKPOINT_FAILED"


class ContainerState(StrEnum):
    """What a container is doing, in the container contract's words."""

    UNSPECIFIED = "UNSPECIFIED"
    UNKNOWN = "UNKNOWN"
    CREATED = "CREATED"
    STARTING = "STARTING"
    STARTED = "STARTED"
    STOPPING = "STOPPING"
    STOPPED = "STOPPED"
    SUSPENDING = "SUSPENDING"
    SUSPENDED = "SUSPENDED"
    UPDATING = "UPDATING"
    DESTROYING = "DESTROYING"
    DESTROYED = "DESTROYED"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class Key:
    """Whose session of what; at most one live session stands at it."""

    tenant: str
    project_id: str
    user_id: str
    slot: str = DEFAULT_SLOT


@dataclass(frozen=True, slots=True)
class Condition:
    """Something out of the ordinary, with a sentence for people and since when."""

    type: ConditionType
    message: str
    since: datetime


@dataclass(frozen=True, slots=True)
class Attempt:
    """A rung that was tried: how it went, why (a machine-readable word), how long it took."""

    rung: Rung
    result: AttemptResult
    reason: str
    milliseconds: int
    checkpoint_number: int = 0
    """Of the checkpoint that it was about; 0 for none."""


@dataclass(frozen=True, slots=True)
class Container:
    """A container generation of a session: from the moment it is wanted until known destroyed."""

    session_id: UUID
    generation: int
    name: str
    app: str
    container_id: str | None
    """The provider's id; None until the provider's answer is recorded."""
    state: ContainerState
    """As last observed."""
    region: str
    boot_id: str | None
    """The guest's boot id as last proved; None while it never was."""
    boot_time: datetime | None
    """The provider's newest start event as of that proof; None where it was not looked at."""
    start_time: datetime | None
    """When a start first ended well on it; None before."""
    cordoned: bool
    """Whether it was taken out of routing, so that coming back must undo that."""
    wanted: bool
    """False when it is only waiting to be destroyed."""
    create_time: datetime
    destroy_time: datetime | None
    """When it was known to be gone; None before."""
    saved_checkpoint_id: UUID | None = None
    """The checkpoint that the last pause took of it whose boot is known; None before."""
    saved_start_time: datetime | None = None
    """The provider's start event of that boot: a newer one means that it ran since."""


@dataclass(frozen=True, slots=True)
class Session:
    """A session's row. Times are the database's."""

    session_id: UUID
    tenant: str
    project_id: str
    user_id: str
    slot: str
    state: State
    generation: int
    epoch: int
    """The fence: moves with every change but activity; results are written by compare-and-set."""
    transition: Transition | None
    prior_state: State | None
    """The state that the transition began from, to go back to."""
    owner: UUID | None
    lease_until: datetime | None
    deadline: datetime | None
    decision_id: UUID | None
    """The decision that the transition in flight is to answer."""
    wish: str | None
    """What the transition in flight was asked to do, as JSON (`domain.wish`)."""
    successor_id: UUID | None
    predecessor_id: UUID | None
    pause_depth: PauseDepth | None
    loss_untold: bool
    """Something was lost that no answer to a start has told yet."""
    conditions: str
    """A JSON array (`domain.conditions`). Raw, since most readers only pass it on."""
    spec: str
    """What containers are made of, as JSON of roost.container.v1.ContainerSpec."""
    fingerprint: str
    policy: str
    """The policy in force, as JSON (`domain.policy`)."""
    verified_at: datetime | None
    """When the container was last seen at the provider."""
    create_time: datetime
    start_time: datetime | None
    last_active_time: datetime
    pause_time: datetime | None
    end_time: datetime | None
    purge_time: datetime | None
    due_at: datetime | None
    """When the keeper should next look; advanced lazily."""
    start_count: int
    end_reason: EndReason | None
    cause: Cause | None
    """Why the transition in flight, or the last one, began by itself; None where it was asked."""
    failure_count: int
    """How often the transition in flight could not be finished."""
    change_time: datetime
    """When the epoch last moved: a listing begun before says nothing of the session."""
    hold_until: datetime | None
    """When the last of its holds runs out."""
    holds: str
    """Its holds, as JSON (`domain.holds`)."""
    warn_time: datetime | None
    """When it was last warned of that it is about to go idle."""
    activity: str
    """What the user was last said to do."""
    event_sequence: int
    """The number of its newest event."""
    checkpoint_id: UUID | None = None
    """The checkpoint that its state descends from: what a start goes back to where its container is
    gone. None where it has none."""
    untold_continuity: Continuity | None = None
    """The most that may be claimed while `loss_untold`, where that is less than what lost memory
    leaves: its container is another one."""
    checkpoint_time: datetime | None = None
    """When a checkpoint that its state descends from was last READY."""
    checkpoint_try_time: datetime | None = None
    """When one was last begun on its schedule."""

    @property
    def key(self) -> Key:
        """Whose session of what."""
        return Key(self.tenant, self.project_id, self.user_id, self.slot)

    @property
    def live(self) -> bool:
        """Whether it holds its key."""
        return self.state in LIVE


@dataclass(frozen=True, slots=True)
class Record:
    """A session as one read gave it: its row, its current container's, and the database's time."""

    session: Session
    container: Container | None
    now: datetime

    @property
    def lapsed(self) -> bool:
        """Whether a transition is in flight whose owner let its lease or deadline pass.

        A REPLACE never lapses by itself: its successor's start decides it.
        """
        row = self.session
        if row.transition is None or row.transition is Transition.REPLACE:
            return False
        lease, deadline = row.lease_until, row.deadline
        return lease is None or lease <= self.now or (deadline is not None and deadline <= self.now)

    @property
    def abandoned(self) -> bool:
        """Whether it is a session that never stood and that no call waits for any more.

        Its start failed in a way that can be retried; whoever starts the key next goes on with it.
        """
        row = self.session
        never_stood = row.transition is Transition.START and row.prior_state is None
        return never_stood and row.decision_id is None and self.lapsed
