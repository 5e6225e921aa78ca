"""Branches: forks and rewinds. They copy no turn (see `tables` for branch and head)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from session_service.storage.agent.reads import big, lineage, select_turn
from session_service.storage.agent.tables import (
    llm_branches,
    llm_sessions,
    make_session,
    session_columns,
)
from session_service.storage.database import Connection, compiled, one

if TYPE_CHECKING:
    from session_service.domain.agent import AgentSession


@dataclass(frozen=True, slots=True)
class BranchPoint:
    """A turn of a conversation: the branch that holds it, and the sums up to and including it.

    Turn 0, before the first, is in no branch.
    """

    branch_id: int | None
    turn_number: int
    tokens: int = 0
    estimated_tokens: int = 0
    size: int = 0

    @property
    def sums(self) -> tuple[int, int, int]:
        """Tokens, estimated tokens, bytes."""
        return self.tokens, self.estimated_tokens, self.size


@dataclass(frozen=True, slots=True)
class PreviousHead:
    """The session's head at the rewind that made its present branch."""

    branch_id: int
    turn_count: int


def _find_point() -> sa.Select[Any]:
    head = sa.select(big("branch_id").label("branch_id"), big("high").label("high")).cte("head")
    segment = lineage(head, head.c.branch_id, head.c.high)
    names = ("branch_id", "turn_number", "tokens_after", "estimated_after", "bytes_after")
    return select_turn(segment, big("turn_number"), *names)


_FIND_POINT = compiled(_find_point, lambda row: BranchPoint(*row))
_CREATE = compiled(
    lambda: (
        sa.insert(llm_branches)
        .values(
            {
                name: sa.bindparam(name, type_=llm_branches.c[name].type)
                for name in (
                    "tenant",
                    "session_id",
                    "parent_id",
                    "parent_turn",
                    "previous_id",
                    "previous_turn_count",
                )
            }
        )
        .returning(llm_branches.c.branch_id)
    ),
    lambda row: int(row[0]),
)
_PREVIOUS = compiled(
    lambda: sa.select(llm_branches.c.previous_id, llm_branches.c.previous_turn_count).where(
        llm_branches.c.branch_id == big("branch_id"), llm_branches.c.previous_id.is_not(None)
    ),
    lambda row: PreviousHead(*row),
)
#: The columns that a fork copies from its parent session, and those that are given.
_COPIED = ("tenant", "agent_role", "startup_context", "startup_tokens", "idle_timeout")
_GIVEN = ("turn_count", "total_tokens", "estimated_tokens", "total_bytes")


def _fork() -> sa.Select[Any]:
    """Insert a session and its first branch, which continues a branch of the parent session."""
    parent = sa.select(llm_sessions).where(
        llm_sessions.c.tenant == sa.bindparam("tenant"),
        llm_sessions.c.session_id == sa.bindparam("session_id"),
    )
    source = parent.cte("parent")
    branch = (
        sa.insert(llm_branches)
        .values(
            tenant=sa.bindparam("tenant"),
            session_id=sa.bindparam("new_session_id"),
            parent_id=big("parent_id"),
            parent_turn=big("turn_count"),
        )
        .returning(llm_branches.c.branch_id)
        .cte("branch")
    )
    labels = sa.bindparam("labels", type_=llm_sessions.c.labels.type)
    values: dict[str, Any] = {name: source.c[name] for name in _COPIED}
    values |= {name: big(name) for name in _GIVEN}
    values |= {
        "session_id": sa.bindparam("new_session_id", type_=sa.Text),
        "labels": sa.func.coalesce(labels, source.c.labels),
        "state": sa.literal_column("'ACTIVE'"),
        "due_at": sa.func.now() + source.c.idle_timeout,
        "head_branch": branch.c.branch_id,
        "parent_session_id": source.c.session_id,
        "parent_turn": big("turn_count"),
    }
    inserted = (
        sa.insert(llm_sessions)
        .from_select(
            list(values), sa.select(*values.values()).select_from(source.join(branch, sa.true()))
        )
        .returning(*session_columns())
        .cte("made")
    )
    return sa.select(*inserted.c)


_FORK = compiled(_fork, make_session)


async def find_point(
    connection: Connection, branch_id: int, high: int, turn_number: int
) -> BranchPoint:
    """Turn `turn_number` of the conversation that ends at turn `high` of the branch."""
    if not turn_number:
        return BranchPoint(None, 0)
    params = {"branch_id": branch_id, "high": high, "turn_number": turn_number}
    found = await one(connection, _FIND_POINT, params)
    if found is None:
        raise AssertionError(f"turn {turn_number} of branch {branch_id} is missing")
    return found


async def create_for_rewind(
    connection: Connection, session: AgentSession, point: BranchPoint
) -> int:
    """Insert a branch that continues the session after `point`. The row of the branch records the
    present head. Returns the id of the branch.
    """
    params = {
        "tenant": session.tenant,
        "session_id": session.session_id,
        "parent_id": point.branch_id,
        "parent_turn": point.turn_number,
        "previous_id": session.head_branch,
        "previous_turn_count": session.turn_count,
    }
    branch_id = await one(connection, _CREATE, params)
    if branch_id is None:
        raise AssertionError("INSERT … RETURNING returns a row")
    return branch_id


async def previous_head(connection: Connection, branch_id: int) -> PreviousHead | None:
    """The head at the rewind that made this branch; None if no rewind made it."""
    return await one(connection, _PREVIOUS, {"branch_id": branch_id})


async def fork(
    connection: Connection,
    parent: AgentSession,
    point: BranchPoint,
    new_session_id: str,
    labels: str | None,
) -> AgentSession:
    """Create a session that shares the parent's turns up to and including `point`.

    The parent's row must be locked. A purge skips a locked session, so the parent's branches, and
    with them the shared turns, stay until the new branch is there to keep them (see `expiry`).

    Raises psycopg.errors.UniqueViolation (constraint `llm_sessions_pkey`).
    """
    tokens, estimated, size = point.sums
    params = {
        "tenant": parent.tenant,
        "session_id": parent.session_id,
        "new_session_id": new_session_id,
        "labels": labels,
        "parent_id": point.branch_id,
        "turn_count": point.turn_number,
        "total_tokens": tokens,
        "estimated_tokens": estimated,
        "total_bytes": size,
    }
    inserted = await one(connection, _FORK, params)
    if inserted is None:
        raise AssertionError("the parent's row is locked, so it exists")
    return inserted
