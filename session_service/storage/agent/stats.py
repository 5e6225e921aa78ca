"""The figures of GetAgentStats: by role, of the sessions that were created in a time span.

A background pass rolls them up by the day (UTC) of creation. The figures of a session change after
that day: with appends, which are found by the index on `seen_at`, and with rewinds, imports and
purges, which triggers note in `llm_stats_changes`. An append writes nothing for the figures. So
those of earlier days are late by `LATE` at most for appends, and exact for everything else.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from functools import reduce
from typing import TYPE_CHECKING

from session_service.domain.rollups import Progress, pieces
from session_service.storage.database import BATCH_TIMEOUT, Statement

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from session_service.storage.database import Connection, Database
from session_service.storage.snapshot import snapshot

#: The name of these roll-ups' progress in `stats_progress`.
NAME = "agent sessions"
#: How late the figures of days that were rolled up may be for an append: `seen_at` follows it
#: within 5 minutes, and the pass within a few more.
LATE = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class RoleStats:
    """Figures of the sessions of one role.

    `lifetime` is the sum over the sessions of the time from creation to the newest turn.
    `with_turn` and `with_second_turn` count the sessions that have one turn or more, two or more.
    """

    agent_role: str
    sessions: int
    turns: int
    tokens: int
    lifetime: timedelta
    with_turn: int
    with_second_turn: int

    def __add__(self, other: RoleStats) -> RoleStats:
        return RoleStats(
            self.agent_role,
            self.sessions + other.sessions,
            self.turns + other.turns,
            self.tokens + other.tokens,
            self.lifetime + other.lifetime,
            self.with_turn + other.with_turn,
            self.with_second_turn + other.with_second_turn,
        )


FIGURES = """
    agent_role, count(*), sum(turn_count)::bigint, sum(total_tokens)::bigint,
    sum(last_query_at - created_at), count(*) FILTER (WHERE turn_count >= 1),
    count(*) FILTER (WHERE turn_count >= 2)
"""


def created(tenant: str) -> str:
    """The agent sessions of a tenant, an SQL value, that were created from `start` to before `end`.

    In the order in which most are stored. To have them by role, the planner would else read a day
    with many by an index of roles, a page for every second session.
    """
    return f"""(
        SELECT * FROM llm_sessions
        WHERE tenant = {tenant} AND created_at >= %(start)s AND created_at < %(end)s
        ORDER BY created_at OFFSET 0
    ) AS s"""


_OF_ROLE = {True: "AND agent_role = %(agent_role)s", False: ""}
_FROM_ROWS = {
    of_role: Statement[RoleStats](
        f"""
        SELECT {FIGURES} FROM {source} GROUP BY agent_role
        """,
        {},
        lambda row: RoleStats(*row),
    )
    for of_role, source in {
        True: """llm_sessions WHERE tenant = %(tenant)s AND created_at >= %(start)s
            AND created_at < %(end)s AND agent_role = %(agent_role)s""",
        False: created("%(tenant)s"),
    }.items()
}
_FROM_ROLLUPS = {
    of_role: Statement[RoleStats](
        f"""
        SELECT agent_role, sum(session_count)::bigint, sum(turn_count)::bigint,
            sum(total_tokens)::bigint, sum(lifetime), sum(with_turn)::bigint,
            sum(with_second_turn)::bigint
        FROM llm_stats_rollups
        WHERE tenant = %(tenant)s AND start_time = ANY(%(days)s) {where}
        GROUP BY agent_role
        """,
        {},
        lambda row: RoleStats(*row),
    )
    for of_role, where in _OF_ROLE.items()
}
_PROGRESS = f"""
    SELECT p.start_time, p.days_end,
        ARRAY(SELECT DISTINCT start_time FROM llm_stats_changes WHERE tenant = %(tenant)s)
    FROM (SELECT) AS one LEFT JOIN stats_progress p ON p.name = '{NAME}'
"""


async def stats(
    database: Database, tenant: str, agent_role: str | None, start: datetime, end: datetime
) -> list[RoleStats]:
    """The figures of each role, by name, of the sessions created from `start` to before `end`.
    Raises StorageUnavailable.
    """
    params: dict[str, object] = {"tenant": tenant, "agent_role": agent_role}
    of_role = agent_role is not None
    found: list[RoleStats] = []
    # Roll-ups and rows are of one snapshot.
    async with snapshot(database, BATCH_TIMEOUT) as connection:
        cursor = await connection.execute(_PROGRESS.encode(), params)
        (first, days_end, late), *_ = await cursor.fetchall()
        parts = pieces(start, end, Progress(first, None, days_end, frozenset(), frozenset(late)))
        if parts.days:
            days = {**params, "days": parts.days}
            found += await _rows(connection, _FROM_ROLLUPS[of_role], days)
        for since, until in parts.rest:
            span = {**params, "start": since, "end": until}
            found += await _rows(connection, _FROM_ROWS[of_role], span)
    return _by_role(found)


async def _rows(
    connection: Connection, statement: Statement[RoleStats], params: dict[str, object]
) -> list[RoleStats]:
    # Not prepared, so that it is planned for this span: its length decides on the index.
    cursor = await connection.execute(statement.sql.encode(), params, prepare=False)
    return [statement.make(row) for row in await cursor.fetchall()]


def _by_role(found: Iterable[RoleStats]) -> list[RoleStats]:
    """One row for each role, by name."""
    rows: dict[str, list[RoleStats]] = {}
    for each in found:
        rows.setdefault(each.agent_role, []).append(each)
    return [reduce(RoleStats.__add__, rows[role]) for role in sorted(rows)]
