"""Reading sessions, and the hot path's one statement."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import psycopg
import sqlalchemy as sa

from session_service.storage.database import Also, Database, Statement, compiled, one
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


def reuse_statement(
    *conditions: sa.ColumnElement[bool], **more: sa.ColumnElement[Any]
) -> sa.Select[Any]:
    """Touch an ACTIVE session that satisfies the conditions, and append the finished decision.

    One statement and one round trip; no row where no session satisfies them. It moves no indexed
    column, so that the update stays heap-only, and notifies nobody, since a NOTIFY takes a lock
    that all commits of the cluster share. `more` are further columns to set. Any: of every type.
    """
    touched = (
        sa.update(sessions)
        .where(sessions.c.state == ACTIVE, *conditions)
        .values(
            last_active_time=sa.func.now(),
            start_count=sessions.c.start_count + 1,
            loss_untold=sa.false(),
            **more,
        )
        .returning(*session_columns())
        .cte("touched")
    )
    values = inserted_values(finished=True)
    values["session_id"] = touched.c.session_id
    values["project_id"] = touched.c.project_id
    source = sa.select(*values.values()).select_from(touched)
    appended = sa.insert(decisions).from_select(list(values), source).cte("appended")
    return record_query(touched).add_cte(appended)


@dataclass(frozen=True, slots=True)
class Gate:
    """What a session's row must say of its policy for the hot path to answer without reading what
    is in force: that nothing of it waits to be applied, and that it does not mind this start.
    """

    base: str
    """Which defaults of the operator it must be made of."""
    named: bool = False
    """Whether the start names its mode; else the policy must not be one that decides otherwise."""
    fingerprint: str | None = None
    """That of the spec that is asked for, which matters unless a change is allowed."""
    asked: str | None = None
    """What the start asks for less of, as JSON: it must be what the row was made of."""


@lru_cache(maxsize=8)
def _hot(*, named: bool, spec: bool, asked: bool) -> Statement[Record]:
    # Any: conditions in SQLAlchemy's words, and in SQL's.
    policy = sessions.c.policy
    conditions: list[Any] = [
        *at_key(),
        sessions.c.verified_at > sa.func.now() - sa.bindparam("freshness", type_=sa.Interval),
        sa.not_(sessions.c.loss_untold),
        sa.text("sessions.policy ->> 'base' = :base").bindparams(
            sa.bindparam("base", type_=sa.Text)
        ),
        sa.text("sessions.policy -> 'stale' IS NULL"),
    ]
    if not named:
        conditions.append(sa.text("sessions.policy ->> 'persistence' NOT IN ('EPHEMERAL', 'ASK')"))
    if spec:
        same = sessions.c.fingerprint == sa.bindparam("fingerprint", type_=sa.Text)
        allowed = sa.text("sessions.policy ->> 'on_fingerprint_change' = 'ALLOW'")
        conditions.append(sa.or_(same, allowed))
    if asked:
        conditions.append(policy["asked"] == sa.bindparam("asked", type_=policy.type))
    return compiled(reuse_statement(*conditions), make_record)


_AT_EPOCH = (sessions.c.session_id == _id(), sessions.c.epoch == sa.bindparam("epoch"))
_REUSE = compiled(reuse_statement(*_AT_EPOCH), make_record)
# Another policy is a change like any other; when the keeper looks next may be another time now.
_REUSE_ANEW = compiled(
    reuse_statement(
        *_AT_EPOCH,
        policy=sa.bindparam("policy", type_=sessions.c.policy.type),
        due_at=sa.func.now(),
        epoch=sessions.c.epoch + 1,
        change_time=sa.func.now(),
    ),
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
    database: Database, key: Key, freshness: timedelta, decision: NewDecision, gate: Gate
) -> Record | None:
    """The hot path: answer with the session at the key if it was seen running lately, and its
    policy lets it through.

    None where there is no such session, or where the decision's request id is taken: then the slow
    path finds out which.
    """
    statement = _hot(
        named=gate.named, spec=gate.fingerprint is not None, asked=gate.asked is not None
    )
    params: dict[str, Any] = {
        **decision.parameters(),
        **key_parameters(key),
        "freshness": freshness,
        "base": gate.base,
    }
    if gate.fingerprint is not None:
        params["fingerprint"] = gate.fingerprint
    if gate.asked is not None:
        params["asked"] = gate.asked
    try:
        return await database.fetch_one(statement, params)
    except psycopg.errors.UniqueViolation:
        return None


async def reuse(
    database: Database,
    session_id: UUID,
    epoch: int,
    decision: NewDecision,
    policy: str | None = None,
    also: Also | None = None,
) -> Record | None:
    """Answer with a session that was just verified, `policy` being what its row is to say from now
    on (None: what it says). None where it has changed since, where the decision's request id is
    taken, or where `also` says so.
    """
    params: dict[str, Any] = {
        **decision.parameters(),
        "session_id": session_id,
        "epoch": epoch,
    }
    statement = _REUSE
    if policy is not None:
        statement = _REUSE_ANEW
        params["policy"] = policy
    record = None
    try:
        if also is None:
            return await database.fetch_one(statement, params)
        async with database.transaction() as connection:
            record = await one(connection, statement, params)
            if record is not None and not await also(connection):
                record = None
                raise psycopg.Rollback
    except psycopg.errors.UniqueViolation:
        return None
    return record


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
