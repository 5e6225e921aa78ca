"""Reading a conversation's turns, a page at a time: each page in one round trip."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from session_service.storage.agent_lineage import lineage, the_session, within
from session_service.storage.agent_rows import (
    SESSION_WIDTH,
    make_session,
    make_turn,
    no_session,
    no_turn,
    session_columns,
    turn_columns,
)
from session_service.storage.agent_tables import llm_branches, llm_turns
from session_service.storage.database import Database, Statement, compiled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from session_service.domain.agent import AgentSession, Turn

_BIG = sa.BigInteger()
_ZERO: sa.ColumnElement[int] = sa.literal_column("0", type_=_BIG)
_ONE: sa.ColumnElement[int] = sa.literal_column("1", type_=_BIG)


@dataclass(frozen=True, slots=True)
class Position:
    """Where to read on: the branch that is read, its last turn, and the last turn that was given;
    None of them at the first page. `branch_id` alone begins to read a branch that was set aside.
    """

    branch_id: int | None = None
    high: int | None = None
    last: int | None = None


@dataclass(frozen=True, slots=True)
class Turns:
    """Turns of a session, oldest first, out of those of `branch_id` that end at turn `high`."""

    session: AgentSession
    branch_id: int | None
    high: int
    turns: list[Turn]


@dataclass(frozen=True, slots=True)
class Head:
    """The first row of an answer: the session, and two numbers that depend on the question."""

    numbers: tuple[int | None, int | None]
    session: AgentSession


def _make(row: Sequence[Any]) -> Head | Turn:
    """Two numbers, a session's columns, a turn's columns: the first row has a session."""
    if row[2] is not None:
        return Head((row[0], row[1]), make_session(row[2 : 2 + SESSION_WIDTH]))
    return make_turn(row[2 + SESSION_WIDTH :])


def big(name: str) -> sa.ColumnElement[int]:
    """A bind of a large number."""
    return sa.bindparam(name, type_=_BIG)


def answer(
    session: sa.FromClause,
    columns: Sequence[sa.ColumnElement[Any]],
    numbers: tuple[sa.ColumnElement[Any], sa.ColumnElement[Any]],
    turns: sa.Select[Any],
) -> Statement[Head | Turn]:
    """The session's row, then those of its turns. No row at all where there is no session."""
    first = sa.select(
        numbers[0].label("a"), numbers[1].label("b"), *columns, *no_turn()
    ).select_from(session)
    return compiled(first.union_all(turns), _make)


def turns_of(segment: sa.FromClause) -> sa.Select[Any]:
    """The second half of an `answer`: rows of turns."""
    nothing = sa.cast(sa.null(), _BIG)
    return sa.select(
        nothing.label("a"), nothing.label("b"), *no_session(), *turn_columns()
    ).select_from(segment.join(llm_turns, within(segment)))


def split(rows: list[Head | Turn]) -> tuple[Head, list[Turn]] | None:
    """The first row and the turns in order; None where there is no session."""
    head = next((row for row in rows if isinstance(row, Head)), None)
    if head is None:
        return None
    turns = [row for row in rows if not isinstance(row, Head)]
    return head, sorted(turns, key=lambda turn: turn.turn_number)


def one_turn(segment: sa.CTE, number: sa.ColumnElement[int], *columns: str) -> sa.Select[Any]:
    """Columns of the conversation's turn of this number."""
    found = llm_turns.alias()
    return (
        sa.select(*(found.c[name] for name in columns))
        .select_from(segment.join(found, found.c.branch_id == segment.c.branch_id))
        .where(
            found.c.turn_number == number,
            segment.c.low < number,
            number <= segment.c.high,
        )
    )


@lru_cache(maxsize=4)
def _page(*, descending: bool, of_branch: bool) -> Statement[Head | Turn]:
    """Turns after or before one, as many as a page holds, on the session's head or a branch."""
    session = the_session().cte("session")
    start = _branch(session) if of_branch else _head(session)
    segment = lineage(start, start.c.branch_id, start.c.high)
    high = sa.select(start.c.high).scalar_subquery()
    number, size = llm_turns.c.turn_number, big("size")
    if descending:
        before = sa.func.coalesce(big("last"), high + _ONE)
        nearest = before - _ONE
        counted = (number < before) & (number >= before - size)
        begin = one_turn(segment, nearest, "bytes_after").scalar_subquery()
        taken = begin - (llm_turns.c.bytes_after - llm_turns.c.size_bytes)
    else:
        after = sa.func.coalesce(big("last"), _ZERO)
        nearest = after + _ONE
        counted = (number > after) & (number <= after + size)
        begin = one_turn(segment, after, "bytes_after").scalar_subquery()
        taken = llm_turns.c.bytes_after - sa.func.coalesce(begin, _ZERO)
    # The nearest is given whatever its size: a turn always fits into a reply.
    turns = turns_of(segment).where(counted, (taken <= big("max_bytes")) | (number == nearest))
    branch = sa.select(start.c.branch_id).scalar_subquery()
    return answer(session, session_columns(session), (branch, high), turns)


def _head(session: sa.CTE) -> sa.CTE:
    return sa.select(
        session.c.head_branch.label("branch_id"), session.c.turn_count.label("high")
    ).cte("start")


def _branch(session: sa.CTE) -> sa.CTE:
    """A branch of the session's own, up to where it was read before, or as far as it goes."""
    newest = (
        sa.select(sa.func.max(llm_turns.c.turn_number))
        .where(llm_turns.c.branch_id == llm_branches.c.branch_id)
        .scalar_subquery()
    )
    high = sa.func.coalesce(big("high"), newest, llm_branches.c.parent_turn)
    return (
        sa.select(llm_branches.c.branch_id, high.label("high"))
        .join(
            session,
            (llm_branches.c.tenant == session.c.tenant)
            & (llm_branches.c.session_id == session.c.session_id),
        )
        .where(llm_branches.c.branch_id == big("branch_id"))
        .cte("start")
    )


async def page(
    database: Database,
    tenant: str,
    session_id: str,
    position: Position,
    *,
    size: int,
    max_bytes: int,
    descending: bool,
) -> Turns | None:
    """Up to `size` turns and about `max_bytes`; None where there is no session.

    The result's `branch_id` is None where the position's is not one of the session's.
    """
    params = {
        "tenant": tenant,
        "session_id": session_id,
        "branch_id": position.branch_id,
        "high": position.high,
        "last": position.last,
        "size": size,
        "max_bytes": max_bytes,
    }
    statement = _page(descending=descending, of_branch=position.branch_id is not None)
    found = split(await database.fetch_all(statement, params))
    if found is None:
        return None
    head, turns = found
    branch, high = head.numbers
    return Turns(head.session, branch, high or 0, turns)
