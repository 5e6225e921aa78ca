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
    grace_period: timedelta = timedelta(minutes=10)
    """How long an ended session can be brought back."""
    min_continuity: Continuity | None = None
    """The least that a start may bring back of a session that is there; None is anything."""


def dump(policy: Policy) -> str:
    """Its form in the row: a JSON object, durations in seconds."""
    return json.dumps(
        {
            "persistence": policy.persistence,
            "idle_timeout": policy.idle_timeout.total_seconds(),
            "deepen_after": policy.deepen_after.total_seconds(),
            "grace_period": policy.grace_period.total_seconds(),
            "min_continuity": policy.min_continuity,
        }
    )


@lru_cache(maxsize=1024)
def load(raw: str) -> Policy:
    """Read back what `dump` wrote. Cached: sessions of a project share one."""
    row = json.loads(raw)
    least = row["min_continuity"]
    return Policy(
        persistence=Persistence(row["persistence"]),
        idle_timeout=timedelta(seconds=row["idle_timeout"]),
        deepen_after=timedelta(seconds=row["deepen_after"]),
        grace_period=timedelta(seconds=row["grace_period"]),
        min_continuity=None if least is None else Continuity(least),
    )
