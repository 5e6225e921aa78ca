"""Rolling the figures of agent sessions up by the day of their creation.

Each function that writes is one transaction, which first locks the row of the progress: of two
replicas, the second sees what the first has done. Notes of changes are deleted before the count, in
a statement of their own, so that the count sees every change whose note was deleted.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg

from session_service.domain.rollups import DAY
from session_service.storage.agent.activity import SUBJECT
from session_service.storage.agent.stats import FIGURES, NAME, created
from session_service.storage.database import BATCH_TIMEOUT

if TYPE_CHECKING:
    from datetime import datetime

    from session_service.storage.database import Connection, Database

#: The shortest stretch that is not halved.
SHORTEST = timedelta(seconds=1)
#: Sessions that one statement reads of those with an append, and days that are remembered of them.
SEEN, SEEN_DAYS = 5_000, 2_000
#: Each tenant, by a search of the index for each: reading all sessions would take longer with each.
_TENANTS = """
    RECURSIVE tenant AS (
        (SELECT tenant FROM llm_sessions ORDER BY tenant LIMIT 1)
        UNION ALL
        SELECT (SELECT s.tenant FROM llm_sessions s WHERE s.tenant > t.tenant
                ORDER BY s.tenant LIMIT 1)
        FROM tenant t WHERE t.tenant IS NOT NULL
    )
"""
_BEGIN = f"""
    WITH {_TENANTS}, first AS (
        SELECT date_trunc('day', min(created_at), 'UTC') AS day FROM (
            SELECT (SELECT min(s.created_at) FROM llm_sessions s WHERE s.tenant = t.tenant)
                AS created_at
            FROM tenant t WHERE t.tenant IS NOT NULL
        ) AS each
    )
    UPDATE stats_progress SET start_time = first.day, days_end = first.day, check_time = now()
    FROM first WHERE name = '{NAME}' AND start_time IS NULL AND first.day IS NOT NULL
"""
_LOCK = f"""
    SELECT start_time, days_end, days_end + interval '1 day 5 minutes' <= now()
    FROM stats_progress WHERE name = '{NAME}' AND start_time IS NOT NULL FOR UPDATE
"""
_DAYS_END = f"UPDATE stats_progress SET days_end = %(end)s WHERE name = '{NAME}'"
_COLUMNS = """
    agent_role, session_count, turn_count, total_tokens, lifetime, with_turn, with_second_turn
"""
_CLEAR_DAY = "DELETE FROM llm_stats_rollups WHERE start_time = %(start)s"
#: Adds a stretch of the day to what there is of the day.
_ADD = """
    ON CONFLICT (tenant, start_time, agent_role) DO UPDATE SET
        session_count = llm_stats_rollups.session_count + excluded.session_count,
        turn_count = llm_stats_rollups.turn_count + excluded.turn_count,
        total_tokens = llm_stats_rollups.total_tokens + excluded.total_tokens,
        lifetime = llm_stats_rollups.lifetime + excluded.lifetime,
        with_turn = llm_stats_rollups.with_turn + excluded.with_turn,
        with_second_turn = llm_stats_rollups.with_second_turn + excluded.with_second_turn
"""
_ROLL_UP_DAY = f"""
    WITH {_TENANTS}
    INSERT INTO llm_stats_rollups (tenant, start_time, {_COLUMNS})
    SELECT t.tenant, %(day)s, each.*
    FROM tenant t, LATERAL (
        SELECT {FIGURES} FROM {created("t.tenant")} GROUP BY agent_role
    ) AS each
    WHERE t.tenant IS NOT NULL {_ADD}
"""
_CLEAR = "DELETE FROM llm_stats_rollups WHERE tenant = %(tenant)s AND start_time = %(start)s"
_ROLL_UP = f"""
    INSERT INTO llm_stats_rollups (tenant, start_time, {_COLUMNS})
    SELECT %(tenant)s, %(day)s, {FIGURES} FROM {created("%(tenant)s")} GROUP BY agent_role {_ADD}
"""
_LATE = "SELECT tenant, start_time FROM llm_stats_changes LIMIT 1"
_FORGET = "DELETE FROM llm_stats_changes WHERE tenant = %(tenant)s AND start_time = %(start)s"
# An append shows when a walk has moved `seen_at` to its time. So the next call looks from the
# beginning of the last complete walk, whenever that was: what is later may not show yet. A walk
# leaves out rows that were moved lately or are locked: hence some minutes more.
_SINCE = f"""
    SELECT (SELECT walk_time FROM activity_passes WHERE subject = '{SUBJECT}'),
        check_time - interval '6 minutes', start_time, days_end
    FROM stats_progress WHERE name = '{NAME}' AND start_time IS NOT NULL
"""
# In the order of the index `llm_sessions_active_time`, tenant by tenant, from a place on: a nested
# loop, which ends with the last of `most` sessions.
_SEEN = f"""
    WITH {_TENANTS}, seen AS MATERIALIZED (
        SELECT t.tenant, each.* FROM tenant t, LATERAL (
            SELECT s.created_at, s.seen_at, s.session_id FROM llm_sessions s
            WHERE s.tenant = t.tenant AND s.seen_at >= CASE
                WHEN t.tenant = %(tenant)s THEN %(seen)s::timestamptz
                ELSE %(since)s::timestamptz END
              AND (t.tenant <> %(tenant)s OR (s.seen_at, s.session_id) > (%(seen)s, %(id)s))
            ORDER BY s.seen_at, s.session_id LIMIT %(most)s
        ) AS each
        WHERE t.tenant >= %(tenant)s LIMIT %(most)s
    ), day AS (
        SELECT DISTINCT tenant, date_trunc('day', created_at, 'UTC') AS day FROM seen
        WHERE created_at >= %(start)s AND created_at < %(end)s
    )
    SELECT (SELECT array_agg(tenant ORDER BY tenant, day) FROM day),
        (SELECT array_agg(day ORDER BY tenant, day) FROM day),
        (SELECT count(*) FROM seen), last.tenant, last.seen_at, last.session_id
    FROM (
        SELECT tenant, seen_at, session_id FROM seen
        ORDER BY tenant DESC, seen_at DESC, session_id DESC LIMIT 1
    ) AS last
"""
_SEEN_UNTIL = f"""
    UPDATE stats_progress SET check_time = greatest(check_time, %(time)s) WHERE name = '{NAME}'
"""


async def begin(database: Database) -> None:
    """Choose where roll-ups begin, if that was not done: on the day of the first session."""
    async with database.connection(BATCH_TIMEOUT) as connection:
        await connection.execute(_BEGIN.encode())


async def roll_up_day(database: Database) -> bool:
    """Roll the next finished day up, of all tenants; False if there is none. Raises
    StorageUnavailable.
    """
    async with database.transaction(BATCH_TIMEOUT) as connection:
        row = await _row(connection, _LOCK, {})
        if row is None or not row[2]:
            return False
        period = {"start": row[1], "end": row[1] + DAY}
        await connection.execute(_CLEAR_DAY.encode(), period)
        await _count(connection, _ROLL_UP_DAY, {"day": row[1]}, row[1], row[1] + DAY)
        await connection.execute(_DAYS_END.encode(), period)
        return True


async def roll_up_late(database: Database) -> bool:
    """Roll a tenant's day up again whose change was noted; False if there is none. Raises
    StorageUnavailable.
    """
    async with database.transaction(BATCH_TIMEOUT) as connection:
        progress = await _row(connection, _LOCK, {})
        late = None if progress is None else await _row(connection, _LATE, {})
        if progress is None or late is None:
            return False
        tenant, day = late
        await connection.execute(_FORGET.encode(), {"tenant": tenant, "start": day})
        # A day that is not rolled up yet will be, from what its rows are then.
        if progress[0] <= day < progress[1]:
            await _roll_up(connection, tenant, day)
        return True


async def roll_up_seen(database: Database, most: int = SEEN, days: int = SEEN_DAYS) -> int:
    """Roll the days up again whose sessions had an append since the last call; return how many.

    `most` sessions are read by a statement, and `days` days are remembered before they are rolled
    up; a day that has sessions beyond is rolled up again. Raises StorageUnavailable.
    """
    async with database.connection(BATCH_TIMEOUT) as connection:
        progress = await _row(connection, _SINCE, {})
    if progress is None:
        return 0
    walked, since, start, end = progress
    params = {"since": since, "start": start, "end": end, "most": most}
    place = {"tenant": "", "seen": since, "id": ""}
    count = 0
    seen: set[tuple[str, datetime]] = set()
    while True:
        async with database.connection(BATCH_TIMEOUT) as connection:
            row = await _row(connection, _SEEN, {**params, **place}, prepare=False)
        read = 0
        if row is not None:
            tenants, starts, read, *last = row
            seen.update(zip(tenants or (), starts or (), strict=True))
            place = dict(zip(place, last, strict=True))
        finished = read < most
        if finished or len(seen) >= days:
            for tenant, day in sorted(seen):
                async with database.transaction(BATCH_TIMEOUT) as connection:
                    if await _row(connection, _LOCK, {}) is not None:
                        await _roll_up(connection, tenant, day)
            count += len(seen)
            seen.clear()
        if finished:
            break
    async with database.connection() as connection:
        await connection.execute(_SEEN_UNTIL.encode(), {"time": walked})
    return count


async def _roll_up(connection: Connection, tenant: str, day: datetime) -> None:
    params: dict[str, object] = {"tenant": tenant, "day": day}
    await connection.execute(_CLEAR.encode(), {"tenant": tenant, "start": day})
    await _count(connection, _ROLL_UP, params, day, day + DAY)


async def _count(
    connection: Connection,
    statement: str,
    params: dict[str, object],
    start: datetime,
    end: datetime,
) -> None:
    """Count from `start` to before `end`: in halves if the server ends the statement after its
    limit, since a day that could not be counted would be tried for ever. Any change in between has
    a note of its own, by which the day is rolled up again.
    """
    span = {**params, "start": start, "end": end}
    try:
        async with connection.transaction():
            await connection.execute(statement.encode(), span, prepare=False)
    except psycopg.errors.QueryCanceled:
        middle = start + (end - start) / 2
        if end - start <= SHORTEST:
            raise
        await _count(connection, statement, params, start, middle)
        await _count(connection, statement, params, middle, end)


# Any: columns of every type.
async def _row(
    connection: Connection, statement: str, params: dict[str, object], *, prepare: bool = True
) -> tuple[Any, ...] | None:
    cursor = await connection.execute(statement.encode(), params, prepare=prepare)
    return await cursor.fetchone()
