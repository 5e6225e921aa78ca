"""Queries on decisions."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
import sqlalchemy as sa

from session_service.domain.decision import Decision, Request
from session_service.domain.session import Continuity, Mode, Outcome
from session_service.storage.database import (
    BATCH_TIMEOUT,
    Connection,
    Database,
    compiled,
    one,
    scalar,
    trimming,
    typed_row,
)
from session_service.storage.session.retained import is_counted
from session_service.storage.tables import decisions, sessions

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from enum import Enum
    from uuid import UUID
DECISION_NAMES = (
    "decision_id", "tenant", "method", "request_hash", "request_id", "rule", "explanation",
    "session_id", "mode", "outcome", "continuity", "continuity_verified", "joined",
    "leader_decision_id", "attempts", "error", "inputs", "create_time", "finish_time",
)  # fmt: skip
_DECISION_ENUMS: list[tuple[int, type[Enum]]] = [
    (DECISION_NAMES.index("mode"), Mode),
    (DECISION_NAMES.index("outcome"), Outcome),
    (DECISION_NAMES.index("continuity"), Continuity),
]


def decision_columns() -> list[sa.ColumnElement[Any]]:
    """The decision's columns, in the order that `make_decision` reads."""
    return [decisions.c[name] for name in DECISION_NAMES]


def make_decision(row: Sequence[Any]) -> Decision:
    """Build a decision from its columns."""
    values = typed_row(row[: len(DECISION_NAMES)], _DECISION_ENUMS)
    decision_id, tenant, method, request_hash, request_id, *rest = values
    request = Request(tenant, method, request_hash, request_id)
    return Decision(*[decision_id, request, *rest, rest[-1] is not None])


#: The columns of a new row that the caller sets. `project_id` is computed, others have defaults.
INSERTED = (
    "decision_id",
    "tenant",
    "session_id",
    "method",
    "mode",
    "rule",
    "explanation",
    "outcome",
    "continuity",
    "continuity_verified",
    "joined",
    "leader_decision_id",
    "attempts",
    "error",
    "request_id",
    "request_hash",
    "inputs",
)


def inserted_parameters(decision: Decision) -> dict[str, Any]:
    """The bind values of `inserted_values`, named `d_` + column. Any: columns of every type."""
    request = decision.request
    return {
        "d_decision_id": decision.decision_id,
        "d_tenant": request.tenant,
        "d_session_id": decision.session_id,
        "d_method": request.method,
        "d_mode": decision.mode,
        "d_rule": decision.rule,
        "d_explanation": decision.explanation,
        "d_outcome": decision.outcome,
        "d_continuity": None if decision.continuity is None else int(decision.continuity),
        "d_continuity_verified": decision.continuity_verified,
        "d_joined": decision.joined,
        "d_leader_decision_id": decision.leader_decision_id,
        "d_attempts": decision.attempts,
        "d_error": decision.error,
        "d_request_id": request.request_id,
        "d_request_hash": request.request_hash,
        "d_inputs": decision.inputs,
        "d_project_id": decision.project_id,
    }


def inserted_values(*, finished: bool) -> dict[str, sa.ColumnElement[Any]]:
    """The columns of a new row as binds, named `d_` + column. `finished` sets `finish_time` to the
    database's time. A decision without a project gets the project of its session.
    """
    values: dict[str, sa.ColumnElement[Any]] = {
        name: sa.bindparam(f"d_{name}", type_=decisions.c[name].type) for name in INSERTED
    }
    values["project_id"] = sa.func.coalesce(
        sa.bindparam("d_project_id", type_=decisions.c.project_id.type),
        sa.select(sessions.c.project_id)
        .where(sessions.c.session_id == values["session_id"])
        .scalar_subquery(),
    )
    if finished:
        values["finish_time"] = sa.func.now()
    return values


def _insert(*, finished: bool) -> sa.ClauseElement:
    inserted = sa.insert(decisions).values(**inserted_values(finished=finished))
    return inserted.returning(*decision_columns())


_INSERT = {
    finished: compiled(partial(_insert, finished=finished), make_decision)
    for finished in (True, False)
}
_BY_ID = compiled(
    lambda: sa.select(*decision_columns()).where(
        decisions.c.decision_id == sa.bindparam("decision_id", type_=decisions.c.decision_id.type)
    ),
    make_decision,
)
_BY_REQUEST = compiled(
    lambda: sa.select(*decision_columns()).where(
        decisions.c.tenant == sa.bindparam("tenant"),
        decisions.c.method == sa.bindparam("method"),
        decisions.c.request_id == sa.bindparam("request_id", type_=decisions.c.request_id.type),
    ),
    make_decision,
)


#: How long a request id is remembered (AIP-155 leaves it to the service; the contract says 24 h).
_ID_KEPT = sa.text("interval '24 hours'")
_FREE = compiled(
    lambda: (
        sa.update(decisions)
        .where(
            decisions.c.decision_id
            == sa.bindparam("decision_id", type_=decisions.c.decision_id.type),
            decisions.c.create_time < sa.func.now() - _ID_KEPT,
            decisions.c.finish_time.is_not(None),
        )
        .values(request_id=sa.null())
        .returning(decisions.c.decision_id)
    ),
    scalar(str),
)
_REPLAYED = compiled(
    lambda: (
        sa.update(decisions)
        .where(
            decisions.c.decision_id
            == sa.bindparam("decision_id", type_=decisions.c.decision_id.type)
        )
        .values(replay_count=decisions.c.replay_count + 1)
        .returning(decisions.c.replay_count)
    ),
    scalar(int),
)
_TRIM = trimming(
    decisions.c.decision_id,
    lambda: is_counted(decisions.c.create_time),
)


def _page_statement(*, of_session: bool, after: bool) -> sa.Select[Any]:
    query = sa.select(*decision_columns()).where(decisions.c.tenant == sa.bindparam("tenant"))
    if of_session:
        bind = sa.bindparam("session_id", type_=decisions.c.session_id.type)
        query = query.where(decisions.c.session_id == bind)
    if after:
        last = sa.bindparam("last", type_=decisions.c.decision_id.type)
        query = query.where(decisions.c.decision_id < last)
    return query.order_by(decisions.c.decision_id.desc()).limit(sa.bindparam("size"))


_PAGES = {
    (of_session, after): compiled(
        partial(_page_statement, of_session=of_session, after=after), make_decision
    )
    for of_session in (True, False)
    for after in (True, False)
}


async def insert(connection: Connection, decision: Decision) -> Decision:
    """Append a decision. Raises psycopg.errors.UniqueViolation (index `decisions_request`)."""
    row = await one(connection, _INSERT[decision.finished], inserted_parameters(decision))
    if row is None:
        raise AssertionError("an INSERT … RETURNING gives a row")
    return row


async def append(database: Database, decision: Decision) -> Decision:
    """Append a decision in a transaction of its own; see `insert`."""
    async with database.connection() as connection:
        return await insert(connection, decision)


async def append_once(database: Database, decision: Decision) -> Decision | None:
    """Append a decision; None if its request id is taken, in which case nothing was written."""
    try:
        return await append(database, decision)
    except psycopg.errors.UniqueViolation:
        return None


async def get(database: Database, decision_id: UUID) -> Decision | None:
    """The decision, or None."""
    return await database.fetch_one(_BY_ID, {"decision_id": decision_id})


async def of_request(database: Database, request: Request) -> Decision | None:
    """The earlier decision with this request id, finished or in flight; None if there is none.

    A request id is free again 24 hours after its decision was created, if the decision is finished.
    It is freed here, when a request uses it again, so that no background pass has to do it.
    """
    if request.request_id is None:
        return None
    params = {
        "tenant": request.tenant,
        "method": request.method,
        "request_id": request.request_id,
    }
    found = await database.fetch_one(_BY_REQUEST, params)
    if found is None or await database.fetch_one(_FREE, {"decision_id": found.decision_id}):
        return None
    return found


async def count_replay(database: Database, decision_id: UUID) -> None:
    """Note that another call was answered with this decision."""
    await database.fetch_one(_REPLAYED, {"decision_id": decision_id})


async def trim(database: Database, before: datetime, most: int) -> int:
    """Delete up to `most` decisions from before this time; return how many."""
    return await database.fetch_one(_TRIM, {"older_than": before, "most": most}, BATCH_TIMEOUT) or 0


async def page(
    database: Database, tenant: str, session_id: UUID | None, last: UUID | None, size: int
) -> list[Decision]:
    """Up to `size` decisions, newest first; of one session if it is given, and older than the
    decision `last` if that is given.
    """
    statement = _PAGES[session_id is not None, last is not None]
    params = {"tenant": tenant, "session_id": session_id, "last": last, "size": size}
    return await database.fetch_all(statement, params)
