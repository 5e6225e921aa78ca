"""Changing a session's holds, under the lock of its row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from session_service.domain import holds
from session_service.storage import transitions
from session_service.storage.assignments import NOW
from session_service.storage.database import compiled, one
from session_service.storage.rows import make_record
from session_service.storage.sessions import record_query
from session_service.storage.tables import sessions
from session_service.storage.transitions import Change

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from session_service.domain.holds import Hold
    from session_service.domain.session import Record
    from session_service.storage.database import Database

_LOCKED = compiled(
    record_query()
    .where(
        sessions.c.session_id == sa.bindparam("session_id", type_=sessions.c.session_id.type),
        sessions.c.tenant == sa.bindparam("tenant"),
    )
    .with_for_update(of=sessions),
    make_record,
)


async def change(
    database: Database,
    tenant: str,
    session_id: UUID,
    event: str,
    name: str,
    make: Callable[[Record], tuple[Hold, ...] | None],
) -> tuple[Hold, ...] | None:
    """Give the session the holds that `make` makes of its record; None where there is no session.

    `make` is called under the row's lock and must not wait; what it raises undoes everything, and
    None of it changes nothing. An idle pause compares the row's own column, and so either sees the
    hold or was there before it.
    """
    async with database.transaction() as connection:
        params = {"session_id": session_id, "tenant": tenant}
        record = await one(connection, _LOCKED, params)
        if record is None:
            return None
        made = make(record)
        if made is None:
            return holds.in_force(record.session.holds, record.now)
        changed = Change(
            session_id,
            record.session.epoch,
            {"holds": holds.dump(made), "hold_until": holds.until(made), **_due(record)},
            advance=False,
            event=event,
            details={"name": name},
        )
        await transitions.apply(connection, changed)
        return made


def _due(record: Record) -> dict[str, object]:
    """The keeper may have put the session off until the hold that is now given back runs out. What
    is in flight has a time of its own, which grows with each try that failed.
    """
    return {"due_at": NOW} if record.session.transition is None else {}
