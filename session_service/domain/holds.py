"""Holds: named leases that keep a session from going idle, and their form in its row."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache

#: A session has no more holds at once: a caller that makes a new name each time is told.
MOST = 32
#: No hold lasts longer without being put again: one that was forgotten must not cost for ever.
LONGEST = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class Hold:
    """A named lease."""

    name: str
    expire_time: datetime


@lru_cache(maxsize=1024)
def load(raw: str) -> tuple[Hold, ...]:
    """Every hold of the row, those that ran out too, by name. Cached: nearly all rows have none."""
    rows: dict[str, str] = json.loads(raw)
    return tuple(Hold(name, datetime.fromisoformat(when)) for name, when in sorted(rows.items()))


def in_force(raw: str, now: datetime) -> tuple[Hold, ...]:
    """The holds that have not run out, by name."""
    return tuple(hold for hold in load(raw) if hold.expire_time > now)


def dump(holds: tuple[Hold, ...]) -> str:
    """Their form in the row: a JSON object, times by name."""
    return json.dumps({hold.name: hold.expire_time.isoformat() for hold in holds})


class TooMany(Exception):
    """The session has as many holds as it may."""


def put(raw: str, name: str, ttl: timedelta, now: datetime) -> tuple[Hold, ...]:
    """The holds in force with this one, until `now` + `ttl`, new or anew. Raises TooMany."""
    others = tuple(hold for hold in in_force(raw, now) if hold.name != name)
    if len(others) >= MOST:
        raise TooMany
    return (*others, Hold(name, now + ttl))


def release(raw: str, name: str, now: datetime) -> tuple[Hold, ...]:
    """The holds in force without this one."""
    return tuple(hold for hold in in_force(raw, now) if hold.name != name)


def until(holds: tuple[Hold, ...]) -> datetime | None:
    """When the last of them runs out; None where there is none."""
    return max((hold.expire_time for hold in holds), default=None)
