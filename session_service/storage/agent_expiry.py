"""Expiring and purging agent sessions, in batches that hold no lock for long.

Any number of replicas may do it at once: each takes what the others have not locked. Time is the
database's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from session_service.storage.connections import PATIENT
from session_service.storage.database import Database, Statement, one

if TYPE_CHECKING:
    from datetime import timedelta

SESSIONS = 500
TURNS = 1000
BRANCHES = 100
REQUESTS = 1000
#: `due_at` is a lower bound that an append seldom moves: the exact time is looked at as well.
EXPIRE = Statement(
    """
    WITH due AS (
        SELECT tenant, session_id FROM llm_sessions
        WHERE state = 'ACTIVE' AND due_at <= now()
          AND greatest(last_query_at, idle_from) + idle_timeout <= now()
        ORDER BY due_at LIMIT %(size)s FOR UPDATE SKIP LOCKED
    ), expired AS (
        UPDATE llm_sessions s
        SET state = 'EXPIRED', ended_at = now(), purge_at = now() + %(retention)s
        FROM due WHERE s.tenant = due.tenant AND s.session_id = due.session_id
        RETURNING 1
    )
    SELECT count(*) FROM expired
    """,
    {},
    lambda row: int(row[0]),
)
#: The branches stay, without a session: others may share their turns.
PURGE = Statement(
    """
    WITH over AS (
        SELECT tenant, session_id FROM llm_sessions
        WHERE purge_at <= now() ORDER BY purge_at LIMIT %(size)s FOR UPDATE SKIP LOCKED
    ), purged AS (
        DELETE FROM llm_sessions s USING over
        WHERE s.tenant = over.tenant AND s.session_id = over.session_id
        RETURNING 1
    )
    SELECT count(*) FROM purged
    """,
    {},
    lambda row: int(row[0]),
)
#: A branch is made after its parent: from the newest on, children go before their parents.
_OWNERLESS = Statement(
    """
    SELECT branch_id FROM llm_branches
    WHERE session_id IS NULL AND branch_id < %(below)s ORDER BY branch_id DESC LIMIT %(size)s
    """,
    {},
    lambda row: int(row[0]),
)
#: Deletes turns that no other branch continues from.
_TRIM = Statement(
    """
    WITH branch AS (
        SELECT b.branch_id, coalesce(
            (SELECT max(c.parent_turn) FROM llm_branches c WHERE c.parent_id = b.branch_id), 0
        ) AS kept
        FROM llm_branches b WHERE b.branch_id = %(branch_id)s AND b.session_id IS NULL
        FOR UPDATE OF b SKIP LOCKED
    ), turn AS (
        SELECT t.branch_id, t.turn_number FROM llm_turns t JOIN branch USING (branch_id)
        WHERE t.turn_number > branch.kept LIMIT %(size)s
    ), found AS (
        DELETE FROM llm_search f USING turn
        WHERE f.branch_id = turn.branch_id AND f.turn_number = turn.turn_number
    ), trimmed AS (
        DELETE FROM llm_turns t USING turn
        WHERE t.branch_id = turn.branch_id AND t.turn_number = turn.turn_number
        RETURNING 1
    )
    SELECT count(*) FROM trimmed
    """,
    {},
    lambda row: int(row[0]),
)
_DROP = Statement(
    """
    DELETE FROM llm_branches b
    WHERE b.branch_id = %(branch_id)s AND b.session_id IS NULL
      AND NOT EXISTS (SELECT 1 FROM llm_branches c WHERE c.parent_id = b.branch_id)
      AND NOT EXISTS (SELECT 1 FROM llm_turns t WHERE t.branch_id = b.branch_id)
    RETURNING 1
    """,
    {},
    lambda row: int(row[0]),
)
_FORGET = Statement(
    """
    WITH old AS (
        SELECT tenant, method, request_id FROM llm_requests
        WHERE create_time < now() - interval '24 hours'
        ORDER BY create_time LIMIT %(size)s FOR UPDATE SKIP LOCKED
    ), forgotten AS (
        DELETE FROM llm_requests r USING old
        WHERE r.tenant = old.tenant AND r.method = old.method AND r.request_id = old.request_id
        RETURNING 1
    )
    SELECT count(*) FROM forgotten
    """,
    {},
    lambda row: int(row[0]),
)


async def expire(database: Database, retention: timedelta) -> int:
    """Expire the sessions that have been idle for too long; how many that were."""
    return await _batches(database, EXPIRE, SESSIONS, {"retention": retention})


async def purge(database: Database) -> int:
    """Delete the sessions whose retention is over; how many that were."""
    return await _batches(database, PURGE, SESSIONS, {})


async def forget(database: Database) -> int:
    """Delete records of requests that are older than is promised; how many that were."""
    return await _batches(database, _FORGET, REQUESTS, {})


async def trim(database: Database) -> int:
    """Delete the turns that no session reaches any more; how many that were."""
    count, below = 0, 2**63 - 1
    while True:
        params = {"below": below, "size": BRANCHES}
        branches = await database.fetch_all(_OWNERLESS, params)
        for branch_id in branches:
            count += await _batches(database, _TRIM, TURNS, {"branch_id": branch_id})
            await database.fetch_one(_DROP, {"branch_id": branch_id})
        if len(branches) < BRANCHES:
            return count
        below = branches[-1]


async def _batches(
    database: Database, statement: Statement[int], size: int, params: dict[str, object]
) -> int:
    """Repeat a statement, each time a transaction of its own, until it finds less than a batch."""
    count = 0
    while True:
        async with database.connection(PATIENT) as connection:
            found = await one(connection, statement, {**params, "size": size}) or 0
        count += found
        if found < size:
            return count
