"""Figures of agent sessions, by role."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa

from session_service.storage.agent_tables import llm_sessions
from session_service.storage.database import Database, Statement, compiled

if TYPE_CHECKING:
    from datetime import datetime, timedelta


@dataclass(frozen=True, slots=True)
class Stats:
    """Figures of the sessions of a role, or of several. `talked` and `continued` count sessions
    that have a turn, and that have two.
    """

    agent_role: str
    sessions: int
    turns: int
    tokens: int
    lifetime: timedelta
    talked: int
    continued: int


def statement(*, of_role: bool) -> Statement[Stats]:
    """The figures of the sessions created in a span, each role apart."""
    row = llm_sessions.c
    start, end = (sa.bindparam(name, type_=row.created_at.type) for name in ("start", "end"))
    query = (
        sa.select(
            row.agent_role,
            sa.func.count(),
            sa.cast(sa.func.sum(row.turn_count), sa.BigInteger),
            sa.cast(sa.func.sum(row.total_tokens), sa.BigInteger),
            sa.func.sum(row.last_query_at - row.created_at),
            sa.func.count().filter(row.turn_count >= sa.literal_column("1")),
            sa.func.count().filter(row.turn_count >= sa.literal_column("2")),
        )
        .where(row.tenant == sa.bindparam("tenant"), row.created_at >= start, row.created_at < end)
        .group_by(row.agent_role)
        .order_by(row.agent_role)
    )
    if of_role:
        query = query.where(row.agent_role == sa.bindparam("agent_role"))
    return compiled(query, lambda row: Stats(*row))


_STATS = {of_role: statement(of_role=of_role) for of_role in (True, False)}


async def stats(
    database: Database, tenant: str, agent_role: str | None, start: datetime, end: datetime
) -> list[Stats]:
    """The figures of each role, by name; `lifetime` is the sum."""
    params = {"tenant": tenant, "agent_role": agent_role, "start": start, "end": end}
    return await database.fetch_all(_STATS[agent_role is not None], params)
