"""Rows to adopt, staged in a table of the connection's own and judged there, all at once.

A temporary table, so that ranking and joining are PostgreSQL's work and memory stays bounded; it
goes with its connection, and nothing of it is ever in the database that others see.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from psycopg import sql

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from session_service.storage.database import Connection

#: Only one import writes at a time; spells "adopt".
LOCK = 0x61646F7074

#: `part` is LIVE for the newest row of a key, SUPERSEDED for the others, ENDED for what was over
#: before. `stand` is what a live one becomes: ACTIVE, SUSPENDED, STOPPED, EMPTY (it has no
#: container) or LOST. `holds` says that its machine is its own, and nobody else's. `result` is NULL
#: while it is not decided.
_CREATE = """
CREATE TEMP TABLE adoption (
    place bigint NOT NULL, old_id text NOT NULL, session_id uuid, decision_id uuid NOT NULL,
    project_id text, user_id text, word text NOT NULL, meaning text,
    machine text, app text NOT NULL, region text NOT NULL, spec text NOT NULL,
    fingerprint text NOT NULL, created timestamptz, updated timestamptz, active timestamptz,
    result text, reason text, detail text NOT NULL,
    part text, newest bigint, holds boolean NOT NULL DEFAULT false,
    stand text, seen text, cordoned boolean NOT NULL DEFAULT false, started timestamptz
)
"""
COLUMNS = (
    *("place", "old_id", "session_id", "decision_id", "project_id", "user_id", "word", "meaning"),
    *("machine", "app", "region", "spec", "fingerprint", "created", "updated", "active"),
    *("result", "reason", "detail"),
)
_TYPES = (
    *("int8", "text", "uuid", "uuid", "text", "text", "text", "text"),
    *("text", "text", "text", "text", "text", "timestamptz", "timestamptz", "timestamptz"),
    *("text", "text", "text"),
)

#: In order: each looks at what those before it left undecided.
_JUDGEMENTS = (
    # An id that comes twice cannot be told apart.
    """
    UPDATE adoption a SET result = 'SKIPPED', reason = 'ID_REPEATED',
        detail = 'an earlier row has the same id'
    FROM (SELECT place, row_number() OVER (PARTITION BY session_id ORDER BY place) AS nth
          FROM adoption WHERE session_id IS NOT NULL) r
    WHERE r.place = a.place AND r.nth > 1
    """,
    # The newest row of a key is its session. A row that cannot be taken, or whose word nobody
    # explained, counts as well: it may be the one that the user was last in.
    """
    UPDATE adoption a SET part = CASE r.nth WHEN 1 THEN 'LIVE' ELSE 'SUPERSEDED' END,
        newest = r.newest
    FROM (SELECT place, row_number() OVER key AS nth, first_value(place) OVER key AS newest
          FROM adoption
          WHERE project_id IS NOT NULL AND user_id IS NOT NULL
            AND reason IS DISTINCT FROM 'ID_REPEATED'
            AND (meaning IS NULL OR meaning NOT IN ('ENDED', 'LEFT_OUT'))
          WINDOW key AS (
            PARTITION BY project_id, user_id
            ORDER BY (reason IS NOT NULL AND coalesce(active, updated, created) IS NULL) DESC,
                coalesce(active, updated, created) DESC NULLS LAST, created DESC NULLS LAST,
                length(old_id) DESC, old_id COLLATE "C" DESC)) r
    WHERE r.place = a.place
    """,
    "UPDATE adoption SET part = 'ENDED' WHERE meaning = 'ENDED' AND result IS NULL",
    # What an earlier run imported is left as it is.
    """
    UPDATE adoption a SET result = 'THERE_ALREADY', reason = NULL, detail = ''
    FROM sessions s
    WHERE s.session_id = a.session_id AND s.tenant = %(tenant)s
      AND s.project_id = a.project_id AND s.user_id = a.user_id
      AND a.reason IS DISTINCT FROM 'ID_REPEATED'
    """,
    # Also where the session's row was deleted since, at the end of its retention: its decisions
    # outlive it.
    """
    UPDATE adoption a SET result = 'THERE_ALREADY', reason = NULL, detail = ''
    WHERE a.result IS DISTINCT FROM 'THERE_ALREADY' AND a.reason IS DISTINCT FROM 'ID_REPEATED'
      AND EXISTS (SELECT FROM decisions d WHERE d.session_id = a.session_id)
      AND NOT EXISTS (SELECT FROM sessions s WHERE s.session_id = a.session_id)
    """,
    """
    UPDATE adoption a SET result = 'SKIPPED', reason = 'ID_TAKEN',
        detail = 'a row of this id was imported for another project or user: give --source NAME'
    FROM sessions s WHERE s.session_id = a.session_id AND a.result IS NULL
    """,
    """
    UPDATE adoption a SET result = 'SKIPPED', reason = 'LIVE_SESSION_EXISTS',
        detail = 'session ' || s.session_id || ' stands at the key'
    FROM sessions s
    WHERE a.result IS NULL AND a.part = 'LIVE' AND s.tenant = %(tenant)s
      AND s.project_id = a.project_id AND s.user_id = a.user_id AND s.slot = %(slot)s
      AND s.state IN ('STARTING', 'ACTIVE', 'PAUSING', 'PAUSED')
    """,
    # Of rows that name one machine, at most one has it: a live one before one that is superseded,
    # whose machine is to be destroyed. Whatever is not imported but may be live counts as live.
    """
    UPDATE adoption a SET holds = true
    FROM (SELECT place, row_number() OVER (
              PARTITION BY machine
              ORDER BY (part IS NOT DISTINCT FROM 'SUPERSEDED'), (result IS NOT NULL),
                  coalesce(active, updated, created) DESC NULLS LAST, place) AS nth
          FROM adoption WHERE machine IS NOT NULL AND part IS DISTINCT FROM 'ENDED') r
    WHERE r.place = a.place AND r.nth = 1 AND a.result IS NULL
      AND a.part IN ('LIVE', CASE WHEN %(keep_machines)s THEN 'LIVE' ELSE 'SUPERSEDED' END)
      AND NOT EXISTS (SELECT FROM containers c WHERE c.container_id = a.machine)
    """,
    """
    UPDATE adoption a SET result = 'SKIPPED', reason = 'CONTAINER_KNOWN',
        detail = 'machine ' || a.machine || ' belongs to session ' || c.session_id
    FROM containers c
    WHERE c.container_id = a.machine AND a.result IS NULL AND a.part = 'LIVE' AND NOT a.holds
    """,
    """
    UPDATE adoption SET result = 'SKIPPED', reason = 'CONTAINER_SHARED',
        detail = 'another row names machine ' || machine || ' too'
    WHERE result IS NULL AND part = 'LIVE' AND machine IS NOT NULL AND NOT holds
    """,
    # What a live one becomes where nobody asks the provider.
    """
    UPDATE adoption SET stand = CASE WHEN machine IS NULL THEN 'EMPTY'
        WHEN meaning = 'RUNNING' THEN 'ACTIVE' ELSE meaning END
    WHERE part = 'LIVE' AND result IS NULL
    """,
)


async def begin(connection: Connection, *, lock: bool) -> bool:
    """Make the connection's staging table; False where `lock` is wanted and another import runs."""
    await connection.execute("SET statement_timeout = 0")
    await connection.execute("SET timezone = 'UTC'")
    await connection.execute("SET work_mem = '64MB'")
    if lock:
        cursor = await connection.execute("SELECT pg_try_advisory_lock(%s)", [LOCK])
        row = await cursor.fetchone()
        if row is None or not row[0]:
            return False
    await connection.execute(_CREATE)
    return True


async def stage(connection: Connection, rows: Iterable[Sequence[Any]]) -> None:
    """Copy rows in, their values in the order of COLUMNS. Any: values of every column's type."""
    names = sql.SQL(", ").join(map(sql.Identifier, COLUMNS))
    statement = sql.SQL("COPY adoption ({}) FROM STDIN (FORMAT BINARY)").format(names)
    async with connection.cursor() as cursor, cursor.copy(statement) as copy:
        copy.set_types(_TYPES)
        for row in rows:
            await copy.write_row(row)


async def judge(
    connection: Connection, *, tenant: str, slot: str, keep_machines: bool, writes: bool
) -> None:
    """Decide what each row becomes, as far as the database knows.

    Without `writes` the connection can change nothing but its own temporary tables from here on.
    """
    await connection.execute("CREATE UNIQUE INDEX ON adoption (place)")
    await connection.execute("ANALYZE adoption")
    if not writes:
        await connection.execute("SET default_transaction_read_only = on")
    params = {"tenant": tenant, "slot": slot, "keep_machines": keep_machines}
    for statement in _JUDGEMENTS:
        await connection.execute(statement, params)
