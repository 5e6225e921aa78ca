"""Ends of sessions: one row each, written by the statement that ends it, and kept for longer.

A repeat of the end (what traffic woke is put back to rest, the grace period is over) changes
nothing: a session ends once for its user. An undelete takes the row back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from session_service.storage.connections import PATIENT
from session_service.storage.tables import session_ends
from session_service.storage.trimming import trimming

if TYPE_CHECKING:
    from datetime import timedelta

    from session_service.storage.database import Database


def end_insert(ended: sa.CTE) -> sa.CTE:
    """Append the ends of the sessions of `ended`, which have all of a session's columns."""
    row = ended.c
    # One that never stood has not lived.
    lifetime = sa.case((row.start_time.is_not(None), row.end_time - row.create_time))
    values = {
        "session_id": row.session_id,
        "tenant": row.tenant,
        "project_id": row.project_id,
        "end_time": row.end_time,
        "lifetime": lifetime,
        "reason": row.end_reason,
    }
    source = sa.select(*values.values()).select_from(ended)
    insert = postgresql.insert(session_ends).from_select(list(values), source)
    return insert.on_conflict_do_nothing().cte("ended")


def end_removal(revived: sa.CTE) -> sa.CTE:
    """Take the ends of the sessions of `revived` back."""
    return (
        sa.delete(session_ends)
        .where(session_ends.c.session_id == revived.c.session_id)
        .cte("unended")
    )


_TRIM = trimming(
    session_ends.c.session_id,
    session_ends.c.end_time < sa.func.now() - sa.bindparam("age", type_=sa.Interval),
)


async def trim(database: Database, age: timedelta, most: int) -> int:
    """Delete up to `most` ends older than this; how many."""
    return await database.fetch_one(_TRIM, {"age": age, "most": most}, PATIENT) or 0
