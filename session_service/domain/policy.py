"""The policy in force for a session, and its form in the session's row."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from datetime import timedelta
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from session_service.domain.session import Continuity

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class Persistence(StrEnum):
    """What a project's sessions are kept by."""

    EPHEMERAL = "EPHEMERAL"
    REUSE = "REUSE"
    HIBERNATE = "HIBERNATE"
    CHECKPOINT = "CHECKPOINT"
    ASK = "ASK"


class OnFingerprintChange(StrEnum):
    """What to do when a start asks for another spec than the container was created from."""

    REFUSE = "REFUSE"
    RECREATE_KEEPING_FILES = "RECREATE_KEEPING_FILES"
    ALLOW = "ALLOW"


class Stop(StrEnum):
    """What stop means, and idleness."""

    END = "END"
    """Nothing is kept: the session ends, with its grace period."""
    PAUSE = "PAUSE"
    """Its container is suspended."""
    CHECKPOINT = "CHECKPOINT"
    """Its state is saved and its container destroyed."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How sessions of a project are kept. With nothing set a project is HIBERNATE."""

    persistence: Persistence = Persistence.HIBERNATE
    idle_timeout: timedelta = timedelta(minutes=30)
    """Idle this long, a session is paused."""
    deepen_after: timedelta = timedelta(hours=24)
    """Suspended this long, it is stopped."""
    expire_after: timedelta = timedelta(days=30)
    """At rest and not deeper than that can be for this long, it is ended."""
    checkpoint_after: timedelta = timedelta(0)
    """At rest with a container for this long, its state is saved and the container destroyed, where
    the application hands its state out and a start may come back with that; 0: never."""
    grace_period: timedelta = timedelta(minutes=10)
    """How long an ended session can be brought back."""
    min_continuity: Continuity | None = None
    """The least that a start may bring back of a session that is there; None is anything."""
    max_lifetime: timedelta | None = None
    """Older than this a session is shown as too old; nothing else happens to it. None: never."""
    recover_at_once: bool = False
    """Whether a container that was lost is replaced at once, or at the next start."""
    checkpoint_on_stop: bool = False
    """Whether the state is saved at every stop."""
    keep_checkpoints: int = 5
    """How many checkpoints are kept of a key, pinned ones apart; at least 1."""
    on_fingerprint_change: OnFingerprintChange = OnFingerprintChange.ALLOW
    """What to do when the spec changes."""
    checkpoint_every: timedelta = timedelta(0)
    """The state of a running session is saved whenever this long has passed since it last was; 0 is
    never."""


#: What is in force where nothing else was set.
DEFAULT = Policy()


def what_stop_means(policy: Policy) -> Stop:
    """What StopSession does to a session under this policy, and the keeper to an idle one.

    The one place that says so.
    """
    match policy.persistence:
        case Persistence.EPHEMERAL | Persistence.REUSE:
            return Stop.END
        case Persistence.CHECKPOINT:
            return Stop.CHECKPOINT
        case Persistence.HIBERNATE | Persistence.ASK:
            return Stop.PAUSE


@dataclass(frozen=True, slots=True)
class Form:
    """How a value is written in JSON and read back. Any: each form has its own type."""

    write: Callable[[Any], object]
    read: Callable[[Any], Any]


def _optional(form: Form) -> Form:
    return Form(
        lambda value: None if value is None else form.write(value),
        lambda raw: None if raw is None else form.read(raw),
    )


_SPAN = Form(timedelta.total_seconds, lambda seconds: timedelta(seconds=seconds))
_FLAG = Form(bool, bool)
#: The form of each field of a Policy, by name.
FORMS: Mapping[str, Form] = {
    "persistence": Form(str, Persistence),
    "idle_timeout": _SPAN,
    "deepen_after": _SPAN,
    "expire_after": _SPAN,
    "checkpoint_after": _SPAN,
    "grace_period": _SPAN,
    "min_continuity": _optional(Form(int, Continuity)),
    "max_lifetime": _optional(_SPAN),
    "recover_at_once": _FLAG,
    "checkpoint_on_stop": _FLAG,
    "keep_checkpoints": Form(int, int),
    "on_fingerprint_change": Form(str, OnFingerprintChange),
    "checkpoint_every": _SPAN,
}
NAMES = tuple(field.name for field in fields(Policy))


def as_json(policy: Policy) -> dict[str, object]:
    """Its form in the row: durations in seconds."""
    return {name: form.write(getattr(policy, name)) for name, form in FORMS.items()}


def from_json(row: Mapping[str, Any]) -> Policy:
    """Read back what `as_json` wrote, by this version or an earlier one, whose rows say less; what
    a later one added is passed over. Any: JSON.
    """
    return Policy(**{name: form.read(row[name]) for name, form in FORMS.items() if name in row})


def dump(policy: Policy) -> str:
    """A JSON object."""
    return json.dumps(as_json(policy))


@lru_cache(maxsize=1024)
def load(raw: str) -> Policy:
    """The policy of a session's row. Cached: sessions of a project share one."""
    return from_json(json.loads(raw))
