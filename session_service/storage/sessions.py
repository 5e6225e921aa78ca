"""Reading sessions, and the hot path's one statement."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import sqlalchemy as sa

from session_service.storage.database import Database, compiled, one
from session_service.storage.decisions import NewDecision, inserted_values
from session_service.storage.rows import container_columns, make_record, session_columns
from session_service.storage.tables import containers, decisions, sessions

if TYPE_CHECKING:
    from datetime import timedelta
    from uuid import UUID

    from session_service.domain.session import Key, Record

#: Literal, so that the planner can prove that the partial index covers it.
ACTIVE: sa.ColumnElement[str] = sa.literal_column("'ACTIVE'")
LIVE = sa.text("sessions.state IN ('STARTING', 'ACTIVE', 'PAUSING', 'PAUSED')")


def record_query(source: sa.FromClause = sessions) -> sa.Select[Any]:
    """Sessions of `source` with their current containers and the database's time."""
    joined = source.outerjoin(
        containers,
        (containers.c.session_id == source.c.session_id)
        & (containers.c.generation == source.c.generation),
    )
    now = sa.func.now().label("now")
    return sa.select(*session_columns(source), *container_columns(), now).select_from(joined)


def at_key() -> list[sa.ColumnElement[bool]]:
    """The conditions that name a key, as binds."""
    return [
        sessions.c[name] == sa.bindparam(name)
        for name in ("tenant", "project_id", "user_id", "slot")
    ]


def key_parameters(key: Key) -> dict[str, str]:
    """The values of `at_key`'s binds."""
    return {
        "tenant": key.tenant,
        "project_id": key.project_id,
        "user_id": key.user_id,
        "slot": key.slot,
    }


def _id(name: str = "session_id") -> sa.BindParameter[Any]:
    return sa.bindparam(name, type_=sessions.c.session_id.type)


def reuse_statement(*conditions: sa.ColumnElement[bool]) -> sa.Select[Any]:
    """Touch an ACTIVE session that satisfies the conditions, and append the finished decision.

    One statement and one round trip; no row where no session satisfies them. It moves no indexed
    column, so that the update stays heap-only, and notifies nobody, since a NOTIFY takes a lock
    that all commits of the cluster share.
    """
    touched = (
        sa.update(sessions)
        .where(sessions.c.state == ACTIVE, *conditions)
        .values(
            last_active_time=sa.func.now(),
            start_count=sessions.c.start_count + 1,
            loss_untold=sa.false(),
        )
        .returning(*session_columns())
        .cte("touched")
    )
    values = inserted_values(finished=True)
    values["session_id"] = touched.c.session_id
    source = sa.select(*values.values()).select_from(touched)
    appended = sa.insert(decisions).from_select(list(values), source).cte("appended")
    return record_query(touched).add_cte(appended)


_HOT = compiled(
    reuse_statement(
        *at_key(),
        sessions.c.verified_at > sa.func.now() - sa.bindparam("freshness", type_=sa.Interval),
        sa.not_(sessions.c.loss_untold),
    ),
    make_record,
)
_REUSE = compiled(
    reuse_statement(sessions.c.session_id == _id(), sessions.c.epoch == sa.bindparam("epoch")),
    make_record,
)
_LIVE_AT = compiled(record_query().where(*at_key(), LIVE), make_record)
_BY_ID = compiled(
    record_query().where(
        sessions.c.session_id == _id(), sessions.c.tenant == sa.bindparam("tenant")
    ),
    make_record,
)
_ANY_TENANT = compiled(record_query().where(sessions.c.session_id == _id()), make_record)
_TOUCH = compiled(
    record_query(
        sa.update(sessions)
        .where(
            sessions.c.session_id == _id(),
            sessions.c.tenant == sa.bindparam("tenant"),
            # While it is being paused, too: the pause then lets go of it.
            sa.text("sessions.state IN ('ACTIVE', 'PAUSING')"),
        )
        .values(
            last_active_time=sa.func.now(),
            activity=sa.func.coalesce(
                sa.func.nullif(sa.bindparam("activity", type_=sa.Text), ""), sessions.c.activity
            ),
        )
        .returning(*session_columns())
        .cte("touched")
    ),
    make_record,
)


async def reuse_at(
    database: Database, key: Key, freshness: timedelta, decision: NewDecision
) -> Record | None:
    """The hot path: answer with the session at the key if it was seen running lately.

    None where there is no such session, or where the decision's request id is taken: then the slow
    path finds out which.
    """
    params = {**decision.parameters(), **key_parameters(key), "freshness": freshness}
    try:
        return await database.fetch_one(_HOT, params)
    except psycopg.errors.UniqueViolation:
        return None


async def reuse(
    database: Database, session_id: UUID, epoch: int, decision: NewDecision
) -> Record | None:
    """Answer with a session that was just verified; None where it has changed since, or where
    the decision's request id is taken.
    """
    params = {**decision.parameters(), "session_id": session_id, "epoch": epoch}
    try:
        return await database.fetch_one(_REUSE, params)
    except psycopg.errors.UniqueViolation:
        return None


async def live_at(database: Database, key: Key) -> Record | None:
    """The live session at the key, or None."""
    return await database.fetch_one(_LIVE_AT, key_parameters(key))


async def get(database: Database, tenant: str, session_id: UUID) -> Record | None:
    """The tenant's session, or None."""
    return await database.fetch_one(_BY_ID, {"session_id": session_id, "tenant": tenant})


async def find(database: Database, session_id: UUID) -> Record | None:
    """The session of whatever tenant, or None: for whoever carries transitions out."""
    return await database.fetch_one(_ANY_TENANT, {"session_id": session_id})


async def touch(
    database: Database, tenant: str, session_id: UUID, activity: str = ""
) -> Record | None:
    """Move `last_active_time` of a running session; any other is given back as it is."""
    params = {"session_id": session_id, "tenant": tenant, "activity": activity}
    async with database.connection() as connection:
        touched = await one(connection, _TOUCH, params)
        if touched is not None:
            return touched
        return await one(connection, _BY_ID, params)
