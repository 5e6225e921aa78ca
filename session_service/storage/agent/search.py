"""Full-text search over messages: the index job and the query.

The append does not index: it would make every append wait for the parsing of its text. A job
(`index`) adds new turns to llm_search in batches, and every reply says how far the index is behind.

A frequent word matches more messages than can be ranked while a caller waits. So only the newest
RANKED matches are ranked, in the order in which their turns were appended or imported. How they are
found at a bounded cost is in `search_query`.

How the index job finds new turns. Turns get `turn_id` from a sequence, and the job indexes in the
order of turn_id, up to the sequence's last value L. But a number can be taken before another one
and committed after it: if the job indexed past a number that is not committed yet, that turn would
never be indexed. So the job reads L first, then the next transaction id X, and waits until every
transaction with an id below X has ended. An append has its transaction id (from the lock on the
session's row) before it takes a number, so each number up to L belongs to a transaction below X,
and is committed or rolled back by then. If one stays open for too long, the job gives up
and the next run tries again. A row lock (llm_search_state, SKIP LOCKED) lets one replica index at a
time; the row and the batch are committed together.

A trim deletes turns of branches that no session has, with their entries. It does not see entries
that are not committed yet: those of turns that it deletes would stay, and be found for ever. So the
job locks the branches of a batch before it reads their turns, and a trim passes over locked ones.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg

from session_service.storage.agent.search_query import (
    SearchQuery,
    search_parameters,
    search_statement,
)
from session_service.storage.database import BATCH_TIMEOUT, Connection, Database, Statement, one

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

#: The most matches that are ranked.
RANKED = 1000
#: How long a search looks for matches. A phrase of words that are frequent, but seldom stand
#: together, takes longer: the index has no positions, so each message with the words is read.
BUDGET = timedelta(seconds=1)
#: The most turns that are counted as not indexed yet.
COUNTED = 1000
#: The characters of a message that are indexed. PostgreSQL limits an entry to 1 MiB. If the entry
#: of these characters is larger, fewer of them are indexed.
TEXT_LIMIT = 100_000
#: The most turns, and bytes of turns, in a batch: far from the time limit of a statement.
BATCH = 500
BATCH_BYTES = 8 * 1024 * 1024
#: The batches of a run of `fill_roles`: 5,000 messages.
ROLE_BATCHES = 10
#: How many times, and at which interval in s, to check whether older transactions have ended.
CHECKS = 20
CHECK_INTERVAL = 0.05


@dataclass(frozen=True, slots=True)
class Hit:
    """A message that matches."""

    session_id: str
    agent_role: str
    turn_number: int
    branch_id: int
    message_index: int
    role: str
    highlight: str
    rank: float
    create_time: datetime


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The hits among the turns from `since` to `through`, and how far the index is behind.

    `unindexed`: the tenant's turns that are not indexed, COUNTED at most. `lag`: how long the
    oldest of them has waited. `older_left_out`: more messages match than were ranked, or the time
    for the search was over before all were found.
    """

    hits: list[Hit]
    through: int
    since: int
    unindexed: int
    lag: timedelta
    older_left_out: bool


#: How far the index is; how many of the tenant's turns are not indexed, and since when; the query.
_PROGRESS = """
SELECT state.indexed_through, pending.count,
       CASE WHEN pending.count > 0
            THEN now() - greatest(pending.oldest, state.indexed_at) ELSE interval '0' END,
       websearch_to_tsquery(%(language)s::regconfig, %(query)s)::text
FROM llm_search_state state
CROSS JOIN LATERAL (
    SELECT count(*), min(create_time) AS oldest FROM (
        SELECT create_time FROM llm_turns
        WHERE turn_id > state.indexed_through AND tenant = %(tenant)s
        ORDER BY turn_id LIMIT %(counted)s
    ) turn
) pending
"""


async def search(
    database: Database,
    language: str,
    query: SearchQuery,
    ranked: int = RANKED,
    budget: timedelta = BUDGET,
) -> SearchResult:
    """The messages that match, best first. `language`: the index's text search configuration.

    `budget`: how long to look for matches. What was found by then is ranked.
    """
    async with database.connection() as connection:
        cursor = await connection.execute(
            _PROGRESS.encode(),
            {
                "tenant": query.tenant,
                "counted": COUNTED,
                "language": language,
                "query": query.query,
            },
        )
        state: Sequence[Any] | None = await cursor.fetchone()
        if state is None:
            raise AssertionError("the migration inserted the row")
        # A token comes from outside: turns after the last indexed one would be windows without end.
        through = state[0] if query.through is None else min(query.through, state[0])
        tsquery = state[3]
        params = search_parameters(query, tsquery, through, language, ranked, budget)
        cursor = await connection.execute(search_statement(query, tsquery).encode(), params)
        rows = await cursor.fetchall()
    cut, since, *_ = rows[0]
    hits = [Hit(*row[2:11]) for row in rows if row[2] is not None]
    return SearchResult(
        hits,
        through,
        (since or 0) if cut else query.since,
        state[1],
        state[2],
        older_left_out=cut or query.since > 0,
    )


@dataclass(frozen=True, slots=True)
class _IndexState:
    """The last turn_id that is indexed, and the text search configuration of the index."""

    indexed_through: int
    language: str


_LOCK_STATE = Statement(
    """
SELECT indexed_through, language FROM llm_search_state
FOR UPDATE SKIP LOCKED
""",
    {},
    lambda row: _IndexState(*row),
)
#: The sequence's last value; no row if all is indexed in this language.
_LAST = Statement(
    """
    SELECT last FROM llm_search_state, LATERAL (
        SELECT CASE WHEN is_called THEN last_value ELSE 0 END AS last FROM llm_turns_turn_id_seq
    ) given
    WHERE last > indexed_through OR language <> %(language)s
    """,
    {},
    lambda row: int(row[0]),
)
_NEXT_TRANSACTION = Statement(
    "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint", {}, lambda row: int(row[0])
)
_OLDEST_OPEN = Statement(
    "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint", {}, lambda row: int(row[0])
)
#: The role of the sessions of branch `b.branch_id`; empty if there are none. Those that own the
#: branch, or one that continues it directly or not: a fork has the role of its parent.
_ROLE = """
coalesce((
    WITH RECURSIVE heir (branch_id) AS (
        SELECT b.branch_id
        UNION ALL
        SELECT c.branch_id FROM heir JOIN llm_branches c ON c.parent_id = heir.branch_id
    )
    SELECT s.agent_role FROM heir
    JOIN llm_branches o ON o.branch_id = heir.branch_id
    JOIN llm_sessions s ON s.tenant = o.tenant AND s.session_id = o.session_id
    LIMIT 1
), '')
"""
#: The branches of the next batch, locked, and its last turn_id. In a statement of its own: the next
#: one sees what a trim deleted before the locks were had, and no trim takes a locked branch.
_LOCK_BATCH = Statement(
    """
    WITH next AS (
        SELECT turn_id, branch_id,
            sum(size_bytes) OVER (ORDER BY turn_id) - size_bytes AS before
        FROM (
            SELECT turn_id, branch_id, size_bytes FROM llm_turns
            WHERE turn_id > %(through)s AND turn_id <= %(to)s ORDER BY turn_id LIMIT %(size)s
        ) turn
    ), batch AS MATERIALIZED (
        SELECT turn_id, branch_id FROM next WHERE before < %(bytes)s
    ), locked AS MATERIALIZED (
        SELECT FROM llm_branches WHERE branch_id IN (SELECT branch_id FROM batch)
        ORDER BY branch_id FOR KEY SHARE
    )
    SELECT max(turn_id), (SELECT count(*) FROM locked) FROM batch
    """,
    {},
    lambda row: row[0],
)
_ADD_BATCH = f"""
WITH RECURSIVE batch AS (
    SELECT * FROM llm_turns WHERE turn_id > %(through)s AND turn_id <= %(to)s
), branch AS MATERIALIZED (
    SELECT b.branch_id, {_ROLE} AS agent_role FROM (SELECT DISTINCT branch_id FROM batch) b
), added AS (
    INSERT INTO llm_search (
        branch_id, turn_number, message_index, turn_id, create_time, tenant, role, document,
        agent_role
    )
    SELECT t.branch_id, t.turn_number, m.place - 1, t.turn_id, t.create_time, t.tenant, m.role,
           to_tsvector(%(language)s::regconfig, left(m.content, %(characters)s)), b.agent_role
    FROM batch t
    JOIN branch b ON b.branch_id = t.branch_id
    CROSS JOIN LATERAL unnest(t.roles, t.contents) WITH ORDINALITY AS m (role, content, place)
    WHERE m.content <> ''
    ON CONFLICT DO NOTHING
)
SELECT count(*) FROM batch
"""
_FILL_ROLES = Statement(
    f"""
    WITH chosen AS (
        SELECT branch_id, turn_number, message_index, turn_id FROM llm_search
        WHERE agent_role IS NULL AND turn_id <= %(below)s
        ORDER BY turn_id DESC LIMIT %(size)s FOR UPDATE SKIP LOCKED
    ), branch AS MATERIALIZED (
        SELECT b.branch_id, {_ROLE} AS agent_role FROM (SELECT DISTINCT branch_id FROM chosen) b
    ), filled AS (
        UPDATE llm_search f SET agent_role = branch.agent_role
        FROM chosen JOIN branch ON branch.branch_id = chosen.branch_id
        WHERE f.branch_id = chosen.branch_id AND f.turn_number = chosen.turn_number
          AND f.message_index = chosen.message_index
        RETURNING f.turn_id
    )
    SELECT count(*), min(turn_id) FROM filled
    """,
    {},
    lambda row: (int(row[0]), row[1]),
)
_ADD = Statement(_ADD_BATCH, {}, lambda row: int(row[0]))
_MOVE_STATE = Statement(
    "UPDATE llm_search_state SET indexed_through = %(through)s, language = %(language)s,"
    " indexed_at = now() RETURNING 1",
    {},
    lambda row: int(row[0]),
)


async def index(database: Database, language: str) -> int:
    """Index new turns; return how many.

    0 if another replica does it at this moment, or if an older transaction stays open. If the index
    is in another language, it is emptied and filled again.
    """
    async with database.connection(BATCH_TIMEOUT) as connection:
        to = await one(connection, _LAST, {"language": language})
        if to is None or not await _older_transactions_ended(connection):
            return 0
    count = 0
    while True:
        async with database.transaction(BATCH_TIMEOUT) as connection:
            added = await _index_batch(connection, language, to)
        count += added
        if not added:
            return count


async def fill_roles(database: Database, batches: int = ROLE_BATCHES) -> int:
    """Fill in the agent's role of messages that a version before revision 0014 indexed, the newest
    first; return how many. Such messages are found by any role, and the role is then looked up.
    """
    count, below = 0, 2**63 - 1
    for _ in range(batches):
        async with database.connection(BATCH_TIMEOUT) as connection:
            filled = await one(connection, _FILL_ROLES, {"below": below, "size": BATCH})
        if filled is None or not filled[0]:
            break
        count += filled[0]
        below = filled[1]
    return count


async def _older_transactions_ended(connection: Connection) -> bool:
    """Wait until every transaction that is open now has ended; False if one stays open."""
    until = await one(connection, _NEXT_TRANSACTION, {})
    for _ in range(CHECKS):
        oldest = await one(connection, _OLDEST_OPEN, {})
        if oldest is not None and until is not None and oldest >= until:
            return True
        await asyncio.sleep(CHECK_INTERVAL)
    return False


async def _index_batch(connection: Connection, language: str, to: int) -> int:
    """Index the next turns up to turn_id `to`, in the caller's transaction; return how many."""
    state = await one(connection, _LOCK_STATE, {})
    if state is None:
        return 0
    through = state.indexed_through
    if state.language != language:
        await connection.execute("TRUNCATE llm_search")
        through = 0
    sizes = {"through": through, "to": to, "size": BATCH, "bytes": BATCH_BYTES}
    last = await one(connection, _LOCK_BATCH, sizes)
    count = 0
    if last is not None:
        params = {"through": through, "to": last, "language": language}
        count = await _add_batch(connection, params)
    moved = to if last is None else last
    # Another replica, with a later `to`, may have indexed further since `to` was read.
    await one(connection, _MOVE_STATE, {"through": max(through, moved), "language": language})
    return count


async def _add_batch(connection: Connection, params: dict[str, Any]) -> int:
    """Add a batch to the index; return the number of turns.

    If PostgreSQL finds an entry too large, the batch is repeated with less of each text. The inner
    transaction is a savepoint, so that the locks of the batch stay.
    """
    characters = TEXT_LIMIT
    while True:
        try:
            async with connection.transaction():
                added = await one(connection, _ADD, {**params, "characters": characters})
        except psycopg.errors.ProgramLimitExceeded:
            characters //= 4
        else:
            if added is None:
                raise AssertionError("an aggregate returns a row")
            return added
