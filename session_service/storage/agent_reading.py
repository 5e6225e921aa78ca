"""Reading a conversation's turns: pages, and what fits into a budget. Each in one round trip."""

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

    from session_service.domain.agent import AgentSession, Budget, Turn

_BIG = sa.BigInteger()
_ZERO: sa.ColumnElement[int] = sa.literal_column("0", type_=_BIG)
_ONE: sa.ColumnElement[int] = sa.literal_column("1", type_=_BIG)
#: More than any count, for a limit that is none.
_NO_LIMIT = 2**62


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
class Context:
    """The newest turns that fit, oldest first. `size_limited`: more would, but for their size."""

    session: AgentSession
    size_limited: bool
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


def _bind(name: str) -> sa.ColumnElement[int]:
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
def _context(*, by_tokens: bool, estimates: bool) -> Statement[Head | Turn]:
    """The newest turns within a budget, and `first`, the turn before them.

    It is found by a binary search over the sums that each turn carries: what that costs grows with
    the logarithm of the turn count.
    """
    session = the_session().cte("session")
    segment = lineage(session, session.c.head_branch, session.c.turn_count)
    budget = _bind("max_tokens") - _startup(session, estimates=estimates)
    total = session.c.total_tokens + (session.c.estimated_tokens if estimates else _ZERO)
    least = sa.func.greatest(session.c.turn_count - _bind("last_turns"), _ZERO)

    # All after turn `high` fits; the turn that all fits after is not below `low`.
    probe = (
        sa.select(least.label("low"), session.c.turn_count.label("high"))
        .select_from(session)
        .cte("probe", recursive=True)
    )
    middle = (probe.c.low + probe.c.high) // sa.literal_column("2", type_=_BIG)
    at = one_turn(segment, middle, "tokens_after", "estimated_after", "bytes_after").lateral("at")
    after = sa.func.coalesce(
        at.c.tokens_after + (at.c.estimated_after if estimates else _ZERO), _ZERO
    )
    fits = session.c.total_bytes - sa.func.coalesce(at.c.bytes_after, _ZERO) <= _bind("max_bytes")
    if by_tokens:
        fits &= total - after <= budget
    halved = (
        sa.select(
            sa.case((fits, probe.c.low), else_=middle + _ONE),
            sa.case((fits, middle), else_=probe.c.high),
        )
        .select_from(probe.join(session, sa.true()).outerjoin(at, sa.true()))
        .where(probe.c.low < probe.c.high)
    )
    probe = probe.union_all(halved)
    first = sa.select(sa.func.max(probe.c.low)).scalar_subquery()

    last = one_turn(
        segment, first, "tokens", "estimated_tokens", "tokens_after", "estimated_after"
    ).subquery("last")
    kept = last.c.tokens_after - last.c.tokens
    if estimates:
        kept += last.c.estimated_after - last.c.estimated_tokens
    wanted = total - kept <= budget if by_tokens else sa.true()
    size_limited = (
        sa.select(sa.func.count()).select_from(last).where(wanted, first > least).scalar_subquery()
    )
    turns = turns_of(segment).where(llm_turns.c.turn_number > first)
    columns = session_columns(session, context=True)
    return answer(session, columns, (first, size_limited), turns)


def _startup(session: sa.CTE, *, estimates: bool) -> sa.ColumnElement[int]:
    """What the startup context costs."""
    size = sa.func.octet_length(session.c.startup_context)
    rough = (
        (size + sa.literal_column("3", type_=_BIG)) // sa.literal_column("4", type_=_BIG)
        if estimates
        else _ZERO
    )
    return sa.func.coalesce(session.c.startup_tokens, rough)


async def context(
    database: Database, tenant: str, session_id: str, budget: Budget
) -> Context | None:
    """The newest turns within the budget; None where there is no session."""
    statement = _context(by_tokens=budget.max_tokens is not None, estimates=budget.estimates_count)
    params = {
        "tenant": tenant,
        "session_id": session_id,
        "max_bytes": budget.max_bytes,
        "max_tokens": budget.max_tokens,
        "last_turns": _NO_LIMIT if budget.last_turns is None else budget.last_turns,
    }
    found = split(await database.fetch_all(statement, params))
    if found is None:
        return None
    head, turns = found
    return Context(head.session, bool(head.numbers[1]), turns)


@lru_cache(maxsize=4)
def _page(*, descending: bool, of_branch: bool) -> Statement[Head | Turn]:
    """Turns after or before one, as many as a page holds, on the session's head or a branch."""
    session = the_session().cte("session")
    start = _branch(session) if of_branch else _head(session)
    segment = lineage(start, start.c.branch_id, start.c.high)
    high = sa.select(start.c.high).scalar_subquery()
    number, size = llm_turns.c.turn_number, _bind("size")
    if descending:
        before = sa.func.coalesce(_bind("last"), high + _ONE)
        nearest = before - _ONE
        counted = (number < before) & (number >= before - size)
        begin = one_turn(segment, nearest, "bytes_after").scalar_subquery()
        taken = begin - (llm_turns.c.bytes_after - llm_turns.c.size_bytes)
    else:
        after = sa.func.coalesce(_bind("last"), _ZERO)
        nearest = after + _ONE
        counted = (number > after) & (number <= after + size)
        begin = one_turn(segment, after, "bytes_after").scalar_subquery()
        taken = llm_turns.c.bytes_after - sa.func.coalesce(begin, _ZERO)
    # The nearest is given whatever its size: a turn always fits into a reply.
    turns = turns_of(segment).where(counted, (taken <= _bind("max_bytes")) | (number == nearest))
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
    high = sa.func.coalesce(_bind("high"), newest, llm_branches.c.parent_turn)
    return (
        sa.select(llm_branches.c.branch_id, high.label("high"))
        .join(
            session,
            (llm_branches.c.tenant == session.c.tenant)
            & (llm_branches.c.session_id == session.c.session_id),
        )
        .where(llm_branches.c.branch_id == _bind("branch_id"))
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
