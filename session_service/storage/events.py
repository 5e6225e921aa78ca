"""What happened to sessions: the append-only table that WatchSession reads.

An event is appended by the statement that makes the change.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa

from session_service.domain.states import State
from session_service.storage.connections import PATIENT
from session_service.storage.database import compiled
from session_service.storage.rows import scalar
from session_service.storage.tables import session_events as events

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime, timedelta
    from uuid import UUID

    from session_service.storage.database import Database


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened."""

    sequence: int
    type: str
    state: State
    generation: int
    details: str
    """A JSON object of strings."""
    time: datetime


def _make(row: Sequence[object]) -> Event:
    sequence, word, state, generation, details, time = row
    return Event(sequence, word, State(state), generation, details, time)  # type: ignore[arg-type]  # columns have their types


def event_insert(changed: sa.CTE) -> sa.CTE:
    """Append the event of a change, under the lock that the change holds on the session's row."""
    word = sa.func.coalesce(sa.bindparam("e_type", type_=sa.Text), changed.c.state)
    values = {
        "session_id": changed.c.session_id,
        "sequence": changed.c.event_sequence,
        "type": word,
        "state": changed.c.state,
        "generation": changed.c.generation,
        "details": sa.bindparam("e_details", type_=events.c.details.type),
    }
    source = sa.select(*values.values()).select_from(changed)
    return sa.insert(events).from_select(list(values), source).cte("event")


def event_parameters(word: str | None, details: Mapping[str, str]) -> dict[str, object]:
    """The values of `event_insert`'s binds."""
    return {"e_type": word, "e_details": json.dumps(dict(details))}


_AFTER = compiled(
    sa.select(
        events.c.sequence,
        events.c.type,
        events.c.state,
        events.c.generation,
        events.c.details,
        events.c.create_time,
    )
    .where(
        events.c.session_id == sa.bindparam("session_id", type_=events.c.session_id.type),
        events.c.sequence > sa.bindparam("after", type_=sa.BigInteger),
    )
    .order_by(events.c.sequence)
    .limit(sa.bindparam("most", type_=sa.BigInteger)),
    _make,
)
_OLD = (
    sa.select(events.c.session_id, events.c.sequence)
    .where(events.c.create_time < sa.func.now() - sa.bindparam("age", type_=sa.Interval))
    .limit(sa.bindparam("most", type_=sa.BigInteger))
    .cte("old")
)
_TRIM = compiled(
    sa.select(sa.func.count()).select_from(
        sa.delete(events)
        .where(events.c.session_id == _OLD.c.session_id, events.c.sequence == _OLD.c.sequence)
        .returning(events.c.sequence)
        .cte("gone")
    ),
    scalar(int),
)


async def after(database: Database, session_id: UUID, sequence: int, most: int) -> list[Event]:
    """Up to `most` events after this one, in order."""
    params = {"session_id": session_id, "after": sequence, "most": most}
    return await database.fetch_all(_AFTER, params)


async def trim(database: Database, age: timedelta, most: int) -> int:
    """Delete up to `most` events older than this; how many."""
    return await database.fetch_one(_TRIM, {"age": age, "most": most}, PATIENT) or 0
