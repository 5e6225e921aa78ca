"""The keeper's queue: sessions whose `due_at` has come, claimed for a while by one replica each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from session_service.storage.database import compiled
from session_service.storage.notifications import notice
from session_service.storage.rows import make_record, scalar, session_columns
from session_service.storage.sessions import record_query
from session_service.storage.tables import containers, sessions

if TYPE_CHECKING:
    from datetime import datetime, timedelta
    from uuid import UUID

    from session_service.domain.session import Record, Session
    from session_service.storage.database import Database

_DUE = (
    sa.select(sessions.c.session_id)
    .where(sessions.c.due_at <= sa.func.now())
    .order_by(sessions.c.due_at)
    .limit(sa.bindparam("most", type_=sa.BigInteger))
    .with_for_update(skip_locked=True)
    .cte("due")
)
# Not a change of the session: neither its epoch moves nor an event is left.
_CLAIMED = (
    sa.update(sessions)
    .where(sessions.c.session_id == _DUE.c.session_id)
    .values(due_at=sa.func.now() + sa.bindparam("hold", type_=sa.Interval))
    .returning(*session_columns())
    .cte("claimed")
)
_CLAIM = compiled(record_query(_CLAIMED), make_record)
_DEFER = compiled(
    sa.update(sessions)
    .where(
        sessions.c.session_id == sa.bindparam("session_id", type_=sessions.c.session_id.type),
        sessions.c.epoch == sa.bindparam("epoch", type_=sa.BigInteger),
        # A hold that was given back meanwhile, say, moves no epoch, and wants it looked at.
        sessions.c.due_at.is_not_distinct_from(
            sa.bindparam("claimed", type_=sa.DateTime(timezone=True))
        ),
    )
    .values(due_at=sa.bindparam("due_at", type_=sa.DateTime(timezone=True)))
    .returning(sessions.c.epoch),
    scalar(int),
)
_FORGOTTEN = (
    sa.delete(sessions)
    .where(
        sessions.c.session_id == sa.bindparam("session_id", type_=sessions.c.session_id.type),
        sessions.c.epoch == sa.bindparam("epoch", type_=sa.BigInteger),
        sessions.c.state == sa.text("'ENDED'"),
        # What may still exist at the provider is not forgotten.
        ~sa.exists().where(
            containers.c.session_id == sessions.c.session_id,
            containers.c.destroy_time.is_(None),
        ),
    )
    .returning(sessions.c.session_id)
    .cte("forgotten")
)
# Whoever watches it hears that there is nothing more to come.
_FORGET = compiled(
    sa.select(notice(_FORGOTTEN.c.session_id)),
    lambda row: True,
)
_BACKLOG = compiled(
    sa.select(sa.func.count()).select_from(
        sa.select(sa.literal_column("1"))
        .where(sessions.c.due_at <= sa.func.now())
        .limit(sa.bindparam("most", type_=sa.BigInteger))
        .subquery()
    ),
    scalar(int),
)


async def claim(database: Database, most: int, hold: timedelta) -> list[Record]:
    """Up to `most` sessions that are due, longest due first, and nobody else's for `hold`.

    A keeper that dies with them has them come due again after it.
    """
    return await database.fetch_all(_CLAIM, {"most": most, "hold": hold})


async def defer(database: Database, session: Session, due_at: datetime | None) -> None:
    """Look at a session that was claimed again then (None: never), unless it has changed since, or
    somebody wants it looked at before.
    """
    params = {
        "session_id": session.session_id,
        "epoch": session.epoch,
        "claimed": session.due_at,
        "due_at": due_at,
    }
    await database.fetch_one(_DEFER, params)


async def forget(database: Database, session_id: UUID, epoch: int) -> bool:
    """Delete an ended session's rows, its decisions apart; False where it changed since."""
    params = {"session_id": session_id, "epoch": epoch}
    return await database.fetch_one(_FORGET, params) is not None


async def backlog(database: Database, most: int) -> int:
    """How many sessions are due now, counted up to `most`."""
    return await database.fetch_one(_BACKLOG, {"most": most}) or 0
