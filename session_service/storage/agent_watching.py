"""What a watcher of a session has not seen yet, in one round trip; and which sessions changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY

from session_service.storage.agent_lineage import lineage, the_session
from session_service.storage.agent_reading import Head, answer, one_turn, split, turns_of
from session_service.storage.agent_rows import session_columns
from session_service.storage.agent_tables import llm_branches, llm_sessions, llm_turns
from session_service.storage.database import Database, Statement, compiled

if TYPE_CHECKING:
    from session_service.domain.agent import AgentSession, Turn

_BIG = sa.BigInteger()
#: How many turns at once.
BATCH = 100
BATCH_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Unseen:
    """What there is after a cursor. `common` is the last turn up to which it still counts."""

    session: AgentSession
    common: int
    turns: list[Turn]


def _bind(name: str) -> sa.BindParameter[Any]:
    return sa.bindparam(name, type_=_BIG)


def _unseen() -> Statement[Head | Turn]:
    session = the_session().cte("session")
    segment = lineage(session, session.c.head_branch, session.c.turn_count)
    after = sa.func.least(_bind("after"), session.c.turn_count)
    cursor = (
        sa.select(llm_branches.c.branch_id, _bind("after").label("high"))
        .join(session, llm_branches.c.tenant == session.c.tenant)
        .where(llm_branches.c.branch_id == sa.func.coalesce(_bind("branch"), session.c.head_branch))
        .cte("cursor")
    )
    seen = lineage(cursor, cursor.c.branch_id, cursor.c.high, name="seen")
    # What both share of a branch is what both have of it.
    shared = sa.select(sa.func.max(sa.func.least(segment.c.high, seen.c.high))).select_from(
        segment.join(seen, segment.c.branch_id == seen.c.branch_id)
    )
    zero = sa.literal_column("0", type_=_BIG)
    common = (
        sa.select(sa.func.least(sa.func.coalesce(shared.scalar_subquery(), zero), after))
        .select_from(session)
        .scalar_subquery()
    )
    number = llm_turns.c.turn_number
    begin = one_turn(segment, common, "bytes_after").scalar_subquery()
    size = llm_turns.c.bytes_after - sa.func.coalesce(begin, zero)
    one = sa.literal_column("1", type_=_BIG)
    turns = turns_of(segment).where(
        number > common,
        number <= common + _bind("size"),
        (size <= _bind("max_bytes")) | (number == common + one),
    )
    return answer(session, session_columns(session), (common, sa.null()), turns)


_UNSEEN = _unseen()
_TEXTS = ARRAY(sa.Text)
_asked = (
    sa.func.unnest(sa.bindparam("tenants", type_=_TEXTS), sa.bindparam("session_ids", type_=_TEXTS))
    .table_valued("tenant", "session_id")
    .render_derived()
)
_MARKS = compiled(
    sa.select(
        llm_sessions.c.tenant,
        llm_sessions.c.session_id,
        llm_sessions.c.head_branch,
        llm_sessions.c.turn_count,
        llm_sessions.c.state,
    ).join(
        _asked,
        (llm_sessions.c.tenant == _asked.c.tenant)
        & (llm_sessions.c.session_id == _asked.c.session_id),
    ),
    lambda row: ((str(row[0]), str(row[1])), (int(row[2]), int(row[3]), str(row[4]))),
)


async def unseen(
    database: Database, tenant: str, session_id: str, branch: int | None, after: int
) -> Unseen | None:
    """The next turns after turn `after` of `branch`, the session's own where it is None.

    None where there is no session.
    """
    params = {
        "tenant": tenant,
        "session_id": session_id,
        "branch": branch,
        "after": after,
        "size": BATCH,
        "max_bytes": BATCH_BYTES,
    }
    found = split(await database.fetch_all(_UNSEEN, params))
    if found is None:
        return None
    head, turns = found
    return Unseen(head.session, head.numbers[0] or 0, turns)


async def marks(
    database: Database, sessions: list[tuple[str, str]]
) -> dict[tuple[str, str], tuple[int, int, str]]:
    """What tells whether a session, by (tenant, id), has changed; nothing of one that is gone."""
    params = {
        "tenants": [tenant for tenant, _ in sessions],
        "session_ids": [session_id for _, session_id in sessions],
    }
    return dict(await database.fetch_all(_MARKS, params))
