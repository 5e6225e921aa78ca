"""What a start is to do: the plans that the ladder decides for, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from session_service.domain.session import Continuity, Rung

if TYPE_CHECKING:
    from session_service.domain.fingerprint import Carrier


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do; `rule` is a machine-readable word, `because` a sentence for people."""

    rule: str
    because: str


@dataclass(frozen=True, slots=True)
class Use(Plan):
    """Answer REUSED with what is there."""

    continuity: Continuity = Continuity.MEMORY
    verified: bool = True
    unreachable: bool = False


@dataclass(frozen=True, slots=True)
class Look(Plan):
    """Not decidable yet: look at the container, then decide again."""


@dataclass(frozen=True, slots=True)
class Open(Plan):
    """Insert a new session and create its first container."""


@dataclass(frozen=True, slots=True)
class Replace(Plan):
    """Insert a new session in place of the one there, which ends once the new one stands."""


@dataclass(frozen=True, slots=True)
class Climb(Plan):
    """Bring the session back by these rungs, each only if those before it are proved lost."""

    rungs: tuple[Rung, ...] = ()
    recreate: Carrier | None = None
    """Where its container is destroyed first, and made anew of the wanted spec: what brings over
    what is kept."""


@dataclass(frozen=True, slots=True)
class Ask(Plan):
    """Ask the user what to do about the session that is there."""


@dataclass(frozen=True, slots=True)
class Join(Plan):
    """Wait for the start in flight and answer with its outcome."""


@dataclass(frozen=True, slots=True)
class TakeTurn(Plan):
    """Wait for the transition in flight to end, then decide again."""


@dataclass(frozen=True, slots=True)
class TakeOver(Plan):
    """The transition's owner is gone: finish or undo it, then decide again."""


class Refusal(StrEnum):
    """Why a start is refused."""

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
    """The parts of the spec that differ, where that is why."""


Decision = Use | Look | Open | Replace | Climb | Ask | Join | TakeTurn | TakeOver | Refuse
