"""Expiring, purging and deleting rows of agent sessions, in batches.

Every batch is a transaction of its own and locks rows with SKIP LOCKED, so any number of replicas
may do this at once, no caller waits for long, and breaking off at any point leaves consistent rows.
Time is the database's.

Purge against late writers. A purge deletes the session's row; its branches and turns stay for now.

- An append (or rewind, undo, undelete) that has the row's lock first: the purge skips the session.
  If the append revived it, it has no purge time any more, and the next pass does not find it.
- A purge that has the lock first: the append waits, then its UPDATE finds no row, so it inserts
  nothing and is answered with AGENT_SESSION_NOT_FOUND. A turn is inserted only together with an
  update of the row (see `appends`), so no late turn gets into a branch without a session.

What the purge leaves. The foreign key sets the branches' `session_id` to null. A turn of such an
ownerless branch is still read by other sessions if one of their branches continues it: those read
the turns up to the `parent_turn` of that child. So `delete_unreachable_turns` keeps the turns up to
the highest `parent_turn` of the branch's children, deletes those above, and deletes the branch when
it has neither turns nor children. A branch is created after its parent, so branches are visited
from the newest id down, many in a statement. A statement does not see that it deletes a child and
its parent; so the parents of the branches that it deleted are visited again.

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
    """A batch: its turns; whether none is left; the parents of branches that were deleted."""

    turns: int
    finished: bool
    parents: list[int]


#: `due_at` is a lower bound (see `tables`): it finds candidates; the exact time counts. A candidate
#: that is not to be expired yet gets its exact time, and so no later batch meets it again.
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
#: `kept`: the turns that children continue; null without children. `above`: the turns that go, up
#: to a count; `turn`: those of them that this batch deletes, up to a size. If nothing is left for
#: another batch, the branches without children have lost all their turns, and go too.
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
    """Delete what nobody reaches of these branches, and of the parents that only they kept."""
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
    """Repeat the statement until it finds less than a batch; return the sum of its counts."""
    count = 0
    while True:
        async with database.connection(BATCH_TIMEOUT) as connection:
            found = await one(connection, statement, {**params, "size": size}) or 0
        count += found
        if found < size:
            return count
