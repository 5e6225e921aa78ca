"""Read sessions by id and by key; and the one statement of the hot path (a reuse).

`make_session`, `make_container` and `make_record` build the domain's values from rows. The columns
of a row are in the order of the dataclass's fields.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import psycopg
import sqlalchemy as sa

from session_service.domain.session import (
    Cause,
    Container,
    ContainerState,
    Continuity,
    EndReason,
    PauseDepth,
    Record,
    Session,
)
from session_service.domain.states import State, Transition
from session_service.storage.database import (
    Connection,
    Database,
    Statement,
    compiled,
    one,
    typed_row,
)
from session_service.storage.session.decisions import inserted_parameters, inserted_values
from session_service.storage.tables import LIVE_STATES, containers, decisions, sessions

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta
    from enum import Enum
    from uuid import UUID

    from session_service.domain.decision import Decision
    from session_service.domain.session import Key


def _position(kind: type, name: str) -> int:
    return [field.name for field in fields(kind)].index(name)


def _names(kind: type) -> list[str]:
    return [field.name for field in fields(kind)]


SESSION_NAMES = _names(Session)
CONTAINER_NAMES = _names(Container)

_SESSION_ENUMS: list[tuple[int, type[Enum]]] = [
    (_position(Session, "state"), State),
    (_position(Session, "transition"), Transition),
    (_position(Session, "prior_state"), State),
    (_position(Session, "pause_depth"), PauseDepth),
    (_position(Session, "end_reason"), EndReason),
    (_position(Session, "cause"), Cause),
    (_position(Session, "untold_continuity"), Continuity),
]
_CONTAINER_ENUMS: list[tuple[int, type[Enum]]] = [(_position(Container, "state"), ContainerState)]


def session_columns(source: sa.FromClause = sessions) -> list[sa.ColumnElement[Any]]:
    """The session columns of `source`, in the order that `make_session` reads."""
    return [source.c[name] for name in SESSION_NAMES]


def container_columns(source: sa.FromClause = containers) -> list[sa.ColumnElement[Any]]:
    """The container columns of `source`, labelled so that they do not clash with the session's."""
    return [source.c[name].label(f"container__{name}") for name in CONTAINER_NAMES]


def make_session(row: Sequence[Any]) -> Session:
    """Build a session from its columns."""
    return Session(*typed_row(row[: len(SESSION_NAMES)], _SESSION_ENUMS))


def make_container(row: Sequence[Any]) -> Container:
    """Build a container from its columns."""
    return Container(*typed_row(row[: len(CONTAINER_NAMES)], _CONTAINER_ENUMS))


def make_record(row: Sequence[Any]) -> Record:
    """Build a record from session columns, container columns (all NULL if there is no container)
    and the database's time.
    """
    middle = len(SESSION_NAMES)
    end = middle + len(CONTAINER_NAMES)
    container = None if row[middle] is None else make_container(row[middle:end])
    return Record(make_session(row), container, row[end])


#: A literal and not a bind, so that the planner can prove that a partial index covers it.
ACTIVE: sa.ColumnElement[str] = sa.literal_column("'ACTIVE'")
LIVE = sa.text(f"sessions.state IN ({LIVE_STATES})")


def record_columns(source: sa.FromClause = sessions) -> list[sa.ColumnElement[Any]]:
    """The columns that `make_record` reads, where `source` is joined to the containers."""
    now = sa.func.now().label("now")
    return [*session_columns(source), *container_columns(), now]


def record_query(source: sa.FromClause = sessions) -> sa.Select[Any]:
    """Sessions of `source` with their current containers and the database's time."""
    joined = source.outerjoin(
        containers,
        (containers.c.session_id == source.c.session_id)
        & (containers.c.generation == source.c.generation),
    )
    return sa.select(*record_columns(source)).select_from(joined)


def at_key() -> list[sa.ColumnElement[bool]]:
    """The conditions that select a key, with binds for its parts."""
    return [
        sessions.c[name] == sa.bindparam(name)
        for name in ("tenant", "project_id", "user_id", "slot")
    ]


def key_parameters(key: Key) -> dict[str, str]:
    """The values of the binds of `at_key`."""
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
    """Record a start of an ACTIVE session that satisfies the conditions, and append the finished
    decision.

    One statement and one round trip. It returns no row if no session satisfies the conditions. It
    changes no indexed column, so that the update is a heap-only one. It sends no notification,
    because a commit with a NOTIFY takes a lock that all such commits of the cluster share. `more`
    are further columns to set. Any: columns of every type.
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
    """The conditions on the policy in a session's row under which the hot path may answer without
    reading the policy tables: no change of the policy is waiting to be applied, and the policy
    allows this start.
    """

    base: str
    """The version of the operator's defaults that the row's policy must be built from."""
    named: bool = False
    """Whether the start names its mode. Without one the policy's persistence decides, and must be
    neither EPHEMERAL nor ASK."""
    fingerprint: str | None = None
    """The fingerprint of the requested spec: it must be the row's, unless the policy allows a
    change. None if the start names no spec."""
    asked: str | None = None
    """The policy settings that the start asks for, as JSON: they must be those that the row's
    policy was built with. None if it asks for none."""


@lru_cache(maxsize=8)
def _hot(*, named: bool, spec: bool, asked: bool) -> Statement[Record]:
    # Any: the list mixes column expressions and SQL text.
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
    return compiled(lambda: reuse_statement(*conditions), make_record)


_AT_EPOCH = (sessions.c.session_id == _id(), sessions.c.epoch == sa.bindparam("epoch"))
_REUSE = compiled(lambda: reuse_statement(*_AT_EPOCH), make_record)
# A new policy is a change: the epoch advances. The session is due now, because the next action of
# the due pass may have another time under the new policy.
_REUSE_WITH_POLICY = compiled(
    lambda: reuse_statement(
        *_AT_EPOCH,
        policy=sa.bindparam("policy", type_=sessions.c.policy.type),
        due_at=sa.func.now(),
        epoch=sessions.c.epoch + 1,
        change_time=sa.func.now(),
    ),
    make_record,
)
_LIVE_AT = compiled(lambda: record_query().where(*at_key(), LIVE), make_record)
_BY_ID = compiled(
    lambda: record_query().where(
        sessions.c.session_id == _id(), sessions.c.tenant == sa.bindparam("tenant")
    ),
    make_record,
)
_ANY_TENANT = compiled(lambda: record_query().where(sessions.c.session_id == _id()), make_record)
_TOUCH = compiled(
    lambda: record_query(
        sa.update(sessions)
        .where(
            sessions.c.session_id == _id(),
            sessions.c.tenant == sa.bindparam("tenant"),
            # Also while the session is being paused: the pause is then given up.
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
    database: Database, key: Key, freshness: timedelta, decision: Decision, gate: Gate
) -> Record | None:
    """The hot path: return the session at the key if it was seen running within `freshness` and
    the gate's conditions hold, and append the decision.

    None if there is no such session, or if the decision's request id is taken. The slow path then
    determines which of the two it is.
    """
    statement = _hot(
        named=gate.named, spec=gate.fingerprint is not None, asked=gate.asked is not None
    )
    params: dict[str, Any] = {
        **inserted_parameters(decision),
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


@dataclass(frozen=True, slots=True)
class Reuse:
    """Record a start of a session that was just verified, and its decision, in one statement."""

    session_id: UUID
    epoch: int
    decision: Decision
    policy: str | None = None
    """The new policy of the session's row; None if it does not change."""

    async def apply(self, connection: Connection) -> Record | None:
        """Write it; None if the session has changed since it was read."""
        params: dict[str, Any] = {
            **inserted_parameters(self.decision),
            "session_id": self.session_id,
            "epoch": self.epoch,
        }
        if self.policy is None:
            return await one(connection, _REUSE, params)
        return await one(connection, _REUSE_WITH_POLICY, {**params, "policy": self.policy})


async def live_at(database: Database, key: Key) -> Record | None:
    """The live session at the key, or None."""
    return await database.fetch_one(_LIVE_AT, key_parameters(key))


async def get(database: Database, tenant: str, session_id: UUID) -> Record | None:
    """The tenant's session, or None."""
    return await database.fetch_one(_BY_ID, {"session_id": session_id, "tenant": tenant})


async def find(database: Database, session_id: UUID) -> Record | None:
    """The session of any tenant, or None. For an id from a row, never for one from a request."""
    return await database.fetch_one(_ANY_TENANT, {"session_id": session_id})


async def touch(
    database: Database, tenant: str, session_id: UUID, activity: str = ""
) -> Record | None:
    """Set `last_active_time` of an ACTIVE or PAUSING session to now, and its activity unless that
    is empty. A session in another state is returned unchanged; None if there is no such session.
    """
    params = {"session_id": session_id, "tenant": tenant, "activity": activity}
    async with database.connection() as connection:
        touched = await one(connection, _TOUCH, params)
        if touched is not None:
            return touched
        return await one(connection, _BY_ID, params)
