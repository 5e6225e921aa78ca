"""Making, reading and moving the rows of agent sessions."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from session_service.storage import agent_requests
from session_service.storage.agent_rows import make_session, session_columns
from session_service.storage.agent_tables import llm_branches, llm_requests, llm_sessions
from session_service.storage.database import Connection, Database, Statement, compiled, one

if TYPE_CHECKING:
    from datetime import timedelta

    from session_service.domain.agent import AgentSession, Opening
    from session_service.domain.decision import Request

_OPENING = (
    "tenant",
    "session_id",
    "agent_role",
    "startup_context",
    "startup_tokens",
    "labels",
    "idle_timeout",
)


@lru_cache(maxsize=2)
def _create(*, known: bool) -> Statement[AgentSession]:
    """A session and its first branch, and where its request has an id, the record of that."""
    branch = (
        sa.insert(llm_branches)
        .values(tenant=sa.bindparam("tenant"), session_id=sa.bindparam("session_id"))
        .returning(llm_branches.c.branch_id)
        .cte("branch")
    )
    values: dict[str, Any] = {
        name: sa.bindparam(name, type_=llm_sessions.c[name].type) for name in _OPENING
    }
    values["state"] = sa.literal_column("'ACTIVE'")
    values["due_at"] = sa.func.now() + values["idle_timeout"]
    values["head_branch"] = branch.c.branch_id
    source = sa.select(*values.values()).select_from(branch)
    made = (
        sa.insert(llm_sessions)
        .from_select(list(values), source)
        .returning(*session_columns(context=True))
        .cte("made")
    )
    query = sa.select(*made.c)
    if known:
        record = agent_requests.binds()
        noted = sa.insert(llm_requests).from_select(
            list(record), sa.select(*record.values()).select_from(made)
        )
        query = query.add_cte(noted.cte("noted"))
    return compiled(query, make_session)


def _at_id(query: Any) -> Any:
    """Any: a select or an update, of the tenant's session."""
    return query.where(
        llm_sessions.c.tenant == sa.bindparam("tenant"),
        llm_sessions.c.session_id == sa.bindparam("session_id"),
    )


_GET = {
    context: compiled(_at_id(sa.select(*session_columns(context=context))), make_session)
    for context in (True, False)
}
_LOCK = compiled(_at_id(sa.select(*session_columns(context=True))).with_for_update(), make_session)
_retention: sa.BindParameter[Any] = sa.bindparam("retention", type_=sa.Interval)
_END = compiled(
    _at_id(sa.update(llm_sessions))
    .values(
        state=sa.literal_column("'ENDED'"),
        # One that ended before keeps its times, unless it is to go at once.
        ended_at=sa.func.coalesce(llm_sessions.c.ended_at, sa.func.now()),
        purge_at=sa.func.least(llm_sessions.c.purge_at, sa.func.now() + _retention),
    )
    .returning(*session_columns()),
    make_session,
)
_UNDELETE = compiled(
    _at_id(sa.update(llm_sessions))
    .where(
        (llm_sessions.c.state == sa.literal_column("'ACTIVE'"))
        | (llm_sessions.c.purge_at > sa.func.now())
    )
    .values(
        state=sa.literal_column("'ACTIVE'"),
        ended_at=sa.null(),
        purge_at=sa.null(),
        idle_from=sa.func.now(),
        due_at=sa.func.now() + llm_sessions.c.idle_timeout,
    )
    .returning(*session_columns()),
    make_session,
)
_MOVE_HEAD = compiled(
    _at_id(sa.update(llm_sessions))
    .values(
        {
            name: sa.bindparam(f"new_{name}", type_=sa.BigInteger)
            for name in (
                "head_branch",
                "turn_count",
                "total_tokens",
                "estimated_tokens",
                "total_bytes",
            )
        }
    )
    .returning(*session_columns()),
    make_session,
)


async def create(
    database: Database, request: Request, session_id: str, opening: Opening
) -> AgentSession:
    """Make a session: one round trip.

    Raises psycopg.errors.UniqueViolation (constraint `llm_sessions_pkey` or `llm_requests_pkey`).
    """
    params: dict[str, object] = {
        "tenant": request.tenant,
        "session_id": session_id,
        "agent_role": opening.agent_role,
        "startup_context": opening.startup_context,
        "startup_tokens": opening.startup_tokens,
        "labels": opening.labels,
        "idle_timeout": opening.idle_timeout,
        **agent_requests.parameters(request, session_id),
    }
    made = await database.fetch_one(_create(known=request.request_id is not None), params)
    if made is None:
        raise AssertionError("an INSERT … RETURNING gives a row")
    return made


async def get(
    database: Database, tenant: str, session_id: str, *, context: bool = False
) -> AgentSession | None:
    """The tenant's session, or None; `context` reads its startup context too."""
    return await database.fetch_one(_GET[context], {"tenant": tenant, "session_id": session_id})


async def lock(connection: Connection, tenant: str, session_id: str) -> AgentSession | None:
    """The tenant's session, held until the transaction ends, or None."""
    return await one(connection, _LOCK, {"tenant": tenant, "session_id": session_id})


async def end(
    connection: Connection, tenant: str, session_id: str, retention: timedelta
) -> AgentSession | None:
    """End the session; it may be purged once `retention` is over. None where there is none."""
    params = {"tenant": tenant, "session_id": session_id, "retention": retention}
    return await one(connection, _END, params)


async def undelete(connection: Connection, tenant: str, session_id: str) -> AgentSession | None:
    """Bring the session back; None where there is none, or where its retention is over."""
    return await one(connection, _UNDELETE, {"tenant": tenant, "session_id": session_id})


async def move_head(
    connection: Connection,
    tenant: str,
    session_id: str,
    branch_id: int,
    turn_count: int,
    sums: tuple[int, int, int],
) -> AgentSession:
    """Let the session continue from this turn of this branch, with its sums of tokens, estimated
    tokens and bytes. The session must be locked.
    """
    tokens, estimated, size = sums
    params = {
        "tenant": tenant,
        "session_id": session_id,
        "new_head_branch": branch_id,
        "new_turn_count": turn_count,
        "new_total_tokens": tokens,
        "new_estimated_tokens": estimated,
        "new_total_bytes": size,
    }
    moved = await one(connection, _MOVE_HEAD, params)
    if moved is None:
        raise AssertionError("a locked session is there")
    return moved
