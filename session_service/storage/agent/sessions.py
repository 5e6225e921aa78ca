"""The rows of agent sessions: create, read, lock, change."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import psycopg
import sqlalchemy as sa

from session_service.storage.agent import requests
from session_service.storage.agent.tables import (
    llm_branches,
    llm_requests,
    llm_sessions,
    make_session,
    session_columns,
)
from session_service.storage.database import Connection, Database, Statement, compiled, one

if TYPE_CHECKING:
    from datetime import timedelta

    from session_service.domain.agent import (
        AgentSession,
        ImportedSession,
        NewSession,
    )
    from session_service.domain.decision import Request

_NEW = (
    "tenant",
    "session_id",
    "agent_role",
    "startup_context",
    "startup_tokens",
    "labels",
    "idle_timeout",
)


def _insert_branch() -> sa.CTE:
    """The session's first branch, which has no parent."""
    return (
        sa.insert(llm_branches)
        .values(tenant=sa.bindparam("tenant"), session_id=sa.bindparam("session_id"))
        .returning(llm_branches.c.branch_id)
        .cte("branch")
    )


def _new_values() -> dict[str, Any]:
    return {name: sa.bindparam(name, type_=llm_sessions.c[name].type) for name in _NEW}


def _new_parameters(tenant: str, session_id: str, new: NewSession) -> dict[str, object]:
    return {
        "tenant": tenant,
        "session_id": session_id,
        "agent_role": new.agent_role,
        "startup_context": new.startup_context,
        "startup_tokens": new.startup_tokens,
        "labels": new.labels,
        "idle_timeout": new.idle_timeout,
    }


@lru_cache(maxsize=2)
def _create(*, with_request_id: bool) -> Statement[AgentSession]:
    """Insert a session, its first branch, and the request's record if the request has an id."""
    branch = _insert_branch()
    values = _new_values()
    values["state"] = sa.literal_column("'ACTIVE'")
    values["due_at"] = sa.func.now() + values["idle_timeout"]
    values["head_branch"] = branch.c.branch_id
    source = sa.select(*values.values()).select_from(branch)
    inserted = (
        sa.insert(llm_sessions)
        .from_select(list(values), source)
        .returning(*session_columns(context=True))
        .cte("made")
    )
    query = sa.select(*inserted.c)
    if with_request_id:
        record = requests.binds()
        noted = sa.insert(llm_requests).from_select(
            list(record), sa.select(*record.values()).select_from(inserted)
        )
        query = query.add_cte(noted.cte("noted"))
    return compiled(lambda: query, make_session)


def _create_imported() -> Statement[str]:
    """Insert a session of a dump, and its first branch, with the dump's times."""
    branch = _insert_branch()
    time = llm_sessions.c.created_at.type
    values = _new_values()
    created = sa.func.coalesce(sa.bindparam("created_at", type_=time), sa.func.now())
    queried = sa.func.coalesce(sa.bindparam("last_query_at", type_=time), created)
    values |= {
        "state": sa.literal_column("'ACTIVE'"),
        "head_branch": branch.c.branch_id,
        "created_at": created,
        "last_query_at": queried,
        "seen_at": queried,
        # The idle time starts at the import: the session has not been idle here.
        "due_at": sa.func.now() + values["idle_timeout"],
    }
    source = sa.select(*values.values()).select_from(branch)
    inserted = (
        sa.insert(llm_sessions)
        .from_select(list(values), source)
        .returning(llm_sessions.c.session_id)
        .cte("made")
    )
    return compiled(lambda: sa.select(inserted.c.session_id), lambda row: str(row[0]))


_CREATE_IMPORTED = _create_imported()


def _of_session(query: Any) -> Any:
    """The query, limited to the session of the binds `tenant` and `session_id`. Any: a select or an
    update.
    """
    return query.where(
        llm_sessions.c.tenant == sa.bindparam("tenant"),
        llm_sessions.c.session_id == sa.bindparam("session_id"),
    )


def _get(*, context: bool) -> Any:
    return _of_session(sa.select(*session_columns(context=context)))


_GET = {
    context: compiled(partial(_get, context=context), make_session) for context in (True, False)
}
_LOCK = compiled(
    lambda: _of_session(sa.select(*session_columns(context=True))).with_for_update(), make_session
)
_retention: sa.BindParameter[Any] = sa.bindparam("retention", type_=sa.Interval)
_END = compiled(
    lambda: (
        _of_session(sa.update(llm_sessions))
        .values(
            state=sa.literal_column("'ENDED'"),
            # A session that had ended keeps its times, unless the new purge time is earlier.
            ended_at=sa.func.coalesce(llm_sessions.c.ended_at, sa.func.now()),
            purge_at=sa.func.least(llm_sessions.c.purge_at, sa.func.now() + _retention),
        )
        .returning(*session_columns())
    ),
    make_session,
)
_UNDELETE = compiled(
    lambda: (
        _of_session(sa.update(llm_sessions))
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
        .returning(*session_columns())
    ),
    make_session,
)
_MOVE_HEAD = compiled(
    lambda: (
        _of_session(sa.update(llm_sessions))
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
        .returning(*session_columns())
    ),
    make_session,
)


async def create(
    database: Database, request: Request, session_id: str, new: NewSession
) -> AgentSession:
    """Create a session: one round trip.

    Raises psycopg.errors.UniqueViolation (constraint `llm_sessions_pkey` or `llm_requests_pkey`).
    """
    params = {
        **_new_parameters(request.tenant, session_id, new),
        **requests.parameters(request, session_id),
    }
    statement = _create(with_request_id=request.request_id is not None)
    inserted = await database.fetch_one(statement, params)
    if inserted is None:
        raise AssertionError("INSERT … RETURNING returns a row")
    return inserted


async def create_imported(database: Database, tenant: str, imported: ImportedSession) -> bool:
    """Create a session of a dump; False if the tenant has a session of its id."""
    params = _new_parameters(tenant, imported.session_id, imported.new)
    params |= {"created_at": imported.created_at, "last_query_at": imported.last_query_at}
    try:
        await database.fetch_one(_CREATE_IMPORTED, params)
    except psycopg.errors.UniqueViolation:
        return False
    return True


async def get(
    database: Database, tenant: str, session_id: str, *, context: bool = False
) -> AgentSession | None:
    """The tenant's session, or None; `context` reads the startup context too."""
    return await database.fetch_one(_GET[context], {"tenant": tenant, "session_id": session_id})


async def lock(connection: Connection, tenant: str, session_id: str) -> AgentSession | None:
    """The tenant's session, its row locked until the transaction ends; None if there is none."""
    return await one(connection, _LOCK, {"tenant": tenant, "session_id": session_id})


async def end(
    connection: Connection, tenant: str, session_id: str, retention: timedelta
) -> AgentSession | None:
    """End the session, to be purged after `retention`. None if there is none."""
    params = {"tenant": tenant, "session_id": session_id, "retention": retention}
    return await one(connection, _END, params)


async def undelete(connection: Connection, tenant: str, session_id: str) -> AgentSession | None:
    """Make the session ACTIVE; None if there is none, or if its retention is over."""
    return await one(connection, _UNDELETE, {"tenant": tenant, "session_id": session_id})


async def move_head(
    connection: Connection,
    tenant: str,
    session_id: str,
    branch_id: int,
    turn_count: int,
    sums: tuple[int, int, int],
) -> AgentSession:
    """Make turn `turn_count` of the branch the session's head. The session's row must be locked.

    `sums`: tokens, estimated tokens and bytes of the conversation up to this turn.
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
        raise AssertionError("the session's row is locked, so it exists")
    return moved
