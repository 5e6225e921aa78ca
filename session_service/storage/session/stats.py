"""Statistics in SQL: ends of sessions, and the counts of a time span."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from session_service.domain.histogram import Histogram
from session_service.domain.rollups import HOUR, Counted, Progress, day_of, merged, pieces
from session_service.domain.session import AttemptResult, Outcome, Rung
from session_service.domain.stats import ALL_PROJECTS, STARTS, Latency
from session_service.storage.database import BATCH_TIMEOUT, Statement, trimming
from session_service.storage.session import stats_sql
from session_service.storage.session.retained import NAME, is_counted
from session_service.storage.tables import session_ends

if TYPE_CHECKING:
    from collections.abc import Sequence

    from session_service.domain.stats import Span
    from session_service.storage.database import Connection, Database
from session_service.storage.snapshot import snapshot


def end_insert(ended: sa.CTE) -> sa.CTE:
    """Insert the ends of the sessions of `ended`, a CTE with all columns of a session."""
    row = ended.c
    # A session that never became active has no lifetime.
    lifetime = sa.case((row.start_time.is_not(None), row.end_time - row.create_time))
    values = {
        "session_id": row.session_id,
        "tenant": row.tenant,
        "project_id": row.project_id,
        "end_time": row.end_time,
        "lifetime": lifetime,
        "reason": row.end_reason,
    }
    source = sa.select(*values.values()).select_from(ended)
    insert = postgresql.insert(session_ends).from_select(list(values), source)
    return insert.on_conflict_do_nothing().cte("ended")


def end_removal(revived: sa.CTE) -> sa.CTE:
    """Delete the ends of the sessions of `revived`."""
    return (
        sa.delete(session_ends)
        .where(session_ends.c.session_id == revived.c.session_id)
        .cte("unended")
    )


_TRIM = trimming(
    session_ends.c.session_id,
    lambda: is_counted(session_ends.c.end_time),
)


async def trim(database: Database, before: datetime, most: int) -> int:
    """Delete up to `most` ends from before this time; return how many were deleted."""
    return await database.fetch_one(_TRIM, {"older_than": before, "most": most}, BATCH_TIMEOUT) or 0


# Retention too changes periods when it deletes their rows. Those keep their roll-ups.
_PROGRESS = Statement(
    f"""
    SELECT p.start_time, p.hours_end, p.days_end, c.hours, c.at
    FROM (SELECT) AS one LEFT JOIN stats_progress p ON p.name = '{NAME}'
    LEFT JOIN (SELECT DISTINCT hours, at FROM stats_changes) AS c
        ON p.trim_time IS NULL OR c.at >= p.trim_time
    """,
    {},
    tuple,
)
#: A control character, which no text of JSON has, stands for these zeros while figures are sent.
#: Most digits of a histogram are zeros, and so three quarters of a call of 90 days would be.
_ZEROS = ("000000", "\x01")
# All roll-ups in one JSON value: the driver reads many rows in pieces of a few kilobytes, and asks
# the event loop for each. With roll-ups, what is left are short ranges. Those of all projects are
# to be read by the BRIN index on time (see `stats_sql`): the settings are for the rest of the
# transaction.
_ROLLUPS = Statement(
    f"""
    SELECT (
        SELECT string_agg('[' || hours || ',' || extract(epoch FROM start_time)::bigint || ','
            || replace(figures::text, '{_ZEROS[0]}', '{_ZEROS[1]}') || ']', ',')
        FROM stats_rollups
        WHERE tenant = %(tenant)s AND project_id = %(project)s
          AND (hours = 24 AND start_time = ANY(%(days)s)
              OR hours = 1 AND start_time = ANY(%(hours)s))
    ), set_config('enable_indexscan', %(indexscan)s, true),
        set_config('enable_indexonlyscan', %(indexscan)s, true)
    """,
    {},
    tuple,
)


#: By their words: a look-up takes a tenth of the time of a call of the type.
_OUTCOMES = {str(each): each for each in Outcome}
_RUNGS = {str(each): each for each in Rung}
_RESULTS = {str(each): each for each in AttemptResult}


@lru_cache(maxsize=4)
def _range_statement(*, of_project: bool, exact: bool) -> bytes:
    return stats_sql.of_range(of_project=of_project, exact=exact).encode()


def names() -> dict[str, object]:
    """The parameters of `stats_sql` that are the same for every range and period."""
    others = [str(outcome) for outcome in Outcome if outcome is not Outcome.REUSED]
    return {"starts": list(STARTS), "others": others}


async def count(database: Database, span: Span) -> Counted:
    """Count the span in one snapshot: from roll-ups where there are some, else from the rows.

    What is counted is the same. The percentiles of several pieces are within 1 %, those of a span
    without roll-ups exact. Raises StorageUnavailable.
    """
    async with snapshot(database, BATCH_TIMEOUT) as connection:
        found = pieces(span.start, span.end, await _progress(connection))
        counted, rest = Counted(), found.rest
        if found.days or found.hours:
            missing = await _add_rollups(connection, span, counted, found.days, found.hours)
            rest = merged([*rest, *((hour, hour + HOUR) for hour in missing)])
        exact = rest == [(span.start, span.end)]
        for start, end in rest:
            await _add_range(connection, span, counted, start, end, exact=exact)
    return counted


async def _progress(connection: Connection) -> Progress:
    cursor = await connection.execute(_PROGRESS.sql.encode())
    rows = await cursor.fetchall()
    late = {hours: frozenset(row[4] for row in rows if row[3] == hours) for hours in (1, 24)}
    start, hours_end, days_end, *_ = rows[0]
    return Progress(start, hours_end, days_end, late[1], late[24])


async def _add_rollups(
    connection: Connection,
    span: Span,
    counted: Counted,
    days: list[datetime],
    hours: list[datetime],
) -> list[datetime]:
    """Add the roll-ups of these days and hours; return the hours that are to be counted from rows.

    An hour has a roll-up of a project only if much happened in it. Otherwise what is missing had
    nothing to count.
    """
    project = ALL_PROJECTS if span.project_id is None else span.project_id
    params = {
        "tenant": span.tenant,
        "project": project,
        "days": days,
        "hours": hours,
        "indexscan": "off" if span.project_id is None else "on",
    }
    cursor = await connection.execute(_ROLLUPS.sql.encode(), params)
    found = set()
    rows = await cursor.fetchall()
    for length, seconds, figures in json.loads(
        f"[{rows[0][0] or ''}]".replace(_ZEROS[1], _ZEROS[0])
    ):
        start = datetime.fromtimestamp(seconds, UTC)
        if length == HOUR // HOUR:
            found.add(start)
        day = day_of(start)
        for row in figures:
            _add(counted, day, *row)
    return [] if span.project_id is None else [hour for hour in hours if hour not in found]


async def _add_range(
    connection: Connection,
    span: Span,
    counted: Counted,
    start: datetime,
    end: datetime,
    *,
    exact: bool,
) -> None:
    params = {
        **names(),
        "tenant": span.tenant,
        "project_id": span.project_id,
        "start": start,
        "end": end,
    }
    statement = _range_statement(of_project=span.project_id is not None, exact=exact)
    # A span without roll-ups is planned for itself: its length decides on the index. The ranges
    # beside roll-ups are short, and planning them would take longer than reading them.
    cursor = await connection.execute(statement, params, prepare=not exact)
    for day, *row in await cursor.fetchall():
        _add(counted, day, *row, exact=exact)


# Any: the columns of a row of `stats_sql`.
def _add(
    counted: Counted,
    day: datetime | None,
    kind: str,
    word: Any,
    result: Any,
    number: Any,
    took: Sequence[int] | None,
    digits: Any,
    *,
    exact: bool = False,
) -> None:
    """Add one row of `stats_sql`. If `exact`, the whole span has outcomes of its own, and that of a
    day do not count for it.
    """
    match kind:
        case "REUSED":
            if number:
                for each in counted.sums(day):
                    each.of(Outcome.REUSED).add(number, None)
        case "OUTCOME":
            sums, latency = counted.sums(day), _latency(took)
            for each in sums[:1] if exact else sums:
                each.of(_OUTCOMES[word]).add(number, latency)
        case "HISTOGRAM":
            histogram = Histogram.of(number, digits)
            for each in counted.sums(day):
                each.of(_OUTCOMES[word]).add_histogram(histogram)
        case "JOIN":
            counted.joins += number
        case "REFUSAL":
            counted.refusals[word] = counted.refusals.get(word, 0) + number
        case "RUNG" if day is not None:
            counted.add_attempts(day, _RUNGS[word], _RESULTS[result], number)
        case "REPLAY":
            counted.replays += number or 0
        case "END" if took is not None:
            counted.add_ends(word, number, took[0], timedelta(microseconds=took[1]))
        case "CHOICE":
            counted.choices[word] = counted.choices.get(word, 0) + number
        case other:
            raise AssertionError(f"unknown kind of row: {other}")


def _latency(took: Sequence[int] | None) -> Latency | None:
    return Latency(*(timedelta(microseconds=each) for each in took)) if took else None
