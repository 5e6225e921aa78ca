"""Holds: named leases that keep a session from going idle, and their form in its row."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache

#: The most holds of a session at once. A caller that uses a new name each time gets an error.
MOST = 32
#: The longest time for which a hold can be put. It is limited so that a hold that its caller forgot
#: does not keep a container running, and paid for, without an end.
LONGEST = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class Hold:
    """A named lease, in force until `expire_time`."""

    name: str
    expire_time: datetime


@lru_cache(maxsize=1024)
def load(raw: str) -> tuple[Hold, ...]:
    """All holds of the row by name, expired ones too. Cached: nearly all rows have none."""
    rows: dict[str, str] = json.loads(raw)
    return tuple(Hold(name, datetime.fromisoformat(when)) for name, when in sorted(rows.items()))


def in_force(raw: str, now: datetime) -> tuple[Hold, ...]:
    """The holds that have not expired, by name."""
    return tuple(hold for hold in load(raw) if hold.expire_time > now)


def dump(holds: tuple[Hold, ...]) -> str:
    """The holds as the row has them: a JSON object of times by name."""
    return json.dumps({hold.name: hold.expire_time.isoformat() for hold in holds})


class TooMany(Exception):
    """The session already has MOST holds in force."""


def put(raw: str, name: str, ttl: timedelta, now: datetime) -> tuple[Hold, ...]:
    """The holds in force and this one, which lasts until `now` + `ttl`. Raises TooMany.

    A hold that exists already is put again with the new time.
    """
    others = tuple(hold for hold in in_force(raw, now) if hold.name != name)
    if len(others) >= MOST:
        raise TooMany
    return (*others, Hold(name, now + ttl))


def release(raw: str, name: str, now: datetime) -> tuple[Hold, ...]:
    """The holds in force without this one."""
    return tuple(hold for hold in in_force(raw, now) if hold.name != name)


def until(holds: tuple[Hold, ...]) -> datetime | None:
    """When the last of them expires; None if there are none."""
    return max((hold.expire_time for hold in holds), default=None)
