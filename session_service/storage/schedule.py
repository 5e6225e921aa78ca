"""The note that a checkpoint is now taken on a session's schedule, by one replica alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from session_service import points
from session_service.storage.database import compiled
from session_service.storage.rows import scalar
from session_service.storage.tables import sessions

if TYPE_CHECKING:
    from datetime import datetime

    from session_service.domain.session import Session
    from session_service.storage.database import Database

_TIME = sa.DateTime(timezone=True)
# By both times as they were read: of two that saw the same one writes, and what was saved since is
# not saved again. No change of the session: neither its epoch moves nor an event is left.
_BEGIN = compiled(
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
        # A hold that is given back, say, wants it looked at before.
        due_at=sa.func.least(sessions.c.due_at, sa.bindparam("due_at", type_=_TIME)),
    )
    .returning(sessions.c.epoch),
    scalar(int),
)


async def begin(database: Database, session: Session, due_at: datetime) -> bool:
    """Note that a checkpoint of the session is tried now, and have it looked at again by `due_at`;
    False where the session has changed since it was read, or another replica was first.
    """
    params = {
        "session_id": session.session_id,
        "epoch": session.epoch,
        "saved": session.checkpoint_time,
        "tried": session.checkpoint_try_time,
        "due_at": due_at,
    }
    noted = database.fetch_one(_BEGIN, params)
    return await points.around("note", noted) is not None
