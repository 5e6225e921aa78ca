"""Rows of agent sessions and turns into values, and the columns that they are made from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from session_service.domain.agent import AgentSession, AgentState, Turn, load_messages
from session_service.storage.agent_tables import llm_sessions, llm_turns

if TYPE_CHECKING:
    from collections.abc import Sequence

#: The columns of AgentSession, in its order, but for the last, which may be large.
_SESSION = (
    "tenant",
    "session_id",
    "agent_role",
    "startup_tokens",
    "state",
    "labels",
    "head_branch",
    "turn_count",
    "total_tokens",
    "estimated_tokens",
    "total_bytes",
    "idle_timeout",
    "created_at",
    "last_query_at",
    "idle_from",
    "ended_at",
    "purge_at",
    "parent_session_id",
    "parent_turn",
)
_TURN = (
    "branch_id",
    "turn_number",
    "tokens",
    "estimated_tokens",
    "tokens_after",
    "create_time",
    "roles",
    "contents",
    "token_counts",
    "extras",
    "attachments",
)
#: How many columns a session's row has.
SESSION_WIDTH = len(_SESSION) + 1


def session_columns(
    source: sa.FromClause = llm_sessions, *, context: bool = False
) -> list[sa.ColumnElement[Any]]:
    """A session's columns; `context` reads its startup context too. Any: every type."""
    last: sa.ColumnElement[Any] = (
        source.c.startup_context if context else sa.null().label("startup_context")
    )
    return [*(source.c[name] for name in _SESSION), last]


def turn_columns(source: sa.FromClause = llm_turns) -> list[sa.ColumnElement[Any]]:
    """A turn's columns. Any: every type."""
    return [source.c[name] for name in _TURN]


def no_session() -> list[sa.ColumnElement[Any]]:
    """Nulls in place of a session's columns, for a row that has none."""
    named = [sa.cast(sa.null(), llm_sessions.c[name].type).label(name) for name in _SESSION]
    return [*named, sa.cast(sa.null(), sa.Text).label("startup_context")]


def no_turn() -> list[sa.ColumnElement[Any]]:
    """Nulls in place of a turn's columns, for a row that has none."""
    return [sa.cast(sa.null(), llm_turns.c[name].type).label(name) for name in _TURN]


def make_session(row: Sequence[Any]) -> AgentSession:
    """A session from its row."""
    values = list(row)
    values[4] = AgentState(values[4])
    return AgentSession(*values)


def make_turn(row: Sequence[Any]) -> Turn:
    """A turn from its row."""
    values = [*row[:6], load_messages(*row[6:])]
    return Turn(*values)
