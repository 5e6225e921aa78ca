"""The queue of the due pass: sessions whose `due_at` has passed.

A replica claims a session for a limited time, so that no two replicas work on the same session. In
the same way `note_scheduled` lets one replica take a scheduled checkpoint.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from session_service import failpoints
from session_service.storage.database import compiled, scalar
from session_service.storage.session.reads import make_record, record_query, session_columns
from session_service.storage.tables import sessions

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime, timedelta
    from uuid import UUID

    from session_service.domain.session import Record, Session
    from session_service.storage.database import Database


def _claim(*conditions: sa.ColumnElement[bool] | sa.TextClause) -> sa.ClauseElement:
    """Claims sessions that satisfy the conditions, the longest due first. A claim is not a change
    of the session: the epoch does not advance, and no event is appended.
    """
    due = (
        sa.select(sessions.c.session_id)
        .where(*conditions)
        .order_by(sessions.c.due_at)
        .limit(sa.bindparam("most", type_=sa.BigInteger))
        .with_for_update(skip_locked=True)
        .cte("due")
    )
    claimed = (
        sa.update(sessions)
        .where(sessions.c.session_id == due.c.session_id)
        .values(due_at=sa.func.now() + sa.bindparam("hold", type_=sa.Interval))
        .returning(*session_columns())
        .cte("claimed")
    )
    return record_query(claimed)


# The predicate of the index `sessions_due_live`, as it is written there, so that it is used.
_CLAIM = compiled(
    lambda: _claim(
        sessions.c.due_at <= sa.func.now(), sa.text("due_at IS NOT NULL AND state <> 'ENDED'")
    ),
    make_record,
)
_IDS = postgresql.ARRAY(postgresql.UUID(as_uuid=True))
# By their ids. The condition that no index has keeps the planner from reading all due sessions.
_CLAIM_THESE = compiled(
    lambda: _claim(
        sessions.c.session_id == sa.any_(sa.bindparam("ids", type_=_IDS)),
        sa.func.coalesce(sessions.c.due_at, sa.text("'infinity'")) <= sa.func.now(),
    ),
    make_record,
)
_DEFER = compiled(
    lambda: (
        sa.update(sessions)
        .where(
            sessions.c.session_id == sa.bindparam("session_id", type_=sessions.c.session_id.type),
            sessions.c.epoch == sa.bindparam("epoch", type_=sa.BigInteger),
            # `due_at` must still be what the claim set. The release of a hold, for example, sets it
            # to now without advancing the epoch. To overwrite that would delay the work that became
            # due.
            sessions.c.due_at.is_not_distinct_from(
                sa.bindparam("claimed", type_=sa.DateTime(timezone=True))
            ),
        )
        .values(due_at=sa.bindparam("due_at", type_=sa.DateTime(timezone=True)))
        .returning(sessions.c.epoch)
    ),
    scalar(int),
)


async def claim(database: Database, most: int, hold: timedelta) -> list[Record]:
    """Claim up to `most` due sessions that have not ended for `hold`, the longest due first.

    No other replica gets them during that time. They are due again after it, so that a replica
    that dies with them loses nothing.
    """
    return await database.fetch_all(_CLAIM, {"most": most, "hold": hold})


async def claim_these(
    database: Database, session_ids: Sequence[UUID], most: int, hold: timedelta
) -> list[Record]:
    """Claim up to `most` of these sessions that are due, as `claim` does."""
    params = {"ids": list(session_ids), "most": most, "hold": hold}
    return await database.fetch_all(_CLAIM_THESE, params)


async def defer(database: Database, session: Session, due_at: datetime | None) -> None:
    """Make a claimed session due again at this time; None removes it from the queue. Nothing
    changes if the session or its `due_at` has changed since the claim.
    """
    params = {
        "session_id": session.session_id,
        "epoch": session.epoch,
        "claimed": session.due_at,
        "due_at": due_at,
    }
    await database.fetch_one(_DEFER, params)


def backlog(most: sa.ColumnElement[int]) -> sa.ScalarSelect[int]:
    """How many sessions are due now, counted up to `most`."""
    due = (
        sa.select(sa.literal_column("1"))
        .where(sessions.c.due_at <= sa.func.now())
        .limit(most)
        .subquery()
    )
    return sa.select(sa.func.count()).select_from(due).scalar_subquery()


_TIME = sa.DateTime(timezone=True)
# Compares both times with the values that were read. Of two replicas that read the same values only
# one writes, and a session that was saved since the read is not saved again. This is not a change
# of the session: the epoch does not advance, and no event is appended.
_BEGIN = compiled(
    lambda: (
        sa.update(sessions)
        .where(
            sessions.c.session_id == sa.bindparam("session_id", type_=sessions.c.session_id.type),
            sessions.c.epoch == sa.bindparam("epoch", type_=sa.BigInteger),
            sessions.c.state == sa.text("'ACTIVE'"),
            sessions.c.transition.is_(None),
            sessions.c.checkpoint_time.is_not_distinct_from(sa.bindparam("saved", type_=_TIME)),
            sessions.c.checkpoint_try_time.is_not_distinct_from(sa.bindparam("tried", type_=_TIME)),
        )
        .values(
            checkpoint_try_time=sa.func.now(),
            # Never later than it was: releasing a hold, for example, may have made it due earlier.
            due_at=sa.func.least(sessions.c.due_at, sa.bindparam("due_at", type_=_TIME)),
        )
        .returning(sessions.c.epoch)
    ),
    scalar(int),
)


async def note_scheduled(database: Database, session: Session, due_at: datetime) -> bool:
    """Note that this replica tries to take a checkpoint of the session now, and make the session
    due at `due_at` at the latest. False if the session has changed since it was read, or if another
    replica was first.
    """
    params = {
        "session_id": session.session_id,
        "epoch": session.epoch,
        "saved": session.checkpoint_time,
        "tried": session.checkpoint_try_time,
        "due_at": due_at,
    }
    noted = database.fetch_one(_BEGIN, params)
    return await failpoints.around("note", noted) is not None
