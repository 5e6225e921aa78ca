"""Listing agent sessions, a page at a time, by the time of their creation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from session_service.storage.agent_appends import LAG
from session_service.storage.agent_rows import make_session, session_columns
from session_service.storage.agent_tables import llm_sessions
from session_service.storage.database import Database, Statement, compiled

if TYPE_CHECKING:
    from datetime import datetime

    from session_service.domain.agent import AgentSession, SessionFilter


@dataclass(frozen=True, slots=True)
class After:
    """Where a page ended."""

    created_at: datetime
    session_id: str


def _conditions(form: frozenset[str]) -> list[sa.ColumnElement[bool]]:
    """The filter's conditions: those that are set, in the form that their indexes take."""
    row = llm_sessions.c
    since = sa.bindparam("active_since", type_=row.seen_at.type)
    texts = ARRAY(sa.Text)
    every: dict[str, sa.ColumnElement[bool]] = {
        "agent_role": row.agent_role == sa.bindparam("agent_role"),
        "labels": row.labels.contains(sa.bindparam("labels", type_=JSONB)),
        # The indexed column lags behind by so much at most.
        "active_since": (row.seen_at >= since - LAG) & (row.last_query_at >= since),
        "states": row.state == sa.any_(sa.bindparam("states", type_=texts)),
        "session_ids": row.session_id == sa.any_(sa.bindparam("session_ids", type_=texts)),
    }
    return [every[name] for name in sorted(form)]


@lru_cache(maxsize=256)
def statement(
    form: frozenset[str], *, descending: bool, after: bool, context: bool
) -> Statement[AgentSession]:
    """The listing for filters of this form; its values are binds."""
    row = llm_sessions.c
    query = sa.select(*session_columns(context=context)).where(
        row.tenant == sa.bindparam("tenant"), *_conditions(form)
    )
    if after:
        last: Any = sa.tuple_(
            sa.bindparam("after_time", type_=row.created_at.type),
            sa.bindparam("after_id", type_=row.session_id.type),
        )
        place: Any = sa.tuple_(row.created_at, row.session_id)
        query = query.where(place < last if descending else place > last)
    order = [row.created_at, row.session_id]
    query = query.order_by(*(each.desc() if descending else each for each in order))
    return compiled(query.limit(sa.bindparam("size", type_=sa.Integer)), make_session)


def parameters(wanted: SessionFilter) -> dict[str, object]:
    """The values of the filter that are set, by the names of their binds."""
    values: dict[str, object] = {
        "agent_role": wanted.agent_role,
        "labels": wanted.labels,
        "active_since": wanted.active_since,
        "states": [str(state) for state in wanted.states],
        "session_ids": list(wanted.session_ids),
    }
    return {name: value for name, value in values.items() if value}


async def page(
    database: Database,
    tenant: str,
    wanted: SessionFilter,
    after: After | None,
    size: int,
    *,
    descending: bool = True,
    context: bool = False,
) -> list[AgentSession]:
    """Up to `size` sessions; `context` reads their startup contexts too."""
    params = parameters(wanted)
    query = statement(
        frozenset(params), descending=descending, after=after is not None, context=context
    )
    params |= {"tenant": tenant, "size": size}
    if after is not None:
        params |= {"after_time": after.created_at, "after_id": after.session_id}
    return await database.fetch_all(query, params)
