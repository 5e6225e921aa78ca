"""Change the holds of a session, under the lock of its row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from session_service.domain import holds
from session_service.storage.database import compiled, one
from session_service.storage.session import change as changes
from session_service.storage.session.change import NOW, Change
from session_service.storage.session.reads import make_record, record_query
from session_service.storage.tables import sessions

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from session_service.domain.holds import Hold
    from session_service.domain.session import Record
    from session_service.storage.database import Database

_LOCKED = compiled(
    lambda: (
        record_query()
        .where(
            sessions.c.session_id == sa.bindparam("session_id", type_=sessions.c.session_id.type),
            sessions.c.tenant == sa.bindparam("tenant"),
        )
        .with_for_update(of=sessions)
    ),
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
    """Replace the session's holds by those that `make` returns for its record, and return them;
    None if there is no such session.

    `make` is called while the row is locked and must not wait. If it raises, the transaction is
    rolled back; if it returns None, nothing changes and the holds in force are returned. An idle
    pause compares `hold_until` in its update of the same row: either it waits for this transaction
    and sees the hold, or it was committed first and `make` sees the new state.
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
        await changes.apply(connection, changed)
        return made


def _due(record: Record) -> dict[str, object]:
    """Make the session due now: the due pass may have deferred it until the end of a hold that this
    change releases. A session in transition keeps its `due_at`, which grows with each failed try.
    """
    return {"due_at": NOW} if record.session.transition is None else {}
