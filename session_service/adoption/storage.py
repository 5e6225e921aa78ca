"""Inserts the sessions of staged rows in batches, and reads the rows of the report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from session_service.domain.session import PREFIX

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from datetime import datetime, timedelta

    from session_service.storage.database import Connection

#: The most rows of a batch. One statement inserts the sessions of a batch.
BATCH = 500
#: Rows of the report that are fetched at once.
_PAGE = 1000


@dataclass(frozen=True, slots=True)
class Batch:
    """Staged rows that are not decided yet, by their places, in the order of the places."""

    places: list[int]
    machines: list[Machine]
    """The machines that these rows own."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A staged row's machine."""

    place: int
    app: str
    container_id: str


@dataclass(frozen=True, slots=True)
class Observation:
    """The state of a row's machine at the provider. `reason` is set if it is unknown."""

    place: int
    becomes: str | None = None
    seen: str | None = None
    app: str = ""
    region: str = ""
    cordoned: bool = False
    started: datetime | None = None
    reason: str | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Values:
    """The values that all sessions of an import have in common."""

    tenant: str
    slot: str
    policy: str
    lost: str
    """The conditions of a session whose container is lost, as its row stores them."""
    source: str
    idle_timeout: timedelta
    deepen_after: timedelta
    grace_period: timedelta


@dataclass(frozen=True, slots=True)
class ReportRow:
    """A row of the report."""

    place: int
    old_id: str
    project_id: str | None
    user_id: str | None
    word: str
    result: str
    reason: str | None
    detail: str
    session_id: str | None


#: A superseded row is imported only together with the newest row of its key.
_SKIP_SUPERSEDED = """
UPDATE adoption a SET result = 'SKIPPED', reason = 'NEWEST_SKIPPED',
    detail = 'row ' || n.old_id || ' is the newest of this key and was skipped'
FROM adoption n
WHERE a.result IS NULL AND a.part = 'SUPERSEDED' AND n.place = a.newest AND n.result = 'SKIPPED'
"""
_NEXT = """
SELECT place, CASE WHEN owns_machine AND result IS NULL THEN machine END, app FROM adoption
WHERE part = ANY(%(parts)s) AND result IS NULL AND place > %(after)s ORDER BY place LIMIT %(size)s
"""
_RECORD = """
UPDATE adoption a SET becomes = s.becomes, seen = s.seen, app = coalesce(nullif(s.app, ''), a.app),
    region = coalesce(nullif(s.region, ''), a.region), cordoned = s.cordoned, started = s.started,
    reason = s.reason, detail = s.detail, result = CASE WHEN s.reason IS NOT NULL THEN 'SKIPPED' END
FROM unnest(%s::bigint[], %s::text[], %s::text[], %s::text[], %s::text[], %s::boolean[],
    %s::timestamptz[], %s::text[], %s::text[])
    AS s (place, becomes, seen, app, region, cordoned, started, reason, detail)
WHERE a.place = s.place
"""
#: The result of an imported row.
_RESULT = "CASE a.part WHEN 'LIVE' THEN a.becomes ELSE a.part END"

_ADOPT = f"""
WITH batch AS (
    SELECT *, least(coalesce(created, active, updated), now()) AS began,
        least(coalesce(active, updated, created), now()) AS visited,
        part <> 'LIVE' AS over
    FROM adoption WHERE place = ANY(%(places)s) AND result IS NULL
), session AS (
    INSERT INTO sessions (
        session_id, tenant, project_id, user_id, slot, state, generation, epoch, pause_depth,
        conditions, spec, fingerprint, policy, create_time, start_time, last_active_time,
        pause_time, end_time, purge_time, due_at, end_reason, event_sequence
    )
    SELECT session_id, %(tenant)s, project_id, user_id, %(slot)s,
        CASE WHEN over THEN 'ENDED' WHEN becomes = 'ACTIVE' THEN 'ACTIVE' ELSE 'PAUSED' END, 1, 1,
        CASE WHEN over THEN CASE WHEN meaning = 'STOPPED' THEN 'STOPPED' ELSE 'SUSPENDED' END
             WHEN becomes = 'ACTIVE' THEN NULL
             WHEN becomes IN ('EMPTY', 'LOST') THEN 'CHECKPOINT' ELSE becomes END,
        CASE WHEN becomes = 'LOST' THEN %(lost)s::jsonb ELSE '[]'::jsonb END,
        spec::jsonb, fingerprint, %(policy)s::jsonb,
        coalesce(began, now()), started, coalesce(visited, now()),
        CASE WHEN NOT over AND becomes <> 'ACTIVE' THEN now() END,
        CASE part WHEN 'ENDED' THEN coalesce(least(updated, now()), visited, now())
                  WHEN 'SUPERSEDED' THEN now() END,
        CASE WHEN over AND owns_machine THEN now() + %(grace_period)s WHEN over THEN now() END,
        now() + CASE WHEN over THEN %(grace_period)s
            WHEN becomes = 'ACTIVE' THEN %(idle_timeout)s / 2 ELSE %(deepen_after)s END,
        CASE part WHEN 'ENDED' THEN 'REQUESTED' WHEN 'SUPERSEDED' THEN 'SUPERSEDED' END, 1
    FROM batch
    ON CONFLICT DO NOTHING
    RETURNING session_id, state, project_id, create_time, end_time, end_reason
), ended AS (
    -- The end time of a superseded session is unknown, so it has no lifetime.
    INSERT INTO session_ends (session_id, tenant, project_id, end_time, lifetime, reason)
    SELECT session_id, %(tenant)s, project_id, end_time,
        CASE WHEN end_reason <> 'SUPERSEDED' THEN end_time - create_time END, end_reason
    FROM session WHERE state = 'ENDED'
    ON CONFLICT DO NOTHING
), event AS (
    INSERT INTO session_events (session_id, sequence, type, state, generation)
    SELECT session_id, 1, state, state, 1 FROM session
), container AS (
    -- A session that has not ended gets a container's row even if it has no container: the row of a
    -- destroyed one, so that the next start creates the next generation.
    INSERT INTO containers (
        session_id, generation, name, app, container_id, state, region, start_time, cordoned,
        create_time, destroy_time
    )
    SELECT session_id, 1, '{PREFIX}' || coalesce(machine, session_id::text), app, machine,
        CASE WHEN becomes IN ('EMPTY', 'LOST') THEN 'DESTROYED' ELSE coalesce(seen, 'UNKNOWN') END,
        region, CASE WHEN machine IS NOT NULL THEN coalesce(started, began, now()) END, cordoned,
        coalesce(began, now()), CASE WHEN becomes IN ('EMPTY', 'LOST') THEN now() END
    FROM batch JOIN session USING (session_id)
    WHERE owns_machine OR NOT over
), decision AS (
    INSERT INTO decisions (
        decision_id, tenant, session_id, method, rule, explanation, inputs, finish_time, project_id
    )
    SELECT a.decision_id, %(tenant)s, a.session_id, 'ImportPreviewSessions',
        'ADOPTED_' || {_RESULT}, 'adopted from row ' || a.old_id || ' of ' || %(source)s,
        jsonb_strip_nulls(jsonb_build_object('source', %(source)s::text, 'row', a.old_id,
            'status', a.word, 'container_id', a.machine)),
        now(), a.project_id
    FROM batch a JOIN session USING (session_id)
)
UPDATE adoption a
SET result = CASE WHEN s.session_id IS NULL THEN 'SKIPPED' ELSE {_RESULT} END,
    reason = CASE WHEN s.session_id IS NULL THEN 'LIVE_SESSION_EXISTS' END,
    detail = CASE WHEN s.session_id IS NULL THEN 'a session was started at the key meanwhile'
        ELSE a.detail END
FROM batch b LEFT JOIN session s USING (session_id)
WHERE a.place = b.place
"""
_WOULD_ADOPT = f"""
UPDATE adoption a SET result = {_RESULT} WHERE place = ANY(%(places)s) AND result IS NULL
"""
#: The detail of a superseded row in the report.
_EXPLAIN = """
UPDATE adoption a SET detail = 'row ' || n.old_id || ' is the newest of this key; ' ||
    CASE WHEN a.owns_machine
              THEN 'machine ' || a.machine || ' is destroyed when the grace period is over'
         WHEN a.machine IS NULL THEN 'it names no machine'
         ELSE 'machine ' || a.machine || ' is left alone' END
FROM adoption n WHERE n.place = a.newest AND a.result = 'SUPERSEDED'
"""


async def next_batch(connection: Connection, parts: Sequence[str], after: int) -> Batch:
    """The next staged rows of these parts that are not decided yet."""
    params = {"parts": list(parts), "after": after, "size": BATCH}
    cursor = await connection.execute(_NEXT, params)
    rows = await cursor.fetchall()
    own = [Machine(place, app, machine) for place, machine, app in rows if machine is not None]
    return Batch([row[0] for row in rows], own)


async def record(connection: Connection, observations: Sequence[Observation]) -> None:
    """Store the observations in the staging table."""
    columns = [
        [observation.place for observation in observations],
        [observation.becomes for observation in observations],
        [observation.seen for observation in observations],
        [observation.app for observation in observations],
        [observation.region for observation in observations],
        [observation.cordoned for observation in observations],
        [observation.started for observation in observations],
        [observation.reason for observation in observations],
        [observation.detail for observation in observations],
    ]
    await connection.execute(_RECORD, columns)


async def adopt(
    connection: Connection, places: Sequence[int], values: Values, *, writes: bool
) -> None:
    """Insert a batch's sessions, containers and decisions, in one statement.

    A row whose key was taken in the meantime is skipped. Without `writes` only the results are set.
    """
    if not writes:
        await connection.execute(_WOULD_ADOPT, {"places": list(places)})
        return
    params: dict[str, object] = {
        "places": list(places),
        "tenant": values.tenant,
        "slot": values.slot,
        "policy": values.policy,
        "lost": values.lost,
        "source": values.source,
        "idle_timeout": values.idle_timeout,
        "deepen_after": values.deepen_after,
        "grace_period": values.grace_period,
    }
    await connection.execute(_ADOPT, params)


async def skip_superseded(connection: Connection) -> None:
    """Skip the superseded rows of a key whose newest row was skipped: a later import may import the
    newest row, and only then are the others superseded.
    """
    await connection.execute(_SKIP_SUPERSEDED)


async def explain(connection: Connection) -> None:
    """Set the detail of each superseded row: the newest row of its key, and whether the machine of
    the superseded row will be destroyed.
    """
    await connection.execute(_EXPLAIN)


async def finish(connection: Connection) -> None:
    """Update the planner's statistics: the tables may have grown by orders of magnitude."""
    await connection.execute("ANALYZE sessions, containers, decisions")


async def counts(connection: Connection) -> list[tuple[str, str | None, int]]:
    """The number of rows by result and reason."""
    query = "SELECT result, reason, count(*) FROM adoption GROUP BY 1, 2 ORDER BY 1, 2"
    cursor = await connection.execute(query)
    return [(str(row[0]), row[1], int(row[2])) for row in await cursor.fetchall()]


async def report_rows(connection: Connection) -> AsyncIterator[ReportRow]:
    """The skipped and superseded rows in order, fetched in pages."""
    query = """
        SELECT place, old_id, project_id, user_id, word, result, reason, detail, session_id::text
        FROM adoption WHERE result IN ('SKIPPED', 'SUPERSEDED') AND place > %s
        ORDER BY place LIMIT %s
        """
    after = -1
    while True:
        cursor = await connection.execute(query, [after, _PAGE])
        rows = await cursor.fetchall()
        for row in rows:
            yield ReportRow(*row)
        if len(rows) < _PAGE:
            return
        after = rows[-1][0]
