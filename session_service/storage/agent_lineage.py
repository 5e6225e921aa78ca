"""Which branches a conversation runs over.

A branch holds the turns above `low` and up to `high`; those up to `low` are its parent's. The
newest come first. What this costs follows the number of branches that are needed, not of turns.
"""

from __future__ import annotations

import sqlalchemy as sa

from session_service.storage.agent_tables import llm_branches, llm_sessions, llm_turns


def the_session() -> sa.Select[tuple[object, ...]]:
    """The tenant's session of this id."""
    return sa.select(llm_sessions).where(
        llm_sessions.c.tenant == sa.bindparam("tenant"),
        llm_sessions.c.session_id == sa.bindparam("session_id"),
    )


def lineage(
    head: sa.FromClause,
    branch: sa.ColumnElement[int],
    high: sa.ColumnElement[int],
    down_to: sa.ColumnElement[int] | None = None,
    name: str = "segment",
) -> sa.CTE:
    """The segments (branch_id, parent_id, low, high) of the conversation that ends at turn `high`
    of `branch`, both columns of `head`; those that only hold turns up to `down_to` are left out.
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
        .where(segment.c.low > (sa.literal_column("0") if down_to is None else down_to))
    )
    return segment.union_all(older)


def within(segment: sa.FromClause) -> sa.ColumnElement[bool]:
    """Whether a turn is one of the conversation."""
    return sa.and_(
        llm_turns.c.branch_id == segment.c.branch_id,
        llm_turns.c.turn_number > segment.c.low,
        llm_turns.c.turn_number <= segment.c.high,
    )
