"""Inserting turns: the turn of an AppendTurn, by one statement; and the many turns of an import.

An append updates the session's row, and inserts the turn with numbers that the update returns:

1. `UPDATE llm_sessions` takes the row's lock. A second append of the session waits here. When the
   first commits, PostgreSQL evaluates the conditions again on the new row (READ COMMITTED), so
   `turn_count = expected` and `state` are checked against the row that will be changed, and not
   against the one that the statement's snapshot saw.
2. The update increments the turn count and the sums, and returns the row. If no condition fails, it
   returns one row; else none, and then nothing is inserted.
3. `INSERT INTO llm_turns` takes branch, number and sums from the returned row. So turns have no
   gaps, are in the order of the lock, and the totals always equal the sums. The unique index on the
   request id rejects a repeated request: the whole statement, the update too, is rolled back.

Lock order. Every writer of a session (append, rewind, undo, fork, end, undelete, import) locks the
session's row first, and never waits for the row of a second session. Expiry and purge lock many
rows, but skip those that are locked. After the session's row only the unique keys can block: that
of the request id, and for a fork that of the new session. So two writers cannot wait for each
other.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import psycopg
import sqlalchemy as sa

from session_service.domain.agent import dump_extras
from session_service.storage.agent import requests
from session_service.storage.agent.tables import (
    llm_sessions,
    llm_turns,
    make_session,
    session_columns,
)
from session_service.storage.database import (
    BATCH_TIMEOUT,
    Connection,
    Database,
    Statement,
    compiled,
    one,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from session_service.domain.agent import AgentSession, Append, ImportedTurn, NewTurn

_BIG = sa.BigInteger()
_ONE: sa.ColumnElement[int] = sa.literal_column("1", type_=_BIG)
#: The columns of a turn that the request gives; the others come from the session's row.
_GIVEN = (
    "tokens",
    "estimated_tokens",
    "size_bytes",
    "request_id",
    "request_hash",
    "roles",
    "contents",
    "token_counts",
    "extras",
    "attachments",
)


@lru_cache(maxsize=8)
def _append(*, revive: bool, expected: bool, with_request_id: bool) -> Statement[AgentSession]:
    """The statement for appends of this form."""
    bumped = (
        sa.update(llm_sessions)
        .where(*_conditions(revive=revive, expected=expected, with_request_id=with_request_id))
        .values(_bump(revive=revive))
        .returning(*session_columns())
        .cte("bumped")
    )
    given = {name: sa.bindparam(f"t_{name}", type_=llm_turns.c[name].type) for name in _GIVEN}
    values: dict[str, sa.ColumnElement[Any]] = {
        **given,
        "tenant": bumped.c.tenant,
        "branch_id": bumped.c.head_branch,
        "turn_number": bumped.c.turn_count,
        "tokens_after": bumped.c.total_tokens,
        "estimated_after": bumped.c.estimated_tokens,
        "bytes_after": bumped.c.total_bytes,
        "create_time": bumped.c.last_query_at,
    }
    source = sa.select(*values.values()).select_from(bumped)
    inserted = sa.insert(llm_turns).from_select(list(values), source).cte("inserted")
    return compiled(lambda: sa.select(*bumped.c).add_cte(inserted), make_session)


def _conditions(
    *, revive: bool, expected: bool, with_request_id: bool
) -> list[sa.ColumnElement[bool]]:
    row = llm_sessions.c
    takes_turns = row.state == sa.literal_column("'ACTIVE'")
    if revive:
        expired = row.state == sa.literal_column("'EXPIRED'")
        takes_turns |= expired & (row.purge_at > sa.func.now())
    conditions = [
        row.tenant == sa.bindparam("tenant"),
        row.session_id == sa.bindparam("session_id"),
        takes_turns,
    ]
    if expected:
        conditions.append(row.turn_count == sa.bindparam("expected", type_=sa.BigInteger))
    if with_request_id:
        # A request that was refused for good is refused again, also if it would succeed now.
        conditions.append(~requests.append_was_refused())
    return conditions


def _bump(*, revive: bool) -> dict[str, Any]:
    """The session's new columns. Any: every type."""
    row = llm_sessions.c
    # The clock, and not now(), which is when the transaction began: an append that waited for the
    # lock would have an earlier time than the append that it waited for.
    now = sa.func.clock_timestamp()
    values: dict[str, Any] = {
        "turn_count": row.turn_count + _ONE,
        "total_tokens": row.total_tokens + sa.bindparam("t_tokens", type_=sa.BigInteger),
        "estimated_tokens": row.estimated_tokens
        + sa.bindparam("t_estimated_tokens", type_=sa.BigInteger),
        "total_bytes": row.total_bytes + sa.bindparam("t_size_bytes", type_=sa.BigInteger),
        "last_query_at": sa.func.greatest(row.last_query_at, now),
    }
    if not revive:
        return values
    # Only a session that was EXPIRED gets other indexed columns: the trigger sets its `seen_at`.
    expired = row.state == sa.literal_column("'EXPIRED'")
    return {
        **values,
        "state": sa.literal_column("'ACTIVE'"),
        "ended_at": sa.null(),
        "purge_at": sa.null(),
        "due_at": sa.case((expired, now + row.idle_timeout), else_=row.due_at),
    }


def text_array(values: Iterable[str]) -> str:
    """A PostgreSQL text[] literal: psycopg's own conversion of lists takes ten times as long.

    Within double quotes only a quote and a backslash need an escape.
    """
    quoted = (value.replace("\\", "\\\\").replace('"', '\\"') for value in values)
    return "{" + ",".join(f'"{value}"' for value in quoted) + "}"


def _turn_parameters(turn: NewTurn) -> dict[str, object]:
    """The columns that a turn itself has, as binds."""
    messages = turn.messages
    counts = ("NULL" if each.tokens is None else str(each.tokens) for each in messages)
    attachments = [part.data for each in messages for part in each.parts]
    return {
        "t_tokens": turn.tokens,
        "t_estimated_tokens": turn.estimated_tokens,
        "t_roles": text_array(each.role for each in messages),
        "t_contents": text_array(each.content for each in messages),
        "t_token_counts": "{" + ",".join(counts) + "}",
        "t_extras": dump_extras(messages),
        "t_attachments": attachments or None,
        "t_size_bytes": turn.size,
    }


async def append(database: Database, wanted: Append) -> AgentSession | None:
    """Append a turn; its number is the returned session's turn count.

    None, and nothing changed, if the session takes no such turn or the request's id was used
    before. The statement does not say which: the caller reads that on its own.
    """
    request = wanted.request
    with_request_id = request.request_id is not None
    statement = _append(
        revive=wanted.revive,
        expected=wanted.expected_turn_count is not None,
        with_request_id=with_request_id,
    )
    params = _turn_parameters(wanted.turn) | {
        "tenant": request.tenant,
        "session_id": wanted.session_id,
        "expected": wanted.expected_turn_count,
        "t_request_id": request.request_id,
        "t_request_hash": request.request_hash if with_request_id else None,
    }
    try:
        return await database.fetch_one(statement, params)
    except psycopg.errors.UniqueViolation:
        return None


_IMPORTED = (
    "tenant",
    "branch_id",
    "turn_number",
    "tokens",
    "estimated_tokens",
    "size_bytes",
    "tokens_after",
    "estimated_after",
    "bytes_after",
    "roles",
    "contents",
    "token_counts",
    "extras",
    "attachments",
)
_time = sa.bindparam("t_create_time", type_=llm_turns.c.create_time.type)
_INSERT_IMPORTED = compiled(
    lambda: sa.insert(llm_turns).values(
        {
            **{name: sa.bindparam(f"t_{name}", type_=llm_turns.c[name].type) for name in _IMPORTED},
            "create_time": sa.func.coalesce(_time, sa.func.now()),
        }
    ),
    tuple,
)
_newest = sa.bindparam("newest", type_=llm_sessions.c.last_query_at.type)
_queried = sa.func.greatest(llm_sessions.c.last_query_at, sa.func.coalesce(_newest, sa.func.now()))
_UPDATE_IMPORTED = compiled(
    lambda: (
        sa.update(llm_sessions)
        .where(
            llm_sessions.c.tenant == sa.bindparam("tenant"),
            llm_sessions.c.session_id == sa.bindparam("session_id"),
        )
        .values(
            turn_count=sa.bindparam("turn_count", type_=_BIG),
            total_tokens=sa.bindparam("tokens", type_=_BIG),
            estimated_tokens=sa.bindparam("estimated", type_=_BIG),
            total_bytes=sa.bindparam("size", type_=_BIG),
            last_query_at=_queried,
            seen_at=_queried,
            idle_from=sa.func.now(),
            due_at=sa.func.now() + llm_sessions.c.idle_timeout,
        )
        .returning(llm_sessions.c.turn_count)
    ),
    lambda row: int(row[0]),
)


@dataclass(slots=True)
class _Sums:
    """The conversation's sums, while imported turns are added."""

    turn_count: int
    tokens: int
    estimated_tokens: int
    size: int

    def add(self, session: AgentSession, imported: ImportedTurn) -> dict[str, object]:
        """Add the turn; the binds of its row."""
        turn = imported.turn
        self.turn_count += 1
        self.tokens += turn.tokens
        self.estimated_tokens += turn.estimated_tokens
        self.size += turn.size
        return _turn_parameters(turn) | {
            "t_tenant": session.tenant,
            "t_branch_id": session.head_branch,
            "t_turn_number": self.turn_count,
            "t_tokens_after": self.tokens,
            "t_estimated_after": self.estimated_tokens,
            "t_bytes_after": self.size,
            "t_create_time": imported.create_time,
        }


async def append_imported(
    connection: Connection, session: AgentSession, turns: Sequence[ImportedTurn]
) -> None:
    """Append turns of a dump, whose numbers follow the session's; its row must be locked."""
    sums = _Sums(
        session.turn_count, session.total_tokens, session.estimated_tokens, session.total_bytes
    )
    rows = [sums.add(session, turn) for turn in turns]
    async with connection.cursor() as cursor:
        await cursor.executemany(
            _INSERT_IMPORTED.sql.encode(), [{**_INSERT_IMPORTED.constants, **row} for row in rows]
        )
    times = [turn.create_time for turn in turns if turn.create_time is not None]
    params = {
        "tenant": session.tenant,
        "session_id": session.session_id,
        "turn_count": sums.turn_count,
        "tokens": sums.tokens,
        "estimated": sums.estimated_tokens,
        "size": sums.size,
        "newest": max(times) if len(times) == len(turns) else None,
    }
    await one(connection, _UPDATE_IMPORTED, params)


async def analyze(database: Database) -> None:
    """Update the planner's statistics after a large import.

    Without them it expects few rows, and sorts on disk instead of reading in an index's order.
    """
    async with database.connection(BATCH_TIMEOUT) as connection:
        await connection.execute("ANALYZE llm_sessions, llm_branches, llm_turns")
