"""Reading turns of a conversation: a page, a context within a budget, a watcher's unseen turns.

Each read is one statement with the same shape:

1. `session`: the session's row, and with it the head (branch and turn count) of this moment.
2. `segment`: the lineage, that is the branches that the conversation runs over (`lineage`).
3. Turns of these segments, chosen by number and size.

The answer's first row has the session and two numbers that depend on the read; the other rows have
a turn each. One statement sees one snapshot, so session and turns always fit together, also while
the session is appended to, rewound or purged.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from session_service.storage.agent.tables import (
    SESSION_WIDTH,
    llm_branches,
    llm_sessions,
    llm_turns,
    make_session,
    make_turn,
    no_session,
    no_turn,
    session_columns,
    turn_columns,
)
from session_service.storage.database import Database, Statement, compiled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from session_service.domain.agent import AgentSession, Budget, Turn

_BIG = sa.BigInteger()
_ZERO: sa.ColumnElement[int] = sa.literal_column("0", type_=_BIG)
_ONE: sa.ColumnElement[int] = sa.literal_column("1", type_=_BIG)
#: Above any turn count: the value of `last_turns` that is no limit.
_NO_LIMIT = 2**62
#: The most turns, and bytes of turns, that `unseen` reads at once. A watch whose reader takes
#: nothing keeps that much.
UNSEEN_TURNS = 100
UNSEEN_BYTES = 512 * 1024


@dataclass(frozen=True, slots=True)
class Position:
    """Where a page of turns begins.

    `branch_id` and `high` fix the conversation: the turns of the lineage that ends at turn `high`
    of this branch. None: the session's head now. `last`: the last turn of the previous page. A
    `branch_id` without `high` reads a branch of the session to its newest turn.
    """

    branch_id: int | None = None
    high: int | None = None
    last: int | None = None


@dataclass(frozen=True, slots=True)
class TurnPage:
    """Turns of a session, oldest first, of the conversation that ends at turn `high` of a branch.

    `branch_id` None: the position's branch is not one of the session's.
    """

    session: AgentSession
    branch_id: int | None
    high: int
    turns: list[Turn]


@dataclass(frozen=True, slots=True)
class Context:
    """The newest turns within a budget, oldest first.

    `size_limited`: more turns fit the token and turn limits, but not `max_bytes`.
    """

    session: AgentSession
    size_limited: bool
    turns: list[Turn]


@dataclass(frozen=True, slots=True)
class Unseen:
    """The next turns after those that a watcher has seen.

    `common`: the newest turn that the watcher has seen and that is still of the conversation. It is
    below the watcher's own number after a rewind.
    """

    session: AgentSession
    common: int
    turns: list[Turn]


@dataclass(frozen=True, slots=True)
class FirstRow:
    """The first row of an answer: the session, and two numbers that depend on the statement."""

    numbers: tuple[int | None, int | None]
    session: AgentSession


def big(name: str) -> sa.BindParameter[Any]:
    """A bind of type bigint."""
    return sa.bindparam(name, type_=_BIG)


def select_session() -> sa.Select[tuple[object, ...]]:
    """The row of the session of binds `tenant` and `session_id`."""
    return sa.select(llm_sessions).where(
        llm_sessions.c.tenant == sa.bindparam("tenant"),
        llm_sessions.c.session_id == sa.bindparam("session_id"),
    )


def lineage(
    head: sa.FromClause,
    branch: sa.ColumnElement[int],
    high: sa.ColumnElement[int],
    name: str = "segment",
) -> sa.CTE:
    """The segments of the conversation that ends at turn `high` of `branch`, columns of `head`.

    A segment (branch_id, parent_id, low, high) says that the conversation's turns with
    low < number <= high are in this branch. The recursion goes from the head to the parents, so
    its cost grows with the number of branches of the conversation, and not of turns.
    """
    first = sa.select(
        llm_branches.c.branch_id,
        llm_branches.c.parent_id,
        llm_branches.c.parent_turn.label("low"),
        high.label("high"),
    ).select_from(head.join(llm_branches, llm_branches.c.branch_id == branch))
    segment = first.cte(name, recursive=True)
    older = (
        sa.select(
            llm_branches.c.branch_id,
            llm_branches.c.parent_id,
            llm_branches.c.parent_turn,
            segment.c.low,
        )
        .select_from(segment.join(llm_branches, llm_branches.c.branch_id == segment.c.parent_id))
        .where(segment.c.low > sa.literal_column("0"))
    )
    return segment.union_all(older)


def select_turn(segment: sa.CTE, number: sa.ColumnElement[int], *columns: str) -> sa.Select[Any]:
    """These columns of the conversation's turn of this number.

    There is at most one, and LIMIT says so to the planner. Without it the planner may expect many:
    where most conversations are short, it then reads every turn of the branch into a hash table,
    and a search in a conversation of 50,000 turns takes 200 ms.
    """
    found = llm_turns.alias()
    return (
        sa.select(*(found.c[name] for name in columns))
        .select_from(segment.join(found, found.c.branch_id == segment.c.branch_id))
        .where(
            found.c.turn_number == number,
            segment.c.low < number,
            number <= segment.c.high,
        )
        .limit(sa.literal_column("1"))
    )


def _select_turns(segment: sa.FromClause) -> sa.Select[Any]:
    """The rows of the conversation's turns, as `_session_and_turns` takes them."""
    nothing = sa.cast(sa.null(), _BIG)
    within = sa.and_(
        llm_turns.c.branch_id == segment.c.branch_id,
        llm_turns.c.turn_number > segment.c.low,
        llm_turns.c.turn_number <= segment.c.high,
    )
    return sa.select(
        nothing.label("a"), nothing.label("b"), *no_session(), *turn_columns()
    ).select_from(segment.join(llm_turns, within))


def _session_and_turns(
    session: sa.FromClause,
    columns: Sequence[sa.ColumnElement[Any]],
    numbers: tuple[sa.ColumnElement[Any], sa.ColumnElement[Any]],
    turns: sa.Select[Any],
) -> Statement[FirstRow | Turn]:
    """The session's row, then those of its turns. No row at all if there is no session."""
    first = sa.select(
        numbers[0].label("a"), numbers[1].label("b"), *columns, *no_turn()
    ).select_from(session)
    return compiled(lambda: first.union_all(turns), _make_row)


def _make_row(row: Sequence[Any]) -> FirstRow | Turn:
    """Two numbers, a session's columns, a turn's columns: only the first row has a session."""
    if row[2] is not None:
        return FirstRow((row[0], row[1]), make_session(row[2 : 2 + SESSION_WIDTH]))
    return make_turn(row[2 + SESSION_WIDTH :])


def _split(rows: list[FirstRow | Turn]) -> tuple[FirstRow, list[Turn]] | None:
    """The first row, and the turns by number; None if there is no session."""
    first = next((row for row in rows if isinstance(row, FirstRow)), None)
    if first is None:
        return None
    turns = [row for row in rows if not isinstance(row, FirstRow)]
    return first, sorted(turns, key=lambda turn: turn.turn_number)


@lru_cache(maxsize=4)
def _page(*, descending: bool, of_branch: bool) -> Statement[FirstRow | Turn]:
    """Turns after or before a turn, up to a count and a size, of the head or of a given branch."""
    session = select_session().cte("session")
    start = _branch(session) if of_branch else _head(session)
    segment = lineage(start, start.c.branch_id, start.c.high)
    high = sa.select(start.c.high).scalar_subquery()
    number, size = llm_turns.c.turn_number, big("size")
    if descending:
        before = sa.func.coalesce(big("last"), high + _ONE)
        nearest = before - _ONE
        counted = (number < before) & (number >= before - size)
        begin = select_turn(segment, nearest, "bytes_after").scalar_subquery()
        taken = begin - (llm_turns.c.bytes_after - llm_turns.c.size_bytes)
    else:
        after = sa.func.coalesce(big("last"), _ZERO)
        nearest = after + _ONE
        counted = (number > after) & (number <= after + size)
        begin = select_turn(segment, after, "bytes_after").scalar_subquery()
        taken = llm_turns.c.bytes_after - sa.func.coalesce(begin, _ZERO)
    # The nearest turn is read even if it is larger than `max_bytes`, so that every page makes
    # progress: a turn that was accepted always fits into a reply.
    turns = _select_turns(segment).where(counted, (taken <= big("max_bytes")) | (number == nearest))
    branch = sa.select(start.c.branch_id).scalar_subquery()
    return _session_and_turns(session, session_columns(session), (branch, high), turns)


def _head(session: sa.CTE) -> sa.CTE:
    return sa.select(
        session.c.head_branch.label("branch_id"), session.c.turn_count.label("high")
    ).cte("start")


def _branch(session: sa.CTE) -> sa.CTE:
    """The session's branch of bind `branch_id`, up to bind `high` or else to its newest turn."""
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
) -> TurnPage | None:
    """Up to `size` turns and about `max_bytes`; None if there is no session."""
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
    found = _split(await database.fetch_all(statement, params))
    if found is None:
        return None
    first, turns = found
    branch, high = first.numbers
    return TurnPage(first.session, branch, high or 0, turns)


@lru_cache(maxsize=4)
def _context(*, by_tokens: bool, estimates: bool) -> Statement[FirstRow | Turn]:
    """The newest turns within a budget, and `first`, the number of the turn before them.

    A recursive query does a binary search for `first`. The interval [low, high] starts as [least,
    turn count] and always contains the answer: everything after turn `high` fits, and the answer is
    not below `low`. Each step reads the sums that the middle turn carries, so the cost grows with
    the logarithm of the turn count. The search ends at low = high.
    """
    session = select_session().cte("session")
    segment = lineage(session, session.c.head_branch, session.c.turn_count)
    budget = big("max_tokens") - _startup_tokens(session, estimates=estimates)
    total = session.c.total_tokens + (session.c.estimated_tokens if estimates else _ZERO)
    least = sa.func.greatest(session.c.turn_count - big("last_turns"), _ZERO)

    probe = (
        sa.select(least.label("low"), session.c.turn_count.label("high"))
        .select_from(session)
        .cte("probe", recursive=True)
    )
    middle = (probe.c.low + probe.c.high) // sa.literal_column("2", type_=_BIG)
    at = select_turn(segment, middle, "tokens_after", "estimated_after", "bytes_after").lateral(
        "at"
    )
    after = sa.func.coalesce(
        at.c.tokens_after + (at.c.estimated_after if estimates else _ZERO), _ZERO
    )
    fits = session.c.total_bytes - sa.func.coalesce(at.c.bytes_after, _ZERO) <= big("max_bytes")
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

    # Turn `first` was left out. If the token and turn limits would take it, its size is the cause.
    last = select_turn(
        segment, first, "tokens", "estimated_tokens", "tokens_after", "estimated_after"
    ).subquery("last")
    kept = last.c.tokens_after - last.c.tokens
    if estimates:
        kept += last.c.estimated_after - last.c.estimated_tokens
    wanted = total - kept <= budget if by_tokens else sa.true()
    size_limited = (
        sa.select(sa.func.count()).select_from(last).where(wanted, first > least).scalar_subquery()
    )
    turns = _select_turns(segment).where(llm_turns.c.turn_number > first)
    columns = session_columns(session, context=True)
    return _session_and_turns(session, columns, (first, size_limited), turns)


def _startup_tokens(session: sa.CTE, *, estimates: bool) -> sa.ColumnElement[int]:
    """The tokens of the startup context: the caller's count, or else the estimate or 0."""
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
    """The newest turns within the budget; None if there is no session."""
    statement = _context(by_tokens=budget.max_tokens is not None, estimates=budget.estimates_count)
    params = {
        "tenant": tenant,
        "session_id": session_id,
        "max_bytes": budget.max_bytes,
        "max_tokens": budget.max_tokens,
        "last_turns": _NO_LIMIT if budget.last_turns is None else budget.last_turns,
    }
    found = _split(await database.fetch_all(statement, params))
    if found is None:
        return None
    first, turns = found
    return Context(first.session, bool(first.numbers[1]), turns)


def _unseen() -> Statement[FirstRow | Turn]:
    """Turns of the conversation after the part of it that a watcher has seen.

    The seen part is a conversation too: the lineage `seen` that ends at turn `after` of
    its branch. In a branch that both lineages contain, both have the turns up to the lower `high`;
    the highest such turn over all shared branches is `common`.
    """
    session = select_session().cte("session")
    segment = lineage(session, session.c.head_branch, session.c.turn_count)
    after = sa.func.least(big("after"), session.c.turn_count)
    cursor = (
        sa.select(llm_branches.c.branch_id, big("after").label("high"))
        .join(session, llm_branches.c.tenant == session.c.tenant)
        .where(llm_branches.c.branch_id == sa.func.coalesce(big("branch"), session.c.head_branch))
        .cte("cursor")
    )
    seen = lineage(cursor, cursor.c.branch_id, cursor.c.high, name="seen")
    shared = sa.select(sa.func.max(sa.func.least(segment.c.high, seen.c.high))).select_from(
        segment.join(seen, segment.c.branch_id == seen.c.branch_id)
    )
    common = (
        sa.select(sa.func.least(sa.func.coalesce(shared.scalar_subquery(), _ZERO), after))
        .select_from(session)
        .scalar_subquery()
    )
    number = llm_turns.c.turn_number
    begin = select_turn(segment, common, "bytes_after").scalar_subquery()
    size = llm_turns.c.bytes_after - sa.func.coalesce(begin, _ZERO)
    turns = _select_turns(segment).where(
        number > common,
        number <= common + big("size"),
        (size <= big("max_bytes")) | (number == common + _ONE),
    )
    return _session_and_turns(session, session_columns(session), (common, sa.null()), turns)


_UNSEEN = _unseen()


async def unseen(
    database: Database, tenant: str, session_id: str, branch: int | None, after: int
) -> Unseen | None:
    """The next turns for a watcher that has seen turn `after` of `branch` (None: the head branch).

    None if there is no session.
    """
    params = {
        "tenant": tenant,
        "session_id": session_id,
        "branch": branch,
        "after": after,
        "size": UNSEEN_TURNS,
        "max_bytes": UNSEEN_BYTES,
    }
    found = _split(await database.fetch_all(_UNSEEN, params))
    if found is None:
        return None
    first, turns = found
    return Unseen(first.session, first.numbers[0] or 0, turns)
