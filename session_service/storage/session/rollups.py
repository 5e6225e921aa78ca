"""Rolling the statistics of finished hours and days up, and rolling up again what changed later.

Each function is one transaction that first locks the row of the progress: of two replicas, the
second sees what the first has done. A period is rolled up when it is over for longer than any
transaction takes (`_SETTLED`), so that no row of it is inserted afterwards. Rows that are changed
or removed later, and ends that an import inserts with an earlier time, are noted in `stats_changes`
by triggers, in the transaction of the change. A transaction here deletes these notes before it
counts, in statements of their own: at READ COMMITTED the count sees every change whose note was
deleted.

Retention deletes rows of periods that were rolled up. It first moves `trim_time`, and a period that
begins before it is not rolled up again: its roll-ups are kept as they are, until all of it is past
the retention.

A period whose count the server ends after its limit is counted in parts (`rollup_parts`), a step in
each call. Retention waits for days that are not rolled up, so that none may stay so for ever.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import TYPE_CHECKING, Any

import psycopg

from session_service.domain.rollups import DAY, HOUR, day_of
from session_service.storage.database import BATCH_TIMEOUT, Statement, scalar
from session_service.storage.session import stats_sql
from session_service.storage.session.retained import NAME
from session_service.storage.session.rollup_parts import Parts
from session_service.storage.session.stats import names

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from session_service.storage.database import Connection, Database

_log = logging.getLogger(__name__)

#: The least number of rows of a project in an hour with which the hour gets a roll-up for the
#: project. Fewer are counted from their rows, in about the time in which a roll-up is read.
LEAST_OF_HOUR = 100
_SETTLED = "interval '5 minutes'"
#: How long a day that changed waits to be rolled up again. Changes come in numbers, above all in
#: the first 24 hours, and meanwhile its hours serve.
_DAY_WAITS = "interval '1 hour'"

_BEGIN = f"""
    UPDATE stats_progress SET start_time = date_trunc('day', now() - %(kept)s, 'UTC'),
        hours_end = date_trunc('day', now() - %(kept)s, 'UTC'),
        days_end = date_trunc('day', now() - %(kept)s, 'UTC')
    WHERE name = '{NAME}' AND start_time IS NULL
"""
# Counts as rolled up what has no rows: the days before the first one with rows, or all that is over
# for long if there are none. A row that an import inserts there later is noted by a trigger.
_SKIP = f"""
    UPDATE stats_progress SET days_end = first.day, hours_end = CASE
        WHEN first.has_rows THEN first.day ELSE date_trunc('hour', now() - {_SETTLED}, 'UTC') END
    FROM stats_progress AS p, LATERAL (
        SELECT day, has_rows FROM generate_series(
            p.start_time, date_trunc('day', now() - {_SETTLED}, 'UTC'), interval '1 day'
        ) AS each (day), LATERAL (
            SELECT EXISTS (SELECT FROM decisions
                           WHERE create_time >= day AND create_time < day + interval '1 day')
                OR EXISTS (SELECT FROM session_ends
                           WHERE end_time >= day AND end_time < day + interval '1 day')
                OR EXISTS (SELECT FROM choices
                           WHERE create_time >= day AND create_time < day + interval '1 day')
        ) AS rows_of (has_rows)
        WHERE has_rows OR day = date_trunc('day', now() - {_SETTLED}, 'UTC')
        ORDER BY day LIMIT 1
    ) AS first
    WHERE p.name = '{NAME}' AND stats_progress.name = p.name
"""
# The rows of a day are found by the BRIN index on time. The planner expects some in each day, and
# would read the whole table for each day that has none.
_BY_INDEX = "SET LOCAL enable_seqscan = off"
_LOCK = f"""
    SELECT start_time, hours_end, days_end, trim_time, check_time,
        hours_end + interval '1 hour' + {_SETTLED} <= now()
    FROM stats_progress WHERE name = '{NAME}' AND start_time IS NOT NULL FOR UPDATE
"""
_HOURS_END = f"UPDATE stats_progress SET hours_end = %(end)s WHERE name = '{NAME}'"
_DAYS_END = f"UPDATE stats_progress SET days_end = %(end)s WHERE name = '{NAME}'"
_CHECKED = f"UPDATE stats_progress SET check_time = %(end)s WHERE name = '{NAME}'"
# A period of all tenants and projects is stored in one place, which the BRIN index on time finds.
# The planner of PostgreSQL 18 would rather search another index once for each project and outcome.
_BY_TIME = "SET LOCAL enable_indexscan = off"
_CLEAR = "DELETE FROM stats_rollups WHERE hours = %(hours)s AND start_time = %(start)s"
# Without percentiles: those of a period that was counted in parts are not stored.
_DIGEST = """
    SELECT md5(string_agg(tenant || '/' || project_id || (
        SELECT jsonb_agg(CASE WHEN row ->> 0 = 'OUTCOME' THEN row - 4 ELSE row END ORDER BY place)
        FROM jsonb_array_elements(figures) WITH ORDINALITY AS each (row, place)
    ), '' ORDER BY tenant, project_id))
    FROM stats_rollups WHERE hours = %(hours)s AND start_time = %(start)s
"""
_LATE_HOUR = "SELECT at FROM stats_changes WHERE hours = 1 ORDER BY change_id LIMIT 1"
_LATE_DAY = f"""
    SELECT at FROM stats_changes WHERE hours = 24 AND create_time <= now() - {_DAY_WAITS}
    ORDER BY change_id LIMIT 1
"""
_NOTED = "SELECT true FROM stats_changes WHERE hours = 1 AND at = %(start)s LIMIT 1"
_FORGET = "DELETE FROM stats_changes WHERE hours = %(hours)s AND at = %(start)s"
#: A note that is due at once, and stays until the parts of the period are added up.
_NOTE = f"""
    INSERT INTO stats_changes (hours, at, create_time)
    VALUES (%(hours)s, %(start)s, now() - {_DAY_WAITS}) RETURNING change_id
"""
_IS_NOTED = "SELECT true FROM stats_changes WHERE change_id = %(note)s"
_FORGET_NOTE = "DELETE FROM stats_changes WHERE change_id = %(note)s"
_NOTE_DAY = """
    INSERT INTO stats_changes (hours, at) SELECT 24, %(day)s
    WHERE NOT EXISTS (SELECT FROM stats_changes WHERE hours = 24 AND at = %(day)s)
"""
_NOTE_TRIM = Statement["datetime"](
    f"""
    WITH noted AS (
        UPDATE stats_progress SET trim_time = greatest(trim_time, now() - %(age)s)
        WHERE name = '{NAME}'
    )
    SELECT now() - %(age)s
    """,
    {},
    lambda row: row[0],
)
_TRIM = Statement[int](
    f"""
    WITH gone AS (
        DELETE FROM stats_rollups WHERE (tenant, project_id, hours, start_time) IN (
            SELECT old.tenant, old.project_id, old.hours, old.start_time
            FROM stats_progress p, unnest(ARRAY[-24, -1, 1, 24]) AS length (hours), LATERAL (
                SELECT r.tenant, r.project_id, r.hours, r.start_time FROM stats_rollups r
                WHERE r.hours = length.hours
                  AND r.start_time <= p.trim_time - abs(length.hours) * interval '1 hour'
                ORDER BY r.start_time LIMIT %(most)s
            ) AS old
            WHERE p.name = '{NAME}' LIMIT %(most)s
        )
        RETURNING 1
    )
    SELECT count(*) FROM gone
    """,
    {},
    scalar(int),
)


@cache
def _of_period() -> bytes:
    return stats_sql.of_period().encode()


class _Locked:
    """The progress, locked until the transaction ends."""

    def __init__(self, connection: Connection, row: tuple[Any, ...]) -> None:
        """`row` has the columns of `_LOCK`. Any: times and a truth."""
        self.connection = connection
        self.start: datetime = row[0]
        self.hours_end: datetime = row[1]
        self.days_end: datetime = row[2]
        self.trim_time: datetime | None = row[3]
        self.check_time: datetime | None = row[4]
        self.hour_is_over: bool = row[5]

    def is_kept(self, start: datetime) -> bool:
        """Whether all rows of the period that begins at `start` are there to be counted again."""
        return self.start <= start and (self.trim_time is None or self.trim_time <= start)

    async def execute(self, statement: str, **params: object) -> None:
        """Run a statement without a result."""
        await self.connection.execute(statement.encode(), params)

    async def value(self, statement: str, **params: object) -> Any:
        """The one column of the statement's first row, or None. Any: of every type."""
        cursor = await self.connection.execute(statement.encode(), params)
        row = await cursor.fetchone()
        return None if row is None else row[0]

    async def roll_up(self, start: datetime, length: timedelta) -> bool:
        """Make the roll-ups of the period from its rows, in place of those that there are. False if
        that takes too long: then it is done in parts, one step of them in each call, the last of
        which returns True.
        """
        parts = Parts(self.connection, start, length)
        if await parts.are_begun():
            return await parts.go_on(_least(length))
        if await self.count(start, length):
            return True
        await self.execute(_CLEAR, hours=length // HOUR, start=start)
        await parts.begin()
        return False

    async def roll_up_again(self, start: datetime, length: timedelta) -> bool:
        """The same for a period of which changes are noted. Their notes are deleted before it is
        counted. While parts are counted, one note keeps the period from being used; and what has
        changed since they were begun has notes of its own, by which it is rolled up once more.
        """
        parts, hours = Parts(self.connection, start, length), length // HOUR
        if await parts.are_begun():
            note = parts.note
            if note is not None and await self.value(_IS_NOTED, note=note):
                finished = await parts.go_on(_least(length))
                if finished:
                    await self.execute(_FORGET_NOTE, note=note)
                return finished
            # A replica of the version before has rolled it up meanwhile.
            await parts.clear()
        await self.execute(_FORGET, hours=hours, start=start)
        if await self.count(start, length):
            return True
        await self.execute(_CLEAR, hours=hours, start=start)
        await parts.begin(await self.value(_NOTE, hours=hours, start=start))
        return False

    async def count(self, start: datetime, length: timedelta) -> bool:
        """Make the roll-ups of the period by one statement; False if the server ended it after its
        limit. Then nothing is changed.
        """
        hours = length // HOUR
        params = {
            **names(),
            "hours": hours,
            "start": start,
            "end": start + length,
            "least": _least(length),
        }
        try:
            async with self.connection.transaction():
                await self.execute(_CLEAR, hours=hours, start=start)
                await self.execute(_BY_TIME)
                # Not prepared, so that it is planned for this period.
                await self.connection.execute(_of_period(), params, prepare=False)
        except psycopg.errors.QueryCanceled:
            return False
        return True

    async def note_day(self, hour: datetime) -> None:
        """Note that the day of this hour is to be rolled up again, if it was."""
        day = day_of(hour)
        if day < self.days_end:
            await self.execute(_NOTE_DAY, day=day)


def _least(length: timedelta) -> int:
    """The least number of rows of a project with which a period gets a roll-up for it."""
    return LEAST_OF_HOUR if length == HOUR else 1


async def _lock(connection: Connection) -> _Locked | None:
    cursor = await connection.execute(_LOCK.encode())
    row = await cursor.fetchone()
    return None if row is None else _Locked(connection, row)


async def begin(database: Database, kept: timedelta) -> None:
    """Choose where roll-ups begin, if that was not done: as far back as rows are kept. A new
    database has months without rows, whose hours are not rolled up one by one.
    """
    async with database.transaction(BATCH_TIMEOUT) as connection:
        cursor = await connection.execute(_BEGIN.encode(), {"kept": kept})
        if cursor.rowcount:
            await connection.execute(_BY_INDEX.encode())
            await connection.execute(_SKIP.encode())


async def roll_up_hour(database: Database) -> bool:
    """Roll the next finished hour up, or a part of it; False if there is none. Raises
    StorageUnavailable.
    """
    async with database.transaction(BATCH_TIMEOUT) as connection:
        locked = await _lock(connection)
        if locked is None or not locked.hour_is_over:
            return False
        if await locked.roll_up(locked.hours_end, HOUR):
            await locked.execute(_HOURS_END, end=locked.hours_end + HOUR)
        return True


async def roll_up_day(database: Database) -> bool:
    """Roll the next day up whose hours all are; False if there is none. Raises
    StorageUnavailable.
    """
    async with database.transaction(BATCH_TIMEOUT) as connection:
        locked = await _lock(connection)
        if locked is None or locked.hours_end < locked.days_end + DAY:
            return False
        if await locked.roll_up(locked.days_end, DAY):
            await locked.execute(_DAYS_END, end=locked.days_end + DAY)
        return True


async def roll_up_late_hour(database: Database) -> bool:
    """Roll an hour up again that changed after its roll-up; False if there is none. Its day is
    noted as changed. Raises StorageUnavailable.
    """
    async with database.transaction(BATCH_TIMEOUT) as connection:
        locked = await _lock(connection)
        hour = None if locked is None else await locked.value(_LATE_HOUR)
        if locked is None or hour is None:
            return False
        if not locked.is_kept(hour) or hour >= locked.hours_end:
            # An hour that is not rolled up yet will be, from what its rows are then.
            await locked.execute(_FORGET, hours=1, start=hour)
        elif await locked.roll_up_again(hour, HOUR):
            await locked.note_day(hour)
        return True


async def roll_up_late_day(database: Database) -> bool:
    """Roll a day up again that changed a while ago; False if there is none. Raises
    StorageUnavailable.
    """
    async with database.transaction(BATCH_TIMEOUT) as connection:
        locked = await _lock(connection)
        day = None if locked is None else await locked.value(_LATE_DAY)
        if locked is None or day is None:
            return False
        if locked.is_kept(day):
            await locked.roll_up_again(day, DAY)
        else:
            await locked.execute(_FORGET, hours=24, start=day)
        return True


async def recount(database: Database) -> datetime | None:
    """Count the next hour again, of all in turn, and compare it with its roll-ups. What differs is
    corrected, and logged: nothing that the services do causes a difference. Returns the hour if it
    differed. Raises StorageUnavailable.
    """
    async with database.transaction(BATCH_TIMEOUT) as connection:
        locked = await _lock(connection)
        if locked is None:
            return None
        hour = locked.check_time
        if hour is None or not locked.is_kept(hour) or hour >= locked.hours_end:
            hour = locked.start
            if locked.trim_time is not None and locked.trim_time > hour:
                hour = day_of(locked.trim_time) + DAY
            if hour >= locked.hours_end:
                return None
        await locked.execute(_CHECKED, end=hour + HOUR)
        period = {"hours": 1, "start": hour}
        before = await locked.value(_DIGEST, **period)
        # An hour that takes too long to be counted at once is not compared.
        if not await locked.count(hour, HOUR) or await locked.value(_DIGEST, **period) == before:
            return None
        if await locked.value(_NOTED, start=hour):
            # A change that was noted is the reason. The note stays, and the day follows with it.
            return None
        await locked.note_day(hour)
    _log.error(
        "the statistics of the hour from %s differed from its rows, and were corrected",
        hour.isoformat(),
        extra={"action": "recount"},
    )
    return hour


async def note_trim(database: Database, age: timedelta) -> datetime:
    """Note that rows older than `age` will be deleted. Returns the time before which they are: the
    deletions take minutes, and must not go beyond what was noted. Raises StorageUnavailable.
    """
    before = await database.fetch_one(_NOTE_TRIM, {"age": age})
    assert before is not None, "a SELECT without FROM has a row"
    return before


async def trim(database: Database, most: int) -> int:
    """Delete up to `most` roll-ups of periods past the retention; return how many."""
    return await database.fetch_one(_TRIM, {"most": most}, BATCH_TIMEOUT) or 0
