"""Gauges of the whole installation: ages, counts by state, and the number of due sessions.

With up to `FEW` live sessions all are counted when they are asked for. With more, the counts that
read every live session, and the overaged among the `MOST` oldest, are those of the last `refresh`,
which one replica makes in the background. What a scrape or a call reads is then bounded by `FEW`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from session_service.domain.states import LIVE, State
from session_service.storage import claims
from session_service.storage.database import BATCH_TIMEOUT, Statement, compiled, scalar
from session_service.storage.session import due as session_due
from session_service.storage.session.reads import LIVE as IS_LIVE
from session_service.storage.tables import LIVE_STATES, orphans, sessions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from session_service.storage.database import Database


#: The most rows that one gauge counts. A gauge with this value means "this many or more".
MOST = 10_000
#: With more live sessions than this, some gauges are read from the last `refresh`.
FEW = 1_000
#: How often the gauges are refreshed, by all replicas together.
REFRESH_EVERY = timedelta(seconds=60)
#: The name of the row of the last refresh, and of its claim.
NAME = "gauges"
#: Live sessions that one statement of a refresh reads.
CHUNK = 10_000


@dataclass(frozen=True, slots=True)
class Gauges:
    """The values of one read."""

    oldest: timedelta | None
    """The age of the oldest live session; None if there is no live session."""
    overaged: int
    """The number of live sessions, of the `MOST` oldest, past their policy's `max_lifetime`."""
    due: int
    """The number of sessions with a due action that no replica has carried out yet."""
    orphans: int
    """The number of containers that exist without a row of a session."""
    age: timedelta = timedelta(0)
    """How long ago `overaged` was counted; 0 if it was counted now."""


_LIFETIME = sa.cast(sessions.c.policy["max_lifetime"].astext, sa.Float)
_OLDEST = (
    sa.select(
        sessions.c.create_time,
        (sessions.c.create_time + _LIFETIME * sa.text("interval '1 second'") < sa.func.now()).label(
            "over"
        ),
    )
    .where(IS_LIVE)
    .order_by(sessions.c.create_time)
    .limit(sa.bindparam("most", type_=sa.BigInteger))
    .subquery()
)
_LIVE_AGES = compiled(
    lambda: sa.select(
        sa.func.now() - sa.func.min(_OLDEST.c.create_time),
        sa.func.count().filter(_OLDEST.c.over),
        sa.func.count(),
    ).select_from(_OLDEST),
    lambda row: (row[0], int(row[1]), int(row[2])),
)
_ORPHANS = compiled(
    lambda: sa.select(sa.func.count()).select_from(
        sa.select(sa.literal_column("1"))
        .select_from(orphans)
        .limit(sa.bindparam("most", type_=sa.BigInteger))
        .subquery()
    ),
    scalar(int),
)


_REFRESHED = Statement[tuple["Mapping[str, int]", timedelta]](
    f"SELECT counts, now() - count_time FROM stats_gauges WHERE name = '{NAME}'",
    {},
    lambda row: (json.loads(row[0]), row[1]),
)
_KEEP = Statement[bool](
    f"""
    INSERT INTO stats_gauges (name, counts, count_time) VALUES ('{NAME}', %(counts)s, now())
    ON CONFLICT (name) DO UPDATE SET counts = excluded.counts, count_time = now() RETURNING true
    """,
    {},
    scalar(bool),
)


async def read(database: Database) -> Gauges:
    """Read the gauges. Raises StorageUnavailable."""
    oldest, overaged, live = await _ages(database, FEW + 1)
    age = timedelta(0)
    if live > FEW:
        refreshed = await database.fetch_one(_REFRESHED, {})
        if refreshed is None:
            _, overaged, _ = await _ages(database, MOST)
        else:
            overaged, age = refreshed[0]["overaged"], refreshed[1]
    backlog = await session_due.backlog(database, MOST)
    orphaned = await database.fetch_one(_ORPHANS, {"most": MOST}, BATCH_TIMEOUT) or 0
    return Gauges(oldest, overaged, backlog, orphaned, age)


async def _ages(database: Database, most: int) -> tuple[timedelta | None, int, int]:
    """Of the `most` oldest live sessions: the age of the oldest, how many are past their policy's
    `max_lifetime`, and how many there are.
    """
    return await database.fetch_one(_LIVE_AGES, {"most": most}, BATCH_TIMEOUT) or (None, 0, 0)


_FIRST = (
    sa.select(sessions.c.state)
    .where(IS_LIVE)
    .limit(sa.bindparam("most", type_=sa.BigInteger))
    .subquery()
)
_BY_STATE = compiled(
    lambda: sa.select(_FIRST.c.state, sa.func.count()).group_by(_FIRST.c.state),
    lambda row: (State(row[0]), int(row[1])),
)
# In the order of the partial index on the time of creation. Sessions of the same microsecond are in
# the order of their ids, so that a chunk may end between two of them.
_CHUNK = f"""
    SELECT state, count(*), max(create_time), (array_agg(session_id ORDER BY create_time DESC,
        session_id DESC))[1]
    FROM (
        SELECT state, create_time, session_id FROM sessions
        WHERE state IN ({LIVE_STATES}) AND create_time >= %(time)s
          AND (create_time, session_id) > (%(time)s, %(session_id)s)
        ORDER BY create_time, session_id LIMIT {CHUNK}
    ) AS chunk GROUP BY state
"""


async def live_by_state(database: Database) -> tuple[Mapping[State, int], timedelta]:
    """The number of live sessions in each live state, and how long ago they were counted; 0 if they
    were counted now. Raises StorageUnavailable.
    """
    found = dict(await database.fetch_all(_BY_STATE, {"most": FEW + 1}, BATCH_TIMEOUT))
    age = timedelta(0)
    if sum(found.values()) > FEW:
        refreshed = await database.fetch_one(_REFRESHED, {})
        if refreshed is None:
            found = await _count_by_state(database)
        else:
            found = {State(word): n for word, n in refreshed[0].items() if word in set(State)}
            age = refreshed[1]
    return {state: found.get(state, 0) for state in State if state in LIVE}, age


async def refresh(database: Database, every: timedelta = REFRESH_EVERY) -> bool:
    """Count what `read` and `live_by_state` keep; False if another replica did so less than `every`
    ago. Raises StorageUnavailable.
    """
    if not await claims.claim(database, NAME, every):
        return False
    _, overaged, _ = await _ages(database, MOST)
    counts = {str(state): number for state, number in (await _count_by_state(database)).items()}
    kept = json.dumps({**counts, "overaged": overaged})
    await database.fetch_one(_KEEP, {"counts": kept})
    return True


async def _count_by_state(database: Database) -> dict[State, int]:
    """Count in chunks, in statements of their own: sessions that change meanwhile count in their
    state before or after.
    """
    counts: dict[State, int] = {}
    # Any: a time or PostgreSQL's first one, and an id.
    after: dict[str, Any] = {"time": "-infinity", "session_id": "0" * 32}
    while True:
        async with database.connection(BATCH_TIMEOUT) as connection:
            cursor = await connection.execute(_CHUNK.encode(), after)
            rows = await cursor.fetchall()
        for state, number, _, _ in rows:
            counts[State(state)] = counts.get(State(state), 0) + number
        if sum(row[1] for row in rows) < CHUNK:
            return counts
        _, _, after["time"], after["session_id"] = max(rows, key=lambda row: (row[2], row[3]))
