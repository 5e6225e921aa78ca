"""Appending a turn: one statement, one commit."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import psycopg
import sqlalchemy as sa

from session_service.domain.agent import dump_extras
from session_service.storage import agent_requests
from session_service.storage.agent_rows import make_session, session_columns
from session_service.storage.agent_tables import llm_sessions, llm_turns
from session_service.storage.database import Database, Statement, compiled

if TYPE_CHECKING:
    from collections.abc import Iterable

    from session_service.domain.agent import AgentSession, Append, NewTurn

#: How far the indexed columns may lag behind the newest turn. Each move of them costs an append
#: its being heap-only: one in this long, of a session.
LAG: sa.ColumnElement[Any] = sa.literal_column("interval '5 minutes'")
_ONE: sa.ColumnElement[int] = sa.literal_column("1", type_=sa.BigInteger)
#: What a turn is given of its own; the rest it takes from the session's row.
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
def _statement(*, revive: bool, expected: bool, known: bool) -> Statement[AgentSession]:
    """The statement for appends of this form.

    The session's row is locked by its update first, so that its writers go one after the other and
    the turn's number, branch and sums are those of the row as it is then. `known`: the request has
    an id, and one whose refusal is recorded changes nothing.
    """
    bumped = (
        sa.update(llm_sessions)
        .where(*_conditions(revive=revive, expected=expected, known=known))
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
    return compiled(sa.select(*bumped.c).add_cte(inserted), make_session)


def _conditions(*, revive: bool, expected: bool, known: bool) -> list[sa.ColumnElement[bool]]:
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
    if known:
        conditions.append(~agent_requests.refused_append())
    return conditions


def _bump(*, revive: bool) -> dict[str, Any]:
    """The session's new columns. Any: every type."""
    row = llm_sessions.c
    # Not the transaction's time: that of a writer who waited for the lock would go backwards.
    now = sa.func.clock_timestamp()
    values: dict[str, Any] = {
        "turn_count": row.turn_count + _ONE,
        "total_tokens": row.total_tokens + sa.bindparam("t_tokens", type_=sa.BigInteger),
        "estimated_tokens": row.estimated_tokens
        + sa.bindparam("t_estimated_tokens", type_=sa.BigInteger),
        "total_bytes": row.total_bytes + sa.bindparam("t_size_bytes", type_=sa.BigInteger),
        "last_query_at": sa.func.greatest(row.last_query_at, now),
        "seen_at": now,
        "due_at": now + row.idle_timeout,
    }
    if revive:
        return {**values, "state": "ACTIVE", "ended_at": sa.null(), "purge_at": sa.null()}
    stale = row.seen_at < now - LAG
    for name in ("seen_at", "due_at"):
        values[name] = sa.case((stale, values[name]), else_=row[name])
    return values


def text_array(values: Iterable[str]) -> str:
    """A text[] as PostgreSQL reads it: psycopg's own way of writing lists takes ten times as long.

    Within quotes all but a quote and a backslash stands for itself.
    """
    quoted = (value.replace("\\", "\\\\").replace('"', '\\"') for value in values)
    return "{" + ",".join(f'"{value}"' for value in quoted) + "}"


def turn_parameters(turn: NewTurn) -> dict[str, object]:
    """A turn's own columns, as binds."""
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
    """Append the turn, whose number is the returned session's turn count.

    None, and nothing is changed, where the session takes no such turn, or where the request's id
    has been used: whoever wants to know which looks.
    """
    request = wanted.request
    known = request.request_id is not None
    statement = _statement(
        revive=wanted.revive, expected=wanted.expected_turn_count is not None, known=known
    )
    params = turn_parameters(wanted.turn) | {
        "tenant": request.tenant,
        "session_id": wanted.session_id,
        "expected": wanted.expected_turn_count,
        "t_request_id": request.request_id,
        "t_request_hash": request.request_hash if known else None,
    }
    try:
        return await database.fetch_one(statement, params)
    except psycopg.errors.UniqueViolation:
        return None
