"""Roll-ups of a period that takes too long to be counted by one statement: counted in parts.

A part is a stretch of the period. Its roll-ups are rows of `stats_rollups` whose `hours` are below
zero, so that nothing reads them but this. A row without a tenant says how far the period is. When
all parts are counted they are added up, some projects at a time. Each step is a transaction, and
the next pass goes on where the last one ended. A part that takes too long itself is halved.

The sums are those of one statement. The percentiles are read from the histograms then, as those of
several periods are.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING, Any

import psycopg

from session_service.domain.histogram import BITS, DIGITS
from session_service.domain.rollups import HOUR
from session_service.domain.stats import ALL_PROJECTS
from session_service.storage.session import stats_sql
from session_service.storage.session.stats import names

if TYPE_CHECKING:
    from session_service.storage.database import Connection

#: The parts of a period at first, and the shortest part.
PARTS = 8
SHORTEST = timedelta(seconds=1)
#: Roll-ups of parts that are chosen at once, to add up all those of their projects.
JOINED = 500
_PLACE = "hours = %(parts)s AND start_time >= %(start)s AND start_time < %(end)s"
_MARK = "tenant = '' AND project_id = '' AND hours = %(parts)s AND start_time = %(start)s"
_FIND = f"SELECT figures FROM stats_rollups WHERE {_MARK}"
_BEGIN = """
    INSERT INTO stats_rollups (tenant, project_id, hours, start_time, figures)
    VALUES ('', '', %(parts)s, %(start)s, %(mark)s)
"""
_MOVE = f"UPDATE stats_rollups SET figures = %(mark)s WHERE {_MARK}"
_CLEAR = f"DELETE FROM stats_rollups WHERE {_PLACE}"
# A BRIN index on time finds the rows of a part, as those of a period. What adds up searches keys.
_BY_TIME = "SET LOCAL enable_indexscan = off"
_BY_KEY = "SET LOCAL enable_indexscan = on"
_PLACES = f"""
    SELECT tenant, project, word AS outcome, (number + place)::int AS bucket, count AS number
    FROM (
        SELECT tenant, project, word, number, place, ('x' || substr(
            digits, length(digits) - {DIGITS} * (place + 1) + 1, {DIGITS}
        ))::bit({BITS})::bigint AS count
        FROM item, generate_series(0, length(digits) / {DIGITS} - 1) AS place
        WHERE kind = 'HISTOGRAM'
    ) AS spread WHERE count > 0
"""
_JOIN = f"""
    WITH chosen AS MATERIALIZED (
        SELECT DISTINCT tenant, project_id FROM (
            SELECT tenant, project_id FROM stats_rollups WHERE {_PLACE} AND tenant <> ''
            ORDER BY start_time LIMIT %(most)s
        ) AS first
    ), part AS MATERIALIZED (
        DELETE FROM stats_rollups r USING chosen c
        WHERE r.tenant = c.tenant AND r.project_id = c.project_id AND r.hours = %(parts)s
          AND r.start_time >= %(start)s AND r.start_time < %(end)s
        RETURNING r.tenant, r.project_id AS project, r.figures
    ), item AS MATERIALIZED (
        SELECT tenant, project, each ->> 0 AS kind, each ->> 1 AS word, each ->> 2 AS result,
            (each ->> 3)::bigint AS number, each -> 4 AS took, each ->> 5 AS digits
        FROM part, jsonb_array_elements(figures) AS each
    ), row AS (
        SELECT tenant, project, kind, word, result, sum(number)::bigint AS number,
            CASE WHEN kind = 'END' THEN
                ARRAY[sum((took ->> 0)::bigint), sum((took ->> 1)::bigint)]::bigint[]
            END AS took, NULL AS digits
        FROM item WHERE kind <> 'HISTOGRAM' GROUP BY tenant, project, kind, word, result
        UNION ALL {stats_sql.histogram_rows("tenant, project", _PLACES)}
    ), inserted AS (
        INSERT INTO stats_rollups (tenant, project_id, hours, start_time, figures)
        SELECT tenant, project, %(hours)s, %(start)s,
            jsonb_agg(jsonb_build_array(kind, word, result, number, took, digits)
                      ORDER BY kind, word, result) FILTER (WHERE kind <> 'ROWS')
        FROM row GROUP BY tenant, project
        HAVING bool_or(kind <> 'ROWS') AND (
            project = {ALL_PROJECTS!r} OR max(number) FILTER (WHERE kind = 'ROWS') >= %(least)s
        )
        ON CONFLICT (tenant, project_id, hours, start_time) DO UPDATE SET figures = excluded.figures
    )
    SELECT count(*) FROM chosen
"""


@cache
def _of_part() -> bytes:
    return stats_sql.of_period(part=True).encode()


@dataclass(frozen=True, slots=True)
class _Mark:
    """How far a period is: counted up to `done`, in parts of `length`. `note`: the note of a change
    that keeps the period from being used meanwhile, if it had been rolled up before.
    """

    done: datetime
    length: timedelta
    note: int | None = None

    def dump(self) -> str:
        """As JSON."""
        return json.dumps([self.done.isoformat(), self.length.total_seconds(), self.note])

    @classmethod
    def load(cls, text: str) -> _Mark:
        """From `dump`."""
        done, seconds, note = json.loads(text)
        return cls(datetime.fromisoformat(done), timedelta(seconds=seconds), note)


class Parts:
    """The parts of one period, in a transaction that has locked the progress of the roll-ups."""

    def __init__(self, connection: Connection, start: datetime, length: timedelta) -> None:
        self._connection = connection
        self._start, self._length = start, length
        self._end, hours = start + length, length // HOUR
        self._params = {"hours": hours, "parts": -hours, "start": start, "end": self._end}
        self._mark: _Mark | None = None

    async def are_begun(self) -> bool:
        """Whether the period is being counted in parts."""
        found = await self._one(_FIND)
        self._mark = None if found is None else _Mark.load(found)
        return self._mark is not None

    @property
    def note(self) -> int | None:
        """The note that was given to `begin`; None if none was, or if nothing is begun."""
        return None if self._mark is None else self._mark.note

    async def begin(self, note: int | None = None) -> None:
        """Begin to count in parts. `note`: the id of the note that is to be deleted at the end."""
        mark = _Mark(self._start, self._length / PARTS, note)
        await self._execute(_BEGIN, mark=mark.dump())

    async def clear(self) -> None:
        """Forget what was counted."""
        await self._execute(_CLEAR)
        self._mark = None

    async def go_on(self, least: int) -> bool:
        """Take the next step; whether it was the last one. `least` as in `stats_sql.of_period`."""
        mark = self._mark
        assert mark is not None, "the parts are begun"
        if mark.done < self._end:
            await self._execute(_MOVE, mark=(await self._counted(mark)).dump())
            return False
        await self._execute(_BY_KEY)
        if await self._one(_JOIN, most=JOINED, least=least):
            return False
        await self.clear()
        return True

    async def _counted(self, mark: _Mark) -> _Mark:
        """Count the next part, or halve it if that takes too long."""
        until = min(mark.done + mark.length, self._end)
        part = {"hours": self._params["parts"], "start": mark.done, "end": until, "least": 1}
        try:
            async with self._connection.transaction():
                await self._execute(_BY_TIME)
                # Not prepared, so that it is planned for this part.
                await self._connection.execute(_of_part(), {**names(), **part}, prepare=False)
        except psycopg.errors.QueryCanceled:
            if mark.length <= SHORTEST:
                raise
            return replace(mark, length=mark.length / 2)
        return replace(mark, done=until)

    async def _execute(self, statement: str, **params: object) -> None:
        await self._connection.execute(statement.encode(), {**self._params, **params})

    # Any: of every type.
    async def _one(self, statement: str, **params: object) -> Any:
        cursor = await self._connection.execute(statement.encode(), {**self._params, **params})
        row = await cursor.fetchone()
        return None if row is None else row[0]
