"""The SQL that counts decisions, choices and ends: of a range of a span, and of a roll-up's period.

Both give rows of the same form, so that a roll-up is the rows that a span would have counted:

    kind, word, result, number, took, digits

    ROWS      -, -, decisions, ends and choices (of a part of a period only)
    REUSED    -, -, count
    OUTCOME   outcome, -, count, the 50th, 95th and 99th percentile in microseconds
    HISTOGRAM outcome, -, lowest bucket, -, the counts in hexadecimal (`domain.histogram`)
    JOIN      -, -, count
    REFUSAL   reason, -, count
    RUNG      rung, result, count
    REPLAY    -, -, count
    END       reason, -, count, how many had become active and the sum of their lifetimes
    CHOICE    field of `Preferred`, -, count
"""

from __future__ import annotations

from session_service.domain.histogram import DIGITS, GROWTH
from session_service.domain.stats import ALL_PROJECTS

#: By whether the span is of one project.
WHOSE = {
    True: "tenant = %(tenant)s AND project_id = %(project_id)s",
    False: "tenant = %(tenant)s",
}
#: All projects of the tenant, in a form that no index has: a short range is stored in one place,
#: which the BRIN index on time finds, and the planner of PostgreSQL 18 would rather search another
#: index once for each project and outcome.
_UNINDEXED = "tenant || '' = %(tenant)s"
_RANGE = "{0} >= %(start)s AND {0} < %(end)s"
_MICROSECONDS = "(extract(epoch FROM {}) * 1000000)::bigint"
_PERCENTILES = "percentile_disc(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (ORDER BY took)"
_BUCKET = f"ceil(ln(greatest(took, 1)::float8) / ln({GROWTH}::float8))::int"
_LIFETIMES = _MICROSECONDS.format("coalesce(sum(lifetime), interval '0')")
_STARTED = "start AND NOT joined AND reason IS NULL AND outcome IS NOT NULL"
_CHOICE = """CASE WHEN asked THEN 'asked_' ELSE 'auto_' END
    || CASE WHEN choice = 'FRESH' THEN 'new' ELSE 'continue' END"""
_COLUMNS = f"""outcome, joined, attempts, error ->> 'reason' AS reason,
    {_MICROSECONDS.format("finish_time - create_time")} AS took,
    method = ANY(%(starts)s) AS start"""


def _of_decisions(keys: str, outcome_keys: str, percentiles: str = _PERCENTILES) -> str:
    """The rows that are counted from `seen`, decisions without reuses. `outcome_keys` are the sets
    by which outcomes are grouped, in the form of GROUP BY.
    """
    return f"""
    SELECT {keys}, 'OUTCOME' AS kind, outcome AS word, NULL AS result, count(*) AS number,
        {percentiles} AS took, NULL AS digits
    FROM seen WHERE {_STARTED} GROUP BY {outcome_keys}
    UNION ALL
    SELECT {keys}, 'JOIN', NULL, NULL, count(*), NULL, NULL
    FROM seen WHERE start AND joined AND reason IS NULL GROUP BY {keys}
    UNION ALL
    SELECT {keys}, 'REFUSAL', reason, NULL, count(*), NULL, NULL
    FROM seen WHERE start AND reason IS NOT NULL GROUP BY {keys}, reason
    UNION ALL
    SELECT {keys}, 'RUNG', tried ->> 0, tried ->> 1, count(*), NULL, NULL
    FROM seen, jsonb_array_elements(attempts) AS tried WHERE NOT joined
    GROUP BY {keys}, tried ->> 0, tried ->> 1"""


def _histograms(keys: str) -> str:
    """The rows HISTOGRAM. Zeros stand for the buckets between two that have counts."""
    return histogram_rows(
        keys,
        f"""
            SELECT {keys}, outcome, {_BUCKET} AS bucket, 1 AS number
            FROM seen WHERE {_STARTED} AND took IS NOT NULL""",
    )


def histogram_rows(keys: str, buckets: str) -> str:
    """The rows HISTOGRAM from a query of `outcome`, `bucket` and the `number` in it."""
    return f"""
    SELECT {keys}, 'HISTOGRAM', outcome, NULL, min(bucket)::bigint, NULL::bigint[],
        string_agg(
            repeat('0', {DIGITS} * (higher - bucket - 1)) || lpad(to_hex(count), {DIGITS}, '0'), ''
            ORDER BY bucket DESC
        )
    FROM (
        SELECT {keys}, outcome, bucket, sum(number)::bigint AS count, lead(bucket, 1, bucket + 1)
            OVER (PARTITION BY {keys}, outcome ORDER BY bucket) AS higher
        FROM ({buckets}) AS sorted
        GROUP BY {keys}, outcome, bucket
    ) AS counted
    GROUP BY {keys}, outcome"""


def _read(where: str) -> str:
    return f"""
        SELECT date_trunc('day', create_time, 'UTC') AS day, {_COLUMNS}
        FROM decisions WHERE {where} AND {_RANGE.format("create_time")}"""


def of_range(*, of_project: bool, exact: bool) -> str:
    """The rows of the range from `start` to before `end`, each with the day that it is about, or
    NULL. One count of reuses for each day: grouping their rows by day costs three times as much.
    Decisions of one project are read in three parts, each a range of the index.

    `exact`: the outcomes of the whole range, with a NULL day, beside those of each day, and no
    histograms.
    """
    whose = WHOSE[of_project]
    parts = [f"{whose} AND (joined OR outcome IS DISTINCT FROM 'REUSED')"]
    if of_project:
        parts = [
            f"{whose} AND NOT joined AND outcome = ANY(%(others)s)",
            f"{whose} AND NOT joined AND outcome IS NULL",
            f"{whose} AND joined",
        ]
    seen, ends = " UNION ALL ".join(_read(part) for part in parts), whose
    reuses = f"""
    SELECT day, 'REUSED', NULL, NULL, (
        SELECT count(*) FROM decisions
        WHERE {whose} AND NOT joined AND outcome = 'REUSED'
          AND create_time >= greatest(day, %(start)s)
          AND create_time < least(day + interval '24 hours', %(end)s)
    ), NULL, NULL
    FROM generate_series(
        date_trunc('day', %(start)s::timestamptz, 'UTC'), %(end)s, interval '24 hours'
    ) AS day"""
    if not (of_project or exact):
        ends = _UNINDEXED
        reuses = """
    SELECT day, 'REUSED', NULL, NULL, count(*), NULL, NULL
    FROM every WHERE NOT joined AND outcome = 'REUSED' GROUP BY day"""
        seen = "SELECT * FROM every WHERE joined OR outcome IS DISTINCT FROM 'REUSED'"
    every = f"every AS MATERIALIZED ({_read(_UNINDEXED)})," if ends is _UNINDEXED else ""
    outcome_keys = "GROUPING SETS ((outcome), (outcome, day))" if exact else "outcome, day"
    rows = [_of_decisions("day", outcome_keys), *([] if exact else [_histograms("day")])]
    return f"""
    WITH {every} seen AS MATERIALIZED ({seen})
    {" UNION ALL ".join(rows)}
    UNION ALL {reuses}
    UNION ALL
    SELECT NULL, 'REPLAY', NULL, NULL, sum(replay_count)::bigint, NULL, NULL FROM decisions
    WHERE {whose} AND replay_count > 0 AND method = ANY(%(starts)s)
      AND {_RANGE.format("create_time")}
    UNION ALL
    SELECT NULL, 'END', reason, NULL, count(*), ARRAY[count(lifetime), {_LIFETIMES}], NULL
    FROM session_ends WHERE {ends} AND {_RANGE.format("end_time")} GROUP BY reason
    UNION ALL
    SELECT NULL, 'CHOICE', {_CHOICE}, NULL, count(*), NULL, NULL
    FROM choices WHERE {whose} AND {_RANGE.format("create_time")} GROUP BY 3
    """


def _each(columns: str, table: str, where: str) -> str:
    """The rows of a table, once for their project and once for all projects."""
    return f"""
        SELECT tenant, {ALL_PROJECTS!r} AS project, {columns} FROM {table} WHERE {where}
        UNION ALL
        SELECT tenant, project_id, {columns} FROM {table}
        WHERE {where} AND (tenant, project_id) IN (SELECT tenant, project_id FROM busy)"""


def of_period(*, part: bool = False) -> str:
    """An INSERT of the roll-ups of a period of `hours`, from `start` to before `end`: one for each
    tenant, and one for each of its projects with at least `least` decisions or ends. Returns how
    many.

    `part`: with rows ROWS for what `least` is about, and without percentiles, which cannot be added
    to those of other parts.

    It reads all decisions of the period once, in the order in which they are stored.
    """
    keys = "tenant, project"
    times = _RANGE.format("create_time")
    rows = """
        UNION ALL
        SELECT tenant, project_id, 'ROWS', NULL, NULL, rows, NULL, NULL
        FROM busy WHERE project_id IS NOT NULL"""
    return f"""
    WITH period AS MATERIALIZED (
        SELECT tenant, project_id, replay_count, {_COLUMNS} FROM decisions WHERE {times}
    ), over AS MATERIALIZED (
        SELECT tenant, project_id, reason, lifetime FROM session_ends
        WHERE {_RANGE.format("end_time")}
    ), made AS MATERIALIZED (
        SELECT tenant, project_id, {_CHOICE} AS word FROM choices WHERE {times}
    ), busy AS MATERIALIZED (
        SELECT tenant, project_id, count(*) AS rows FROM (
            SELECT tenant, project_id FROM period UNION ALL SELECT tenant, project_id FROM over
            UNION ALL SELECT tenant, project_id FROM made
        ) AS every GROUP BY tenant, project_id HAVING count(*) >= %(least)s
    ), seen AS MATERIALIZED (
        {
        _each(
            "outcome, joined, attempts, reason, took, start",
            "period",
            "(joined OR outcome IS DISTINCT FROM 'REUSED')",
        )
    }
    ), row AS (
        {_of_decisions(keys, f"{keys}, outcome", "NULL::bigint[]" if part else _PERCENTILES)}
        UNION ALL {_histograms(keys)}
        UNION ALL
        SELECT {keys}, 'REUSED', NULL, NULL, count(*), NULL, NULL
        FROM ({_each("1", "period", "NOT joined AND outcome = 'REUSED'")}) AS reuse
        GROUP BY {keys}
        UNION ALL
        SELECT {keys}, 'REPLAY', NULL, NULL, sum(replay_count)::bigint, NULL, NULL
        FROM ({_each("replay_count", "period", "start AND replay_count > 0")}) AS replay
        GROUP BY {keys}
        UNION ALL
        SELECT {keys}, 'END', reason, NULL, count(*), ARRAY[count(lifetime), {_LIFETIMES}], NULL
        FROM ({_each("reason, lifetime", "over", "true")}) AS ending GROUP BY {keys}, reason
        UNION ALL
        SELECT {keys}, 'CHOICE', word, NULL, count(*), NULL, NULL
        FROM ({_each("word", "made", "true")}) AS choice GROUP BY {keys}, word
        {rows if part else ""}
    ), inserted AS (
        INSERT INTO stats_rollups (tenant, project_id, hours, start_time, figures)
        SELECT {keys}, %(hours)s, %(start)s,
            jsonb_agg(jsonb_build_array(kind, word, result, number, took, digits)
                      ORDER BY kind, word, result)
        FROM row GROUP BY {keys}
        RETURNING 1
    )
    SELECT count(*) FROM inserted
    """
