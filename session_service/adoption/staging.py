"""The staging table: the older rows are copied into it, and its statements decide about each.

It is a temporary table. PostgreSQL ranks and joins the rows, so that memory stays bounded; other
connections never see it, and it is gone when the connection closes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from psycopg import sql

from session_service.storage.tables import LIVE_STATES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from session_service.storage.database import Connection

#: Key of the advisory lock that lets one import write at a time; "adopt" in ASCII.
LOCK = 0x61646F7074

#: `part` is LIVE for the newest row of a key, SUPERSEDED for its other rows, and ENDED for sessions
#: that had ended. `becomes` is what a LIVE row becomes: ACTIVE, SUSPENDED, STOPPED, EMPTY (it has
#: no container) or LOST. `owns_machine`: the machine belongs to this row and to no other. `result`
#: is NULL until the row is decided.
_CREATE = """
CREATE TEMP TABLE adoption (
    place bigint NOT NULL, old_id text NOT NULL, session_id uuid, decision_id uuid NOT NULL,
    project_id text, user_id text, word text NOT NULL, meaning text,
    machine text, app text NOT NULL, region text NOT NULL, spec text NOT NULL,
    fingerprint text NOT NULL, created timestamptz, updated timestamptz, active timestamptz,
    result text, reason text, detail text NOT NULL,
    part text, newest bigint, owns_machine boolean NOT NULL DEFAULT false,
    becomes text, seen text, cordoned boolean NOT NULL DEFAULT false, started timestamptz
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

#: Run in this order: each statement decides rows that the ones before it left undecided.
_JUDGEMENTS = (
    # Two rows with one id would be one session.
    """
    UPDATE adoption a SET result = 'SKIPPED', reason = 'ID_REPEATED',
        detail = 'an earlier row has the same id'
    FROM (SELECT place, row_number() OVER (PARTITION BY session_id ORDER BY place) AS nth
          FROM adoption WHERE session_id IS NOT NULL) r
    WHERE r.place = a.place AND r.nth > 1
    """,
    # The newest row of a key becomes its session. Rows that cannot be imported, or whose status is
    # unknown, count as well: the user may have been in one of them last.
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
    # A row that an earlier run imported stays as it is.
    """
    UPDATE adoption a SET result = 'THERE_ALREADY', reason = NULL, detail = ''
    FROM sessions s
    WHERE s.session_id = a.session_id AND s.tenant = %(tenant)s
      AND s.project_id = a.project_id AND s.user_id = a.user_id
      AND a.reason IS DISTINCT FROM 'ID_REPEATED'
    """,
    # The same if retention has deleted the session's row since then: its decisions are kept longer.
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
    f"""
    UPDATE adoption a SET result = 'SKIPPED', reason = 'LIVE_SESSION_EXISTS',
        detail = 'session ' || s.session_id || ' has the key'
    FROM sessions s
    WHERE a.result IS NULL AND a.part = 'LIVE' AND s.tenant = %(tenant)s
      AND s.project_id = a.project_id AND s.user_id = a.user_id AND s.slot = %(slot)s
      AND s.state IN ({LIVE_STATES})
    """,
    # Of several rows that name one machine, at most one owns it. A live row comes before a
    # superseded one, because a superseded row's machine will be destroyed. A row that is not
    # imported but may be live counts as live.
    """
    UPDATE adoption a SET owns_machine = true
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
    WHERE c.container_id = a.machine AND a.result IS NULL AND a.part = 'LIVE' AND NOT a.owns_machine
    """,
    """
    UPDATE adoption SET result = 'SKIPPED', reason = 'CONTAINER_SHARED',
        detail = 'another row names machine ' || machine || ' too'
    WHERE result IS NULL AND part = 'LIVE' AND machine IS NOT NULL AND NOT owns_machine
    """,
    # What a live row becomes if the provider is not asked.
    """
    UPDATE adoption SET becomes = CASE WHEN machine IS NULL THEN 'EMPTY'
        WHEN meaning = 'RUNNING' THEN 'ACTIVE' ELSE meaning END
    WHERE part = 'LIVE' AND result IS NULL
    """,
)


async def begin(connection: Connection, *, lock: bool) -> bool:
    """Create the connection's staging table. Returns False if `lock` is set and another import
    holds the lock.
    """
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
    """Copy rows into the staging table, with values in the order of COLUMNS. Any: values of every
    column's type.
    """
    names = sql.SQL(", ").join(map(sql.Identifier, COLUMNS))
    statement = sql.SQL("COPY adoption ({}) FROM STDIN (FORMAT BINARY)").format(names)
    async with connection.cursor() as cursor, cursor.copy(statement) as copy:
        copy.set_types(_TYPES)
        for row in rows:
            await copy.write_row(row)


async def judge(
    connection: Connection, *, tenant: str, slot: str, keep_machines: bool, writes: bool
) -> None:
    """Decide about each row, as far as the database knows.

    Without `writes` the connection can change only its temporary tables from here on.
    """
    await connection.execute("CREATE UNIQUE INDEX ON adoption (place)")
    await connection.execute("ANALYZE adoption")
    if not writes:
        await connection.execute("SET default_transaction_read_only = on")
    params = {"tenant": tenant, "slot": slot, "keep_machines": keep_machines}
    for statement in _JUDGEMENTS:
        await connection.execute(statement, params)
