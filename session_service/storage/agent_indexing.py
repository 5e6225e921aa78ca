"""Indexing messages by their words, apart from the append: in the order of insertion, in batches.

A number of the sequence may be given out before one that is committed earlier. So a batch goes only
up to a number that was given out before every transaction that is still open began.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg

from session_service.storage.connections import PATIENT
from session_service.storage.database import Connection, Statement, one

if TYPE_CHECKING:
    from session_service.storage.database import Database

#: The part of a message that is indexed, in characters: of whatever text, its index entry stays
#: below PostgreSQL's limit of 1 MiB. An odd one that does not is indexed by less.
TEXT_LIMIT = 100_000
#: A batch is so many turns, and so many bytes: far from the time limit of a statement.
BATCH = 500
BATCH_BYTES = 8 * 1024 * 1024
#: How often, and how long apart in s, to look whether all have committed who were about to.
LOOKS = 20
LOOK_SECONDS = 0.05
_STATE_LOCK = """
SELECT indexed_through, language FROM llm_search_state
FOR UPDATE SKIP LOCKED
"""


@dataclass(frozen=True, slots=True)
class State:
    """How far the index is."""

    indexed_through: int
    language: str


_STATE = Statement(_STATE_LOCK, {}, lambda row: State(*row))
#: The last number that was given out, where it is above what is indexed or another language is.
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
_BATCH = """
WITH next AS (
    SELECT *, sum(size_bytes) OVER (ORDER BY turn_id) - size_bytes AS before FROM (
        SELECT * FROM llm_turns
        WHERE turn_id > %(through)s AND turn_id <= %(to)s ORDER BY turn_id LIMIT %(size)s
    ) turn
), batch AS (
    SELECT * FROM next WHERE before < %(bytes)s
), added AS (
    INSERT INTO llm_search (
        branch_id, turn_number, message_index, turn_id, create_time, tenant, role, document
    )
    SELECT t.branch_id, t.turn_number, m.place - 1, t.turn_id, t.create_time, t.tenant, m.role,
           to_tsvector(%(language)s::regconfig, left(m.content, %(characters)s))
    FROM batch t
    CROSS JOIN LATERAL unnest(t.roles, t.contents) WITH ORDINALITY AS m (role, content, place)
    WHERE m.content <> ''
    ON CONFLICT DO NOTHING
)
SELECT count(*), max(turn_id) FROM batch
"""
_ADD = Statement(_BATCH, {}, lambda row: (int(row[0]), row[1]))
_MOVE = Statement(
    "UPDATE llm_search_state SET indexed_through = %(through)s, language = %(language)s,"
    " indexed_at = now() RETURNING 1",
    {},
    lambda row: int(row[0]),
)


async def index(database: Database, language: str) -> int:
    """Index what has been appended and is not yet, and return how many turns that was.

    Nothing where another replica is at it. Changing the language indexes everything anew.
    """
    async with database.connection(PATIENT) as connection:
        to = await one(connection, _LAST, {"language": language})
        if to is None or not await _settled(connection):
            return 0
    count = 0
    while True:
        async with database.transaction(PATIENT) as connection:
            added = await _index_batch(connection, language, to)
        count += added
        if not added:
            return count


async def _settled(connection: Connection) -> bool:
    """Wait a moment until every transaction is over that is open now."""
    until = await one(connection, _NEXT_TRANSACTION, {})
    for _ in range(LOOKS):
        oldest = await one(connection, _OLDEST_OPEN, {})
        if oldest is not None and until is not None and oldest >= until:
            return True
        await asyncio.sleep(LOOK_SECONDS)
    return False


async def _index_batch(connection: Connection, language: str, to: int) -> int:
    state = await one(connection, _STATE, {})
    if state is None:
        return 0
    through = state.indexed_through
    if state.language != language:
        await connection.execute("TRUNCATE llm_search")
        through = 0
    params: dict[str, Any] = {"through": through, "to": to, "language": language}
    count, last = await _add(connection, params)
    moved = last if count else to
    # Another replica may have gone further meanwhile.
    await one(connection, _MOVE, {"through": max(through, moved), "language": language})
    return count


async def _add(connection: Connection, params: dict[str, Any]) -> tuple[int, int]:
    """Add a batch; with less of each text where PostgreSQL finds an entry too large."""
    characters = TEXT_LIMIT
    while True:
        try:
            async with connection.transaction():
                sizes = {"size": BATCH, "bytes": BATCH_BYTES, "characters": characters}
                added = await one(connection, _ADD, params | sizes)
        except psycopg.errors.ProgramLimitExceeded:
            characters //= 4
        else:
            if added is None:
                raise AssertionError("an aggregate gives a row")
            return added
