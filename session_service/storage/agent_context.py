"""Reading what to give to the model: the newest turns within a budget, in one round trip."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import sqlalchemy as sa

from session_service.storage.agent_lineage import lineage, the_session
from session_service.storage.agent_reading import Head, answer, big, one_turn, split, turns_of
from session_service.storage.agent_rows import session_columns
from session_service.storage.agent_tables import llm_turns

if TYPE_CHECKING:
    from session_service.domain.agent import AgentSession, Budget, Turn
    from session_service.storage.database import Database, Statement

_BIG = sa.BigInteger()
_ZERO: sa.ColumnElement[int] = sa.literal_column("0", type_=_BIG)
_ONE: sa.ColumnElement[int] = sa.literal_column("1", type_=_BIG)
#: More than any count, for a limit that is none.
_NO_LIMIT = 2**62


@dataclass(frozen=True, slots=True)
class Context:
    """The newest turns that fit, oldest first. `size_limited`: more would, but for their size."""

    session: AgentSession
    size_limited: bool
    turns: list[Turn]


@lru_cache(maxsize=4)
def _context(*, by_tokens: bool, estimates: bool) -> Statement[Head | Turn]:
    """The newest turns within a budget, and `first`, the turn before them.

    It is found by a binary search over the sums that each turn carries: what that costs grows with
    the logarithm of the turn count.
    """
    session = the_session().cte("session")
    segment = lineage(session, session.c.head_branch, session.c.turn_count)
    budget = big("max_tokens") - _startup(session, estimates=estimates)
    total = session.c.total_tokens + (session.c.estimated_tokens if estimates else _ZERO)
    least = sa.func.greatest(session.c.turn_count - big("last_turns"), _ZERO)

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
