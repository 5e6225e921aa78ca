"""Gauges of the whole installation: ages, counts by state, and the number of due sessions.

With up to `FEW` live sessions all are counted when they are asked for. With more, the counts that
read every live session, and the overaged among the `MOST` oldest, are those of the last `refresh`,
which one replica makes in the background. What a scrape or a call reads then takes one statement,
and does not depend on how many live sessions there are.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from session_service.domain.states import LIVE, State
from session_service.storage import claims
from session_service.storage.database import BATCH_TIMEOUT, Statement, compiled, scalar
from session_service.storage.session import due as session_due
from session_service.storage.session.reads import LIVE as IS_LIVE
from session_service.storage.tables import LIVE_STATES, orphans, sessions, stats_gauges

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


#: A refresh that is older does not count: none is made, and the live sessions are read.
FRESH = 5 * REFRESH_EVERY


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
    """How long ago `overaged` and `live` were counted; 0 if they were counted now."""
    live: Mapping[State, int] = field(default_factory=dict)
    """The number of live sessions in each live state."""


@dataclass(frozen=True, slots=True)
class _Counted:
    """What reads every live session, and how long ago it was read. `overaged` as in `Gauges`."""

    overaged: int
    live: Mapping[State, int]
    age: timedelta = timedelta(0)

    @property
    def total(self) -> int:
        """The number of live sessions."""
        return sum(self.live.values())


@dataclass(frozen=True, slots=True)
class _Now:
    """What is read each time, and what was counted at the last refresh, if there was one."""

    oldest: timedelta | None
    due: int
    orphans: int
    refreshed: _Counted | None


def _counted(counts: Mapping[str, int], age: timedelta) -> _Counted:
    live = {State(word): number for word, number in counts.items() if word in set(State)}
    return _Counted(counts["overaged"], live, age)


_MOST = sa.literal_column(str(MOST), type_=sa.BigInteger())
_NOW = compiled(
    lambda: sa.select(
        sa.select(sa.func.now() - sa.func.min(sessions.c.create_time))
        .where(IS_LIVE)
        .scalar_subquery(),
        session_due.backlog(_MOST),
        sa.select(sa.func.count())
        .select_from(sa.select(sa.literal_column("1")).select_from(orphans).limit(_MOST).subquery())
        .scalar_subquery(),
        stats_gauges.c.counts,
        sa.func.now() - stats_gauges.c.count_time,
    ).select_from(
        sa.select(sa.literal_column("1"))
        .subquery("one")
        .outerjoin(stats_gauges, stats_gauges.c.name == sa.literal_column(f"'{NAME}'"))
    ),
    lambda row: _Now(
        row[0], row[1], row[2], None if row[3] is None else _counted(json.loads(row[3]), row[4])
    ),
)
_LIFETIME = sa.cast(sessions.c.policy["max_lifetime"].astext, sa.Float)
_OLDEST = (
    sa.select(
        sessions.c.state,
        (sessions.c.create_time + _LIFETIME * sa.text("interval '1 second'") < sa.func.now()).label(
            "over"
        ),
    )
    .where(IS_LIVE)
    .order_by(sessions.c.create_time)
    .limit(sa.bindparam("most", type_=sa.BigInteger))
    .subquery()
)
#: Of the `most` oldest live sessions, by state: how many there are, and how many are overaged.
_LIVE_AGES = compiled(
    lambda: sa.select(
        _OLDEST.c.state, sa.func.count(), sa.func.count().filter(_OLDEST.c.over)
    ).group_by(_OLDEST.c.state),
    lambda row: (State(row[0]), int(row[1]), int(row[2])),
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
    now = await database.fetch_one(_NOW, {}, BATCH_TIMEOUT)
    assert now is not None, "it has a row without tables"
    counted = now.refreshed
    if counted is None or counted.total <= FEW or counted.age > FRESH:
        found = await _oldest(database, FEW + 1)
        if found.total <= FEW:
            counted = found
        elif counted is None:
            overaged = (await _oldest(database, MOST)).overaged
            counted = _Counted(overaged, await _count_by_state(database))
    live = {state: counted.live.get(state, 0) for state in State if state in LIVE}
    return Gauges(now.oldest, counted.overaged, now.due, now.orphans, counted.age, live)


async def _oldest(database: Database, most: int) -> _Counted:
    """The counts of the `most` oldest live sessions."""
    rows = await database.fetch_all(_LIVE_AGES, {"most": most}, BATCH_TIMEOUT)
    return _Counted(sum(over for _, _, over in rows), {state: number for state, number, _ in rows})


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


async def refresh(database: Database, every: timedelta = REFRESH_EVERY) -> bool:
    """Count what `read` uses; False if another replica did so less than `every`
    ago. Raises StorageUnavailable.
    """
    if not await claims.claim(database, NAME, every):
        return False
    overaged = (await _oldest(database, MOST)).overaged
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
