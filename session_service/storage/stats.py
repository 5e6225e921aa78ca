"""Counting what sessions did in a span, from the rows of decisions and ends.

Reuses, which are most, are counted from the index `decisions_project` alone, day by day. All other
decisions of the span are read once. Of all projects together the rows are found by their time, and
the cost is that of the span's rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from session_service.domain.figures import STARTS, Day, Latency, Started, Tries, made
from session_service.domain.session import AttemptResult, Outcome, Rung
from session_service.storage.connections import PATIENT
from session_service.storage.database import Statement

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from session_service.domain.figures import Span
    from session_service.storage.database import Connection, Database

T = TypeVar("T")


@dataclass(slots=True)
class Counted:
    """What the rows say of a span."""

    whole: Day
    days: dict[datetime, Day] = field(default_factory=dict)
    joins: int = 0
    replays: int = 0
    refusals: dict[str, int] = field(default_factory=dict)
    rungs: dict[Rung, Tries] = field(default_factory=dict)
    ends: dict[str, int] = field(default_factory=dict)
    lived: int = 0
    """Ends of sessions that stood."""
    lifetime: timedelta = timedelta(0)
    """Of those, together."""

    def day(self, start: datetime) -> Day:
        """That day's, a new one where it had nothing yet."""
        return self.days.setdefault(start, Day(start))


#: Nothing of a span is changed while it is counted, and plans are made for its very values.
_ONE_LOOK = (
    "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY",
    "SET LOCAL plan_cache_mode = force_custom_plan",
)
_SPAN = "create_time >= %(start)s AND create_time < %(end)s"
#: By whether the span is one project's.
_WHOSE = {
    True: "tenant = %(tenant)s AND project_id = %(project_id)s",
    False: "tenant = %(tenant)s",
}
_PERCENTILES = "percentile_disc(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (ORDER BY took)"


def _reuses(whose: str) -> str:
    """By day. A count a day, since grouping the rows by their days costs thrice as much."""
    return f"""
    SELECT day, (
        SELECT count(*) FROM decisions
        WHERE {whose} AND NOT joined AND outcome = 'REUSED'
          AND create_time >= greatest(day, %(start)s)
          AND create_time < least(day + interval '24 hours', %(end)s)
    )
    FROM generate_series(
        date_trunc('day', %(start)s::timestamptz, 'UTC'), %(end)s, interval '24 hours'
    ) AS day
    """


def _read(where: str) -> str:
    return f"""
        SELECT date_trunc('day', create_time, 'UTC') AS day, outcome, joined, attempts,
            finish_time - create_time AS took, error ->> 'reason' AS reason,
            method = ANY(%(starts)s) AS start
        FROM decisions WHERE {where} AND {_SPAN}
    """


def _others(*, of_project: bool) -> str:
    """All but reuses. Of a project in three parts, each of which is a range of its index."""
    whose = _WHOSE[of_project]
    parts = [f"{whose} AND (joined OR outcome IS DISTINCT FROM 'REUSED')"]
    if of_project:
        parts = [
            f"{whose} AND NOT joined AND outcome = ANY(%(others)s)",
            f"{whose} AND NOT joined AND outcome IS NULL",
            f"{whose} AND joined",
        ]
    return f"""
    WITH seen AS MATERIALIZED ({" UNION ALL ".join(_read(part) for part in parts)})
    SELECT 'OUTCOME', day, outcome, NULL, count(*), {_PERCENTILES}
    FROM seen WHERE start AND NOT joined AND reason IS NULL AND outcome IS NOT NULL
    GROUP BY GROUPING SETS ((outcome), (outcome, day))
    UNION ALL
    SELECT 'JOIN', NULL, NULL, NULL, count(*), NULL
    FROM seen WHERE start AND joined AND reason IS NULL
    UNION ALL
    SELECT 'REFUSAL', NULL, reason, NULL, count(*), NULL
    FROM seen WHERE start AND reason IS NOT NULL GROUP BY reason
    UNION ALL
    SELECT 'RUNG', day, tried ->> 0, tried ->> 1, count(*), NULL
    FROM seen, jsonb_array_elements(attempts) AS tried WHERE NOT joined
    GROUP BY day, tried ->> 0, tried ->> 1
    """


def _replays(whose: str) -> str:
    return f"""
    SELECT coalesce(sum(replay_count), 0)::bigint FROM decisions
    WHERE {whose} AND replay_count > 0 AND method = ANY(%(starts)s) AND {_SPAN}
    """


def _ends(whose: str) -> str:
    return f"""
    SELECT reason, count(*), count(lifetime), coalesce(sum(lifetime), interval '0')
    FROM session_ends WHERE {whose} AND end_time >= %(start)s AND end_time < %(end)s
    GROUP BY reason
    """


@dataclass(frozen=True, slots=True)
class _Statements:
    """Those of one project, or those of all. Any: rows of every shape."""

    reuses: Statement[tuple[Any, ...]]
    others: Statement[tuple[Any, ...]]
    replays: Statement[tuple[Any, ...]]
    ends: Statement[tuple[Any, ...]]


def _statements(*, of_project: bool) -> _Statements:
    whose = _WHOSE[of_project]
    return _Statements(
        *(
            Statement(sql, {}, tuple)
            for sql in (
                _reuses(whose),
                _others(of_project=of_project),
                _replays(whose),
                _ends(whose),
            )
        )
    )


_STATEMENTS = {of_project: _statements(of_project=of_project) for of_project in (True, False)}


async def count(database: Database, span: Span) -> Counted:
    """Count all rows of the span, as of one moment. Raises StorageUnavailable."""
    statements = _STATEMENTS[span.project_id is not None]
    params: dict[str, object] = {
        "tenant": span.tenant,
        "project_id": span.project_id,
        "start": span.start,
        "end": span.end,
        "starts": list(STARTS),
        "others": [str(outcome) for outcome in Outcome if outcome is not Outcome.REUSED],
    }
    counted = Counted(Day(span.start))
    async with database.transaction(PATIENT) as connection:
        for setting in _ONE_LOOK:
            await connection.execute(setting.encode())
        for day, number in await _all(connection, statements.reuses, params):
            _add_reuses(counted, day, number)
        for row in await _all(connection, statements.others, params):
            _add(counted, *row)
        for (number,) in await _all(connection, statements.replays, params):
            counted.replays = number
        for reason, number, lived, lifetime in await _all(connection, statements.ends, params):
            counted.ends[reason] = number
            counted.lived += lived
            counted.lifetime += lifetime
    return counted


async def _all(
    connection: Connection, statement: Statement[T], params: Mapping[str, object]
) -> list[T]:
    cursor = await connection.execute(statement.sql, params)
    return [statement.make(row) for row in await cursor.fetchall()]


def _add_reuses(counted: Counted, day: datetime, number: int) -> None:
    if not number:
        return
    before = counted.whole.outcomes.get(Outcome.REUSED, Started(0))
    counted.whole.outcomes[Outcome.REUSED] = Started(before.count + number)
    counted.day(day).outcomes[Outcome.REUSED] = Started(number)


def _add(
    counted: Counted,
    kind: str,
    day: datetime | None,
    word: str,
    result: str,
    number: int,
    took: list[timedelta] | None,
) -> None:
    """Take one row of `_others` in."""
    match kind:
        case "OUTCOME":
            place = counted.whole if day is None else counted.day(day)
            place.outcomes[Outcome(word)] = Started(number, Latency(*took) if took else None)
        case "RUNG" if day is not None:
            rung, went = Rung(word), AttemptResult(result)
            counted.rungs.setdefault(rung, Tries()).add(went, number)
            if made(rung, went):
                counted.whole.creations += number
                counted.day(day).creations += number
        case "JOIN":
            counted.joins = number
        case "REFUSAL":
            counted.refusals[word] = number
        case other:
            raise AssertionError(f"no kind of row: {other}")
