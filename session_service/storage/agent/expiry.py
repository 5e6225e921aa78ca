"""Expiring, purging and deleting rows of agent sessions, in batches.

Every batch is a transaction of its own and locks rows with SKIP LOCKED, so any number of replicas
may do this at once, no caller waits for long, and breaking off at any point leaves consistent rows.
Time is the database's.

A purge and a late writer. A purge deletes the session's row; its branches and turns stay for now.

- If an append (or rewind, undo, undelete) has the row's lock first, the purge skips the session. An
  append that revives the session clears its purge time, and so the next pass does not find it.
- If a purge has the lock first, the append waits. Then its UPDATE finds no row, so it inserts
  nothing and is answered with AGENT_SESSION_NOT_FOUND. A turn is inserted only together with an
  update of the row (see `appends`), so no late turn gets into a branch without a session.

Branches without a session. When a purge deletes the session's row, the foreign key sets the
`session_id` of its branches to null. Another session still reads turns of such a branch if one of
its own branches is a child of it: the turns up to the `parent_turn` of that child. So
`delete_unreachable_turns` keeps the turns up to the highest `parent_turn` of the branch's children,
deletes those above, and deletes the branch when it has neither turns nor children. A branch is
created after its parent, so branches are visited from the newest id down, many in a statement. A
child that a statement deletes still counts as a child in that statement, so its parent stays; the
parents of deleted branches are therefore visited again.

A fork or a rewind cannot need a turn that is deleted meanwhile. It makes a child at a turn of the
conversation of a session whose row it has locked. That conversation reaches the turn through
children that all stay, because the newest of them belongs to the locked session; so the turn is not
above the highest `parent_turn`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from session_service.storage.database import BATCH_TIMEOUT, Database, Statement, one

if TYPE_CHECKING:
    from datetime import timedelta

#: Rows in one batch.
SESSIONS = 500
TURNS = 5000
BRANCHES = 1000
REQUESTS = 1000
#: The bytes of the turns in one batch: PostgreSQL deletes a large turn in pieces of 2 kB.
TURN_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Trimmed:
    """The result of a batch: the number of deleted turns, whether no turn is left to delete, and
    the parents of the deleted branches.
    """

    turns: int
    finished: bool
    parents: list[int]


#: A session expires at its `exact` time. `due_at` is never later than that (see `tables`), and so
#: it finds all candidates. A candidate that must not expire yet gets its exact time as `due_at`,
#: and is no candidate again before that time.
EXPIRE = Statement(
    """
    WITH due AS (
        SELECT tenant, session_id, last_query_at,
            greatest(last_query_at, idle_from) + idle_timeout AS exact
        FROM llm_sessions
        WHERE state = 'ACTIVE' AND due_at <= now()
        ORDER BY due_at LIMIT %(size)s FOR UPDATE SKIP LOCKED
    ), expired AS (
        UPDATE llm_sessions s
        SET state = 'EXPIRED', ended_at = now(), purge_at = now() + %(retention)s
        FROM due WHERE s.tenant = due.tenant AND s.session_id = due.session_id
          AND due.exact <= now()
        RETURNING 1
    ), moved AS (
        UPDATE llm_sessions s SET due_at = due.exact, seen_at = due.last_query_at
        FROM due WHERE s.tenant = due.tenant AND s.session_id = due.session_id
          AND (due.exact <= now()) IS NOT TRUE
    )
    SELECT (SELECT count(*) FROM due), (SELECT count(*) FROM expired)
    """,
    {},
    lambda row: (int(row[0]), int(row[1])),
)
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
_OWNERLESS_BRANCHES = Statement(
    """
    SELECT branch_id FROM llm_branches
    WHERE session_id IS NULL AND branch_id < %(below)s ORDER BY branch_id DESC LIMIT %(size)s
    """,
    {},
    lambda row: int(row[0]),
)
#: `kept`: the highest turn of a branch after which a child continues; null without children.
#: `above`: turns after it, as many as a batch may delete. `turn`: those of them that this batch
#: deletes, up to a size. If no turn is left for another batch, the branches without children have
#: lost all their turns, and are deleted too.
_TRIM = Statement(
    """
    WITH locked AS (
        SELECT branch_id FROM llm_branches
        WHERE branch_id = ANY(%(branches)s) AND session_id IS NULL
        FOR UPDATE SKIP LOCKED
    ), branch AS MATERIALIZED (
        SELECT locked.branch_id, child.parent_turn AS kept
        FROM locked LEFT JOIN LATERAL (
            SELECT c.parent_turn FROM llm_branches c WHERE c.parent_id = locked.branch_id
            ORDER BY c.parent_turn DESC LIMIT 1
        ) child ON true
    ), above AS MATERIALIZED (
        SELECT t.branch_id, t.turn_number, t.size_bytes
        FROM branch CROSS JOIN LATERAL (
            SELECT t.branch_id, t.turn_number, t.size_bytes FROM llm_turns t
            WHERE t.branch_id = branch.branch_id AND t.turn_number > coalesce(branch.kept, 0)
            ORDER BY t.turn_number DESC LIMIT %(turns)s
        ) t
        LIMIT %(turns)s
    ), turn AS MATERIALIZED (
        SELECT branch_id, turn_number FROM (
            SELECT branch_id, turn_number, size_bytes, sum(size_bytes) OVER (
                ORDER BY branch_id DESC, turn_number DESC
            ) AS through FROM above
        ) summed
        WHERE through - size_bytes < %(bytes)s
    ), progress AS MATERIALIZED (
        SELECT count(*) < %(turns)s AND count(*) = (SELECT count(*) FROM turn) AS finished
        FROM above
    ), found AS (
        DELETE FROM llm_search f USING turn
        WHERE f.branch_id = turn.branch_id AND f.turn_number = turn.turn_number
    ), trimmed AS (
        DELETE FROM llm_turns t USING turn
        WHERE t.branch_id = turn.branch_id AND t.turn_number = turn.turn_number
        RETURNING 1
    ), gone AS (
        DELETE FROM llm_branches b USING branch, progress
        WHERE b.branch_id = branch.branch_id AND branch.kept IS NULL AND progress.finished
        RETURNING b.parent_id
    )
    SELECT (SELECT count(*) FROM trimmed), progress.finished, ARRAY(
        SELECT DISTINCT p.branch_id FROM gone JOIN llm_branches p ON p.branch_id = gone.parent_id
        WHERE p.session_id IS NULL
    )
    FROM progress
    """,
    {},
    lambda row: _Trimmed(int(row[0]), bool(row[1]), list(row[2])),
)
_DELETE_REQUESTS = Statement(
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


async def expire_sessions(database: Database, retention: timedelta) -> int:
    """Expire sessions that have been idle for longer than their time-out; return how many.

    They can be brought back for `retention`; then a purge deletes them.
    """
    expired = 0
    while True:
        async with database.connection(BATCH_TIMEOUT) as connection:
            params = {"size": SESSIONS, "retention": retention}
            met, count = await one(connection, EXPIRE, params) or (0, 0)
        expired += count
        if met < SESSIONS:
            return expired


async def purge_sessions(database: Database) -> int:
    """Delete sessions whose retention is over; return how many."""
    return await _batches(database, PURGE, SESSIONS, {})


async def delete_old_requests(database: Database) -> int:
    """Delete records of requests that are older than 24 hours; return how many."""
    return await _batches(database, _DELETE_REQUESTS, REQUESTS, {})


async def delete_unreachable_turns(
    database: Database, *, branches: int = BRANCHES, turns: int = TURNS, size: int = TURN_BYTES
) -> int:
    """Delete turns, and branches, that no session reaches any more; return how many turns.

    `branches`, `turns` and `size` (bytes) limit a batch.
    """
    count, below = 0, 2**63 - 1
    while True:
        found = await database.fetch_all(_OWNERLESS_BRANCHES, {"below": below, "size": branches})
        count += await _trim(database, found, {"turns": turns, "bytes": size})
        if len(found) < branches:
            return count
        below = found[-1]


async def _trim(database: Database, branches: list[int], limits: dict[str, object]) -> int:
    """Delete the turns of these branches that no session reaches, and then the branches without
    children and turns. Do the same with the parents of deleted branches. Returns the number of
    deleted turns.
    """
    count = 0
    while branches:
        params = {**limits, "branches": branches}
        async with database.connection(BATCH_TIMEOUT) as connection:
            trimmed = await one(connection, _TRIM, params)
        if trimmed is None:
            raise AssertionError("the progress of a batch is one row")
        count += trimmed.turns
        if trimmed.finished:
            branches = trimmed.parents
    return count


async def _batches(
    database: Database, statement: Statement[int], size: int, params: dict[str, object]
) -> int:
    """Repeat the statement until it finds fewer than `size` rows; return the sum of its counts."""
    count = 0
    while True:
        async with database.connection(BATCH_TIMEOUT) as connection:
            found = await one(connection, statement, {**params, "size": size}) or 0
        count += found
        if found < size:
            return count
