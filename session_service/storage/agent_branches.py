"""Branches: where forks and rewinds leave the line of turns. They copy nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from session_service.storage.agent_lineage import lineage
from session_service.storage.agent_reading import one_turn
from session_service.storage.agent_rows import make_session, session_columns
from session_service.storage.agent_tables import llm_branches, llm_sessions
from session_service.storage.database import Connection, compiled, one

if TYPE_CHECKING:
    from session_service.domain.agent import AgentSession

_BIG = sa.BigInteger()


@dataclass(frozen=True, slots=True)
class Place:
    """A turn of a conversation: the branch that holds it, and the sums up to it. Turn 0, before the
    first, is on no branch.
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
class Previous:
    """Where a session stood before the rewind that made its branch."""

    branch_id: int
    turn_count: int


def _bind(name: str) -> sa.BindParameter[Any]:
    return sa.bindparam(name, type_=_BIG)


def _place() -> sa.Select[Any]:
    head = sa.select(_bind("branch_id").label("branch_id"), _bind("high").label("high")).cte("head")
    segment = lineage(head, head.c.branch_id, head.c.high)
    names = ("branch_id", "turn_number", "tokens_after", "estimated_after", "bytes_after")
    return one_turn(segment, _bind("turn_number"), *names)


_PLACE = compiled(_place(), lambda row: Place(*row))
_MAKE = compiled(
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
    .returning(llm_branches.c.branch_id),
    lambda row: int(row[0]),
)
_PREVIOUS = compiled(
    sa.select(llm_branches.c.previous_id, llm_branches.c.previous_turn_count).where(
        llm_branches.c.branch_id == _bind("branch_id"), llm_branches.c.previous_id.is_not(None)
    ),
    lambda row: Previous(*row),
)
#: What a fork takes over from its parent, and what it is given.
_TAKEN = ("tenant", "agent_role", "startup_context", "startup_tokens", "idle_timeout")
_SUMS = ("turn_count", "total_tokens", "estimated_tokens", "total_bytes")


def _fork() -> sa.Select[Any]:
    """A branch and a session of its own, beside a parent that is locked."""
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
            parent_id=_bind("parent_id"),
            parent_turn=_bind("turn_count"),
        )
        .returning(llm_branches.c.branch_id)
        .cte("branch")
    )
    labels = sa.bindparam("labels", type_=llm_sessions.c.labels.type)
    values: dict[str, Any] = {name: source.c[name] for name in _TAKEN}
    values |= {name: _bind(name) for name in _SUMS}
    values |= {
        "session_id": sa.bindparam("new_session_id", type_=sa.Text),
        "labels": sa.func.coalesce(labels, source.c.labels),
        "state": sa.literal_column("'ACTIVE'"),
        "due_at": sa.func.now() + source.c.idle_timeout,
        "head_branch": branch.c.branch_id,
        "parent_session_id": source.c.session_id,
        "parent_turn": _bind("turn_count"),
    }
    made = (
        sa.insert(llm_sessions)
        .from_select(
            list(values), sa.select(*values.values()).select_from(source.join(branch, sa.true()))
        )
        .returning(*session_columns())
        .cte("made")
    )
    return sa.select(*made.c)


_FORK = compiled(_fork(), make_session)


async def place(connection: Connection, branch_id: int, high: int, turn_number: int) -> Place:
    """Where this turn is of the conversation that ends at turn `high` of the branch."""
    if not turn_number:
        return Place(None, 0)
    params = {"branch_id": branch_id, "high": high, "turn_number": turn_number}
    found = await one(connection, _PLACE, params)
    if found is None:
        raise AssertionError(f"turn {turn_number} of branch {branch_id} is missing")
    return found


async def rewound(connection: Connection, session: AgentSession, to: Place) -> int:
    """A new branch of the session that goes on from a turn, and remembers where it stood."""
    params = {
        "tenant": session.tenant,
        "session_id": session.session_id,
        "parent_id": to.branch_id,
        "parent_turn": to.turn_number,
        "previous_id": session.head_branch,
        "previous_turn_count": session.turn_count,
    }
    made = await one(connection, _MAKE, params)
    if made is None:
        raise AssertionError("an INSERT … RETURNING gives a row")
    return made


async def previous(connection: Connection, branch_id: int) -> Previous | None:
    """Where the session stood before the branch was made; None where no rewind made it."""
    return await one(connection, _PREVIOUS, {"branch_id": branch_id})


async def fork(
    connection: Connection,
    parent: AgentSession,
    at: Place,
    new_session_id: str,
    labels: str | None,
) -> AgentSession:
    """A session that shares the parent's turns up to a place. The parent must be locked, so that
    it cannot be purged meanwhile.

    Raises psycopg.errors.UniqueViolation (constraint `llm_sessions_pkey`).
    """
    tokens, estimated, size = at.sums
    params = {
        "tenant": parent.tenant,
        "session_id": parent.session_id,
        "new_session_id": new_session_id,
        "labels": labels,
        "parent_id": at.branch_id,
        "turn_count": at.turn_number,
        "total_tokens": tokens,
        "estimated_tokens": estimated,
        "total_bytes": size,
    }
    made = await one(connection, _FORK, params)
    if made is None:
        raise AssertionError("a locked session is there")
    return made
