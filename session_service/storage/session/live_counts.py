"""The number of live sessions of a tenant: kept exactly, and read in the same time for ten and for
100,000 sessions.

A trigger on `sessions` appends 1 or -1 to `live_session_changes` when a session becomes live or
ceases to be, in the transaction of the change. The number of a tenant is its row in
`live_session_counts` plus its changes. At every moment and in every snapshot that is the number of
its live sessions: `fold` moves changes into the row in one transaction, and nothing else writes
them. No start and no end waits for another one, because none writes a row that another one writes.

A trigger, and not the statements themselves: also replicas of a version that does not know of the
counts, and a correction by hand, are counted.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from session_service.storage.database import BATCH_TIMEOUT, Statement, one, scalar
from session_service.storage.tables import LIVE_STATES

if TYPE_CHECKING:
    from session_service.storage.database import Database

_log = logging.getLogger(__name__)

#: Changes that one transaction folds at most.
BATCH = 5_000
#: Tenants whose number one pass counts again at most.
RECOUNTED = 20

COUNT = Statement[int](
    """
    SELECT coalesce((SELECT live_count FROM live_session_counts WHERE tenant = %(tenant)s), 0)
        + coalesce((SELECT sum(delta) FROM live_session_changes WHERE tenant = %(tenant)s), 0)
    """,
    {},
    scalar(int),
)
_MAKE_ROWS = f"""
    INSERT INTO live_session_counts (tenant)
    SELECT DISTINCT tenant FROM (SELECT tenant FROM live_session_changes LIMIT {BATCH}) AS batch
    ORDER BY tenant ON CONFLICT DO NOTHING
"""
_LOCK_ROWS = f"""
    SELECT tenant FROM live_session_counts WHERE tenant IN (
        SELECT tenant FROM (SELECT tenant FROM live_session_changes LIMIT {BATCH}) AS batch
    ) ORDER BY tenant FOR UPDATE SKIP LOCKED
"""
_FOLD = f"""
    WITH batch AS (
        SELECT tenant, change_id FROM live_session_changes WHERE tenant = ANY(%(tenants)s)
        LIMIT {BATCH}
    ), gone AS (
        DELETE FROM live_session_changes c USING batch
        WHERE c.tenant = batch.tenant AND c.change_id = batch.change_id
        RETURNING c.tenant, c.delta
    ), changed AS (
        UPDATE live_session_counts l SET live_count = l.live_count + s.delta
        FROM (SELECT tenant, sum(delta) AS delta FROM gone GROUP BY tenant) AS s
        WHERE l.tenant = s.tenant
    )
    SELECT count(*) FROM gone
"""
_DUE = f"""
    SELECT tenant FROM live_session_counts WHERE check_time <= now() - interval '1 day'
    ORDER BY check_time LIMIT {RECOUNTED}
"""
_LOCK_ROW = """
    SELECT tenant FROM live_session_counts
    WHERE tenant = %(tenant)s AND check_time <= now() - interval '1 day' FOR UPDATE SKIP LOCKED
"""
# One statement sees one snapshot, in which the row, the changes and the sessions agree.
_RECOUNT = Statement[int](
    f"""
    WITH counted AS MATERIALIZED (
        SELECT (SELECT count(*) FROM sessions
                WHERE tenant = %(tenant)s AND state IN ({LIVE_STATES}))
            - coalesce((SELECT sum(delta) FROM live_session_changes WHERE tenant = %(tenant)s), 0)
            AS number,
            (SELECT live_count FROM live_session_counts WHERE tenant = %(tenant)s) AS before
    )
    UPDATE live_session_counts l SET live_count = counted.number, check_time = now()
    FROM counted WHERE l.tenant = %(tenant)s
    RETURNING counted.number - counted.before
    """,
    {},
    scalar(int),
)


async def fold(database: Database) -> int:
    """Add up to `BATCH` changes to the numbers of their tenants; return how many. A replica that
    folds a tenant's changes locks its row first, and others leave out what is locked. Raises
    StorageUnavailable.
    """
    async with database.transaction(BATCH_TIMEOUT) as connection:
        await connection.execute(_MAKE_ROWS.encode())
        cursor = await connection.execute(_LOCK_ROWS.encode())
        tenants = [row[0] for row in await cursor.fetchall()]
        if not tenants:
            return 0
        cursor = await connection.execute(_FOLD.encode(), {"tenants": tenants})
        row = await cursor.fetchone()
    return 0 if row is None else int(row[0])


async def recount(database: Database) -> dict[str, int]:
    """Count the sessions of some tenants that were not counted for a day, and correct numbers that
    differ, with a line in the log. Returns by tenant by how much a number was too low. Raises
    StorageUnavailable.
    """
    async with database.connection(BATCH_TIMEOUT) as connection:
        cursor = await connection.execute(_DUE.encode())
        due = [row[0] for row in await cursor.fetchall()]
    wrong = {}
    for tenant in due:
        difference = await _recount(database, tenant)
        if difference:
            wrong[tenant] = difference
            _log.error(
                "the number of live sessions of a tenant was off by %d, and was corrected",
                difference,
                extra={"action": "recount", "tenant": tenant, "difference": difference},
            )
    return wrong


async def _recount(database: Database, tenant: str) -> int:
    async with database.transaction(BATCH_TIMEOUT) as connection:
        # A fold that commits between the snapshot and the update would be undone: the lock of the
        # row is taken in a statement before.
        cursor = await connection.execute(_LOCK_ROW.encode(), {"tenant": tenant})
        if await cursor.fetchone() is None:
            return 0
        return await one(connection, _RECOUNT, {"tenant": tenant}) or 0


async def run_pass(database: Database) -> None:
    """Fold all changes, then count some tenants again. Raises StorageUnavailable."""
    while await fold(database) == BATCH:
        pass
    await recount(database)
