"""The policy in force for a session, and its form in the session's row."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from functools import lru_cache

from session_service.domain.session import Continuity


class Persistence(StrEnum):
    """What a project's sessions are kept by."""

    EPHEMERAL = "EPHEMERAL"
    REUSE = "REUSE"
    HIBERNATE = "HIBERNATE"
    CHECKPOINT = "CHECKPOINT"
    ASK = "ASK"


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
    grace_period: timedelta = timedelta(minutes=10)
    """How long an ended session can be brought back."""
    min_continuity: Continuity | None = None
    """The least that a start may bring back of a session that is there; None is anything."""
    max_lifetime: timedelta | None = None
    """Older than this a session is shown as too old; nothing else happens to it. None: never."""
    recover_at_once: bool = False
    """Whether a container that was lost is replaced at once, or at the next start."""


#: What is in force where nothing else was set.
DEFAULT = Policy()


def dump(policy: Policy) -> str:
    """Its form in the row: a JSON object, durations in seconds."""
    return json.dumps(
        {
            "persistence": policy.persistence,
            "idle_timeout": policy.idle_timeout.total_seconds(),
            "deepen_after": policy.deepen_after.total_seconds(),
            "grace_period": policy.grace_period.total_seconds(),
            "min_continuity": policy.min_continuity,
            "expire_after": policy.expire_after.total_seconds(),
            "max_lifetime": _seconds(policy.max_lifetime),
            "recover_at_once": policy.recover_at_once,
        }
    )


def _seconds(span: timedelta | None) -> float | None:
    return None if span is None else span.total_seconds()


@lru_cache(maxsize=1024)
def load(raw: str) -> Policy:
    """Read back what `dump` wrote, by this version or an earlier one, whose rows say less. Cached:
    sessions of a project share one.
    """
    row = json.loads(raw)
    least, lifetime = row["min_continuity"], row.get("max_lifetime")
    expire_after = row.get("expire_after", DEFAULT.expire_after.total_seconds())
    return Policy(
        persistence=Persistence(row["persistence"]),
        idle_timeout=timedelta(seconds=row["idle_timeout"]),
        deepen_after=timedelta(seconds=row["deepen_after"]),
        grace_period=timedelta(seconds=row["grace_period"]),
        min_continuity=None if least is None else Continuity(least),
        expire_after=timedelta(seconds=expire_after),
        max_lifetime=None if lifetime is None else timedelta(seconds=lifetime),
        recover_at_once=row.get("recover_at_once", False),
    )
