"""Moving conversations in: sessions and turns that keep their times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
import sqlalchemy as sa

from session_service.storage.agent_appends import turn_parameters
from session_service.storage.agent_tables import llm_branches, llm_sessions, llm_turns
from session_service.storage.connections import PATIENT
from session_service.storage.database import Connection, Database, compiled, one

if TYPE_CHECKING:
    from collections.abc import Sequence

    from session_service.domain.agent import AgentSession, Imported, ImportedTurn

_BIG = sa.BigInteger()
_OPENING = (
    "tenant",
    "session_id",
    "agent_role",
    "startup_context",
    "startup_tokens",
    "labels",
    "idle_timeout",
)


@dataclass(slots=True)
class Sums:
    """Where a conversation stands while turns are added to it."""

    turn_count: int
    tokens: int
    estimated_tokens: int
    size: int

    @classmethod
    def of(cls, session: AgentSession) -> Sums:
        """Where the session stands."""
        return cls(
            session.turn_count,
            session.total_tokens,
            session.estimated_tokens,
            session.total_bytes,
        )


def _make() -> sa.Select[Any]:
    branch = (
        sa.insert(llm_branches)
        .values(tenant=sa.bindparam("tenant"), session_id=sa.bindparam("session_id"))
        .returning(llm_branches.c.branch_id)
        .cte("branch")
    )
    time = llm_sessions.c.created_at.type
    values: dict[str, Any] = {
        name: sa.bindparam(name, type_=llm_sessions.c[name].type) for name in _OPENING
    }
    created = sa.func.coalesce(sa.bindparam("created_at", type_=time), sa.func.now())
    queried = sa.func.coalesce(sa.bindparam("last_query_at", type_=time), created)
    values |= {
        "state": sa.literal_column("'ACTIVE'"),
        "head_branch": branch.c.branch_id,
        "created_at": created,
        "last_query_at": queried,
        "seen_at": queried,
        # A session that comes in has not been idle here.
        "due_at": sa.func.now() + values["idle_timeout"],
    }
    source = sa.select(*values.values()).select_from(branch)
    made = (
        sa.insert(llm_sessions)
        .from_select(list(values), source)
        .returning(llm_sessions.c.session_id)
        .cte("made")
    )
    return sa.select(made.c.session_id)


_MAKE = compiled(_make(), lambda row: str(row[0]))
_ADDED = (
    "tenant",
    "branch_id",
    "turn_number",
    "tokens",
    "estimated_tokens",
    "size_bytes",
    "tokens_after",
    "estimated_after",
    "bytes_after",
    "roles",
    "contents",
    "token_counts",
    "extras",
    "attachments",
)
_time = sa.bindparam("t_create_time", type_=llm_turns.c.create_time.type)
_ADD = compiled(
    sa.insert(llm_turns).values(
        {
            **{name: sa.bindparam(f"t_{name}", type_=llm_turns.c[name].type) for name in _ADDED},
            "create_time": sa.func.coalesce(_time, sa.func.now()),
        }
    ),
    tuple,
)
_newest = sa.bindparam("newest", type_=llm_sessions.c.last_query_at.type)
_BUMP = compiled(
    sa.update(llm_sessions)
    .where(
        llm_sessions.c.tenant == sa.bindparam("tenant"),
        llm_sessions.c.session_id == sa.bindparam("session_id"),
    )
    .values(
        turn_count=sa.bindparam("turn_count", type_=_BIG),
        total_tokens=sa.bindparam("tokens", type_=_BIG),
        estimated_tokens=sa.bindparam("estimated", type_=_BIG),
        total_bytes=sa.bindparam("size", type_=_BIG),
        last_query_at=sa.func.greatest(
            llm_sessions.c.last_query_at, sa.func.coalesce(_newest, sa.func.now())
        ),
        idle_from=sa.func.now(),
        due_at=sa.func.now() + llm_sessions.c.idle_timeout,
    )
    .returning(llm_sessions.c.turn_count),
    lambda row: int(row[0]),
)


async def make(database: Database, tenant: str, wanted: Imported) -> bool:
    """Make the session; False where there is one of its id."""
    opening = wanted.opening
    params: dict[str, object] = {
        "tenant": tenant,
        "session_id": wanted.session_id,
        "agent_role": opening.agent_role,
        "startup_context": opening.startup_context,
        "startup_tokens": opening.startup_tokens,
        "labels": opening.labels,
        "idle_timeout": opening.idle_timeout,
        "created_at": wanted.created_at,
        "last_query_at": wanted.last_query_at,
    }
    try:
        await database.fetch_one(_MAKE, params)
    except psycopg.errors.UniqueViolation:
        return False
    return True


async def add(connection: Connection, session: AgentSession, turns: Sequence[ImportedTurn]) -> None:
    """Append turns, whose numbers follow the session's, which must be locked."""
    sums = Sums.of(session)
    rows = [_row(session, sums, turn) for turn in turns]
    async with connection.cursor() as cursor:
        await cursor.executemany(_ADD.sql.encode(), [{**_ADD.constants, **row} for row in rows])
    times = [turn.create_time for turn in turns if turn.create_time is not None]
    params = {
        "tenant": session.tenant,
        "session_id": session.session_id,
        "turn_count": sums.turn_count,
        "tokens": sums.tokens,
        "estimated": sums.estimated_tokens,
        "size": sums.size,
        "newest": max(times) if len(times) == len(turns) else None,
    }
    await one(connection, _BUMP, params)


def _row(session: AgentSession, sums: Sums, wanted: ImportedTurn) -> dict[str, object]:
    turn = wanted.turn
    sums.turn_count += 1
    sums.tokens += turn.tokens
    sums.estimated_tokens += turn.estimated_tokens
    sums.size += turn.size
    return turn_parameters(turn) | {
        "t_tenant": session.tenant,
        "t_branch_id": session.head_branch,
        "t_turn_number": sums.turn_count,
        "t_tokens_after": sums.tokens,
        "t_estimated_after": sums.estimated_tokens,
        "t_bytes_after": sums.size,
        "t_create_time": wanted.create_time,
    }


async def analyze(database: Database) -> None:
    """Tell the planner of what came in: a table without statistics is sorted on disk."""
    async with database.connection(PATIENT) as connection:
        await connection.execute("ANALYZE llm_sessions, llm_branches, llm_turns")
