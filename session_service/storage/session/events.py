"""Events of sessions: the append-only table that WatchSession reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa

from session_service.domain.states import State
from session_service.storage.database import BATCH_TIMEOUT, compiled, scalar
from session_service.storage.tables import session_events as events

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime, timedelta
    from uuid import UUID

    from session_service.storage.database import Database


@dataclass(frozen=True, slots=True)
class Event:
    """An event of a session, with its state and generation after the event."""

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


_AFTER = compiled(
    lambda: (
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
        .limit(sa.bindparam("most", type_=sa.BigInteger))
    ),
    _make,
)
_OLD = (
    sa.select(events.c.session_id, events.c.sequence)
    .where(events.c.create_time < sa.func.now() - sa.bindparam("age", type_=sa.Interval))
    .limit(sa.bindparam("most", type_=sa.BigInteger))
    .cte("old")
)
_TRIM = compiled(
    lambda: sa.select(sa.func.count()).select_from(
        sa.delete(events)
        .where(events.c.session_id == _OLD.c.session_id, events.c.sequence == _OLD.c.sequence)
        .returning(events.c.sequence)
        .cte("gone")
    ),
    scalar(int),
)


async def after(database: Database, session_id: UUID, sequence: int, most: int) -> list[Event]:
    """Up to `most` events of the session with a higher sequence number, in order."""
    params = {"session_id": session_id, "after": sequence, "most": most}
    return await database.fetch_all(_AFTER, params)


async def trim(database: Database, age: timedelta, most: int) -> int:
    """Delete up to `most` events older than `age`; return how many."""
    return await database.fetch_one(_TRIM, {"age": age, "most": most}, BATCH_TIMEOUT) or 0
