"""How old things are, and how far behind: the figures that an operator watches. Bounded reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa

from session_service.domain.states import LIVE as LIVE_STATES
from session_service.domain.states import State
from session_service.storage import due
from session_service.storage.connections import PATIENT
from session_service.storage.database import compiled
from session_service.storage.rows import scalar
from session_service.storage.sessions import LIVE
from session_service.storage.tables import orphans, sessions

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import timedelta

    from session_service.storage.database import Database

#: Rows that are counted at most: a figure of so many says "or more".
MOST = 10_000


@dataclass(frozen=True, slots=True)
class Ages:
    """As of one look."""

    oldest: timedelta | None
    """The age of the oldest live session; None where there is none."""
    overaged: int
    """How many of the `MOST` oldest live sessions are past their policy's `max_lifetime`."""
    due: int
    """How many sessions are due to be kept, and were not yet."""
    orphans: int
    """How many containers were seen that no session has."""


_LIFETIME = sa.cast(sessions.c.policy["max_lifetime"].astext, sa.Float)
_OLDEST = (
    sa.select(
        sessions.c.create_time,
        (sessions.c.create_time + _LIFETIME * sa.text("interval '1 second'") < sa.func.now()).label(
            "over"
        ),
    )
    .where(LIVE)
    .order_by(sessions.c.create_time)
    .limit(sa.bindparam("most", type_=sa.BigInteger))
    .subquery()
)
_LIVE_AGES = compiled(
    sa.select(
        sa.func.now() - sa.func.min(_OLDEST.c.create_time),
        sa.func.count().filter(_OLDEST.c.over),
    ).select_from(_OLDEST),
    lambda row: (row[0], int(row[1])),
)
_ORPHANS = compiled(
    sa.select(sa.func.count()).select_from(
        sa.select(sa.literal_column("1"))
        .select_from(orphans)
        .limit(sa.bindparam("most", type_=sa.BigInteger))
        .subquery()
    ),
    scalar(int),
)


async def look(database: Database) -> Ages:
    """How old and how far behind things are now. Raises StorageUnavailable."""
    oldest, overaged = await database.fetch_one(_LIVE_AGES, {"most": MOST}, PATIENT) or (None, 0)
    backlog = await due.backlog(database, MOST)
    seen = await database.fetch_one(_ORPHANS, {"most": MOST}, PATIENT) or 0
    return Ages(oldest, overaged, backlog, seen)


_BY_STATE = compiled(
    sa.select(sessions.c.state, sa.func.count()).where(LIVE).group_by(sessions.c.state),
    lambda row: (State(row[0]), int(row[1])),
)


async def live_by_state(database: Database) -> Mapping[State, int]:
    """How many live sessions there are in each live state; reads each of them. Raises
    StorageUnavailable.
    """
    found = dict(await database.fetch_all(_BY_STATE, {}, PATIENT))
    return {state: found.get(state, 0) for state in State if state in LIVE_STATES}
