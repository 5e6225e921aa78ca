"""The session, its container and its conditions: frozen values, as the rows hold them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum, StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING

from session_service.domain import spec as specs
from session_service.domain.states import LIVE, State, Transition

if TYPE_CHECKING:
    from collections.abc import Iterable
    from uuid import UUID


DEFAULT_TENANT = "default"
DEFAULT_SLOT = "default"


class Continuity(IntEnum):
    """How much of its state a session gets back: a higher number is more, as in the contract."""

    NONE = 1
    CHECKPOINT = 2
    FILESYSTEM = 3
    MEMORY = 4


class PauseDepth(StrEnum):
    """How deeply a session is paused: what is left of its container."""

    SUSPENDED = "SUSPENDED"
    STOPPED = "STOPPED"
    CHECKPOINT = "CHECKPOINT"


class Outcome(StrEnum):
    """How a start succeeded."""

    REUSED = "REUSED"
    RESUMED = "RESUMED"
    RESTARTED = "RESTARTED"
    RESTORED = "RESTORED"
    CREATED = "CREATED"


class Mode(StrEnum):
    """What a start may do with the session that is at its key."""

    UNSPECIFIED = "UNSPECIFIED"
    CONTINUE = "CONTINUE"
    FRESH = "FRESH"
    FAIL_IF_LIVE = "FAIL_IF_LIVE"


class Rung(StrEnum):
    """A rung of the ladder, best first: one step that can bring a session up."""

    LIVE = "LIVE"
    RESUME = "RESUME"
    RESTART = "RESTART"
    RESTORE = "RESTORE"
    CREATE = "CREATE"


class AttemptResult(StrEnum):
    """The result of an attempt at a rung."""

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
    """Why a session changed without a call."""

    IDLE = "IDLE"
    """The user was inactive for longer than the policy allows."""
    DEEPEN = "DEEPEN"
    """It was paused for long enough to be paused more deeply."""
    EXPIRE = "EXPIRE"
    """It was paused for so long that it ends."""
    GRACE_OVER = "GRACE_OVER"
    """It ended longer ago than its grace period."""
    ABANDONED = "ABANDONED"
    """Its first start failed, and it was not started again."""
    LOST = "LOST"
    """Its container was found lost."""
    WOKEN = "WOKEN"
    """Its container was found running, woken by traffic."""
    FELL = "FELL"
    """Its container was found suspended, stopped or failed, without a call from Roost."""


class ConditionType(StrEnum):
    """The kind of an unusual condition of a session."""

    PROVIDER_UNREACHABLE = "PROVIDER_UNREACHABLE"
    SUSPEND_FAILED_STILL_RUNNING = "SUSPEND_FAILED_STILL_RUNNING"
    MEMORY_LOST = "MEMORY_LOST"
    CONTAINER_LOST = "CONTAINER_LOST"
    FINGERPRINT_CHANGED = "FINGERPRINT_CHANGED"
    CHECKPOINT_FAILED = "CHECKPOINT_FAILED"


class ContainerState(StrEnum):
    """The state of a container; the names are the container contract's."""

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
    """Identifies the sessions of a user in a project; at most one live session exists per key."""

    tenant: str
    project_id: str
    user_id: str
    slot: str = DEFAULT_SLOT


@dataclass(frozen=True, slots=True)
class Condition:
    """An unusual condition, with a sentence for people and the time it began."""

    type: ConditionType
    message: str
    since: datetime


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt at a rung: its result, the reason (a machine-readable word) and its duration."""

    rung: Rung
    result: AttemptResult
    reason: str
    milliseconds: int
    checkpoint_number: int = 0
    """The number of the checkpoint that it restored or tried to; 0: none."""


@dataclass(frozen=True, slots=True)
class Container:
    """A container of a session (a generation), from the intent to create it until it is gone."""

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
    """The guest's boot id; None if it was not read since the last start."""
    boot_time: datetime | None
    """The provider's newest start event as of that proof; None if it was not read."""
    start_time: datetime | None
    """When a start last succeeded on it; None if none did."""
    cordoned: bool
    """Whether it was taken out of routing; a resume must put it back."""
    wanted: bool
    """False: it is to be destroyed."""
    create_time: datetime
    destroy_time: datetime | None
    """When it was known to be gone; None before."""
    saved_checkpoint_id: UUID | None = None
    """The newest checkpoint that a pause took of it while its boot was known; None before."""
    saved_start_time: datetime | None = None
    """The provider's start event of that boot: a newer event means that the container ran since."""


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
    """The fencing number. Every change of the session advances it; notes, such as the user's
    activity, do not (`storage.session.change.Change`). The owner of a transition writes its outcome
    only if the epoch is still the one that it read (compare-and-set): an owner whose transition was
    taken over can write nothing."""
    transition: Transition | None
    prior_state: State | None
    """The state before the transition, to return to if it fails; None for a first start."""
    owner: UUID | None
    lease_until: datetime | None
    deadline: datetime | None
    decision_id: UUID | None
    """The decision whose answer the transition in flight gives."""
    wish: str | None
    """The request of the transition in flight, as JSON (`domain.wish`)."""
    successor_id: UUID | None
    predecessor_id: UUID | None
    pause_depth: PauseDepth | None
    loss_untold: bool
    """State was lost, and no answer of a start has reported it yet."""
    conditions: str
    """A JSON array (`load_conditions`). Not parsed, since most readers only pass it on."""
    spec: str
    """The spec of its containers, as JSON of roost.container.v1.ContainerSpec."""
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
    """When the due pass next reads it. The user's activity leaves it unchanged: the due pass then
    reads the session too early, finds nothing to do, and sets a later time."""
    start_count: int
    end_reason: EndReason | None
    cause: Cause | None
    """Why its state last changed without a call; None: a call changed it."""
    failure_count: int
    """How often in a row its transition or due action failed."""
    change_time: datetime
    """When the epoch last advanced. A listing that began before this time says nothing about the
    session."""
    hold_until: datetime | None
    """When the last of its holds expires."""
    holds: str
    """Its holds, as JSON (`domain.holds`)."""
    warn_time: datetime | None
    """When the last warning was given that it is about to go idle."""
    activity: str
    """The activity that the last touch named."""
    event_sequence: int
    """The number of its newest event."""
    checkpoint_id: UUID | None = None
    """The checkpoint that its state descends from, and that a start restores if the container is
    gone; None if there is none."""
    untold_continuity: Continuity | None = None
    """The most continuity that the next start may report while `loss_untold` is set. It has a value
    if the container was replaced, which can lose more than memory. None: only memory was lost."""
    checkpoint_time: datetime | None = None
    """When the newest checkpoint that its state descends from became READY."""
    checkpoint_try_time: datetime | None = None
    """When a scheduled checkpoint was last begun."""

    @property
    def key(self) -> Key:
        """Its key."""
        return Key(self.tenant, self.project_id, self.user_id, self.slot)

    @property
    def live(self) -> bool:
        """Whether it is the live session of its key."""
        return self.state in LIVE


@dataclass(frozen=True, slots=True)
class Record:
    """A session from one read: its row, its current container's row, and the database's time."""

    session: Session
    container: Container | None
    now: datetime

    @property
    def lapsed(self) -> bool:
        """Whether the lease or the deadline of the transition in flight has passed.

        Another replica may then take the transition over. A REPLACE never lapses: it has no owner,
        and the start of the successor finishes it, because only the outcome of that start decides
        whether this session ends or returns to its former state.
        """
        row = self.session
        if row.transition is None or row.transition is Transition.REPLACE:
            return False
        lease, deadline = row.lease_until, row.deadline
        return lease is None or lease <= self.now or (deadline is not None and deadline <= self.now)

    @property
    def abandoned(self) -> bool:
        """Whether it is a session that never came up and that no call waits for.

        Its start failed with an error that can be retried; the next start of the key continues it.
        """
        row = self.session
        never_came_up = row.transition is Transition.START and row.prior_state is None
        return never_came_up and row.decision_id is None and self.lapsed


#: A sentence for people for each type, with the remedy if there is one.
SENTENCES = {
    ConditionType.PROVIDER_UNREACHABLE: (
        "The provider did not report the container's state; its preview answered, so it is used."
    ),
    ConditionType.SUSPEND_FAILED_STILL_RUNNING: (
        "The last pause failed and the container was found running; pause again, or stop it."
    ),
    ConditionType.MEMORY_LOST: "What was in memory is gone, or is not proved.",
    ConditionType.CONTAINER_LOST: "The container was lost, with all that no checkpoint holds.",
    ConditionType.FINGERPRINT_CHANGED: (
        "The start asked for another spec than the container was created from; the container goes "
        "on with the old one. Start with mode FRESH to get the new one."
    ),
    ConditionType.CHECKPOINT_FAILED: (
        "Its state could not be saved; the container is kept, with all that is in it. "
        "Stop it again to try once more."
    ),
}


def condition(kind: ConditionType, now: datetime) -> Condition:
    """The condition of this type as it begins now."""
    return Condition(kind, SENTENCES[kind], now)


def fingerprint_changed(parts: Iterable[str], now: datetime) -> Condition:
    """FINGERPRINT_CHANGED as it begins now, naming the parts that differ, and no values."""
    kind = ConditionType.FINGERPRINT_CHANGED
    return Condition(kind, f"{SENTENCES[kind]} What differs: {', '.join(parts)}.", now)


def dump_conditions(conditions: Iterable[Condition]) -> str:
    """The conditions as the row holds them: a JSON array."""
    rows = [[item.type, item.message, item.since.isoformat()] for item in conditions]
    return json.dumps(rows)


@lru_cache(maxsize=1024)
def load_conditions(raw: str) -> tuple[Condition, ...]:
    """Parse what `dump_conditions` wrote. Cached: nearly every row has the same, empty list."""
    return tuple(
        Condition(ConditionType(kind), message, datetime.fromisoformat(since))
        for kind, message, since in json.loads(raw)
    )


def has_come_up(container: Container | None) -> bool:
    """Whether a start succeeded on the container, and it is neither gone nor to be destroyed."""
    return (
        container is not None
        and container.container_id is not None
        and container.start_time is not None
        and container.destroy_time is None
        and container.wanted
    )


def expected_continuity(session: Session, container: Container | None) -> Continuity:
    """The continuity that the next start is expected to give; not a promise."""
    if not has_come_up(container):
        return Continuity.NONE if session.checkpoint_id is None else Continuity.CHECKPOINT
    if session.loss_untold:
        return unreported_continuity(session)
    stopped = session.pause_depth is PauseDepth.STOPPED
    return without_memory(session) if stopped else Continuity.MEMORY


def without_memory(session: Session) -> Continuity:
    """The continuity after memory is lost: FILESYSTEM, if the root file system outlives a stop."""
    return Continuity.FILESYSTEM if specs.keeps_files(session.spec) else Continuity.NONE


def unreported_continuity(session: Session) -> Continuity:
    """The continuity that is left after a loss that no answer has reported yet."""
    left = session.untold_continuity
    return without_memory(session) if left is None else left


#: The prefix of adopted containers' names in their rows; other names begin with "roost-".
PREFIX = "adopted-"


def adopted(container: Container) -> bool:
    """Whether the container was adopted, and so carries no labels of Roost."""
    return container.name.startswith(PREFIX)
