"""The plans that the ladder can return, and the candidates that a user can choose from."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from session_service.domain.session import Continuity, Rung

if TYPE_CHECKING:
    from datetime import datetime, timedelta
    from uuid import UUID

    from session_service.domain.spec import Carrier


@dataclass(frozen=True, slots=True)
class Plan:
    """What a start does next. `rule`: a machine-readable word; `because`: a sentence for people."""

    rule: str
    because: str


@dataclass(frozen=True, slots=True)
class Use(Plan):
    """Answer REUSED with the running container.

    `unreachable`: the provider did not report its state, and only its preview answered.
    """

    continuity: Continuity = Continuity.MEMORY
    verified: bool = True
    unreachable: bool = False


@dataclass(frozen=True, slots=True)
class Observe(Plan):
    """The facts are not enough: probe the container, then decide again."""


@dataclass(frozen=True, slots=True)
class Open(Plan):
    """Insert a new session and create its first container."""


@dataclass(frozen=True, slots=True)
class Replace(Plan):
    """Insert a new session in place of the present one, which ends when the new one is ACTIVE."""


@dataclass(frozen=True, slots=True)
class TryRungs(Plan):
    """Bring the session up by these rungs; each only if those before it are proved lost."""

    rungs: tuple[Rung, ...] = ()
    recreate: Carrier | None = None
    """If set, the session's container is destroyed and recreated from the requested spec, and this
    carrier brings the kept state into the new container."""


@dataclass(frozen=True, slots=True)
class Ask(Plan):
    """Ask the user what to do with the session at the key."""


@dataclass(frozen=True, slots=True)
class Join(Plan):
    """Wait for the start in flight, and answer with its outcome."""


@dataclass(frozen=True, slots=True)
class AwaitTransition(Plan):
    """Wait for the transition in flight to end, then decide again."""


@dataclass(frozen=True, slots=True)
class TakeOver(Plan):
    """The lease of the transition's owner ran out: finish or undo it, then decide again."""


class Refusal(StrEnum):
    """Why a start fails."""

    LIVE_SESSION_EXISTS = "LIVE_SESSION_EXISTS"
    CONTINUITY_UNAVAILABLE = "CONTINUITY_UNAVAILABLE"
    PROVIDER_UNAVAILABLE = "PROVIDER_UNAVAILABLE"
    SESSION_STATE_CONFLICT = "SESSION_STATE_CONFLICT"
    FINGERPRINT_CHANGED = "FINGERPRINT_CHANGED"


@dataclass(frozen=True, slots=True)
class Refuse(Plan):
    """Answer with an error."""

    refusal: Refusal = Refusal.SESSION_STATE_CONFLICT
    parts: tuple[str, ...] = ()
    """The parts of the spec that differ, if they are the reason."""


Decision = (
    Use | Observe | Open | Replace | TryRungs | Ask | Join | AwaitTransition | TakeOver | Refuse
)


class Choice(StrEnum):
    """What a user can choose."""

    CONTINUE = "CONTINUE"
    """Go on with the session at the key."""
    RESTORE = "RESTORE"
    """Go back to a checkpoint."""
    FRESH = "FRESH"
    """Start a new session in place of the one at the key."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One of the things that a start could do with the session at the key."""

    choice: Choice
    rung: Rung
    expected: Continuity
    session_id: UUID | None = None
    generation: int = 0
    last_active_time: datetime | None = None
    age: timedelta | None = None
    """The time since the session was last active, or since the checkpoint was created."""
    checkpoint_id: UUID | None = None
    number: int = 0
    """The checkpoint's number."""
    wait: int | None = None
    """How long recent starts with this outcome took, in ms; None if there were none."""
    token: str = field(default="", repr=False)
    """Chooses this candidate. A secret: it is in the answer, and only its hash is stored."""
