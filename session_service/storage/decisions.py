"""Queries on decisions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import psycopg
import sqlalchemy as sa

from session_service.domain.decision import Decision, Request
from session_service.storage.connections import PATIENT
from session_service.storage.database import Also, Connection, Database, compiled, one
from session_service.storage.rows import decision_columns, make_decision, scalar
from session_service.storage.tables import decisions, sessions
from session_service.storage.trimming import trimming

if TYPE_CHECKING:
    from datetime import datetime, timedelta
    from uuid import UUID

    from session_service.domain.session import Continuity, Mode, Outcome

#: What a new row is given; the rest has defaults.
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


@dataclass(frozen=True, slots=True)
class NewDecision:
    """A decision to be appended. `finished` says that it is its last word."""

    decision_id: UUID
    request: Request
    rule: str
    explanation: str
    session_id: UUID | None = None
    mode: Mode | None = None
    outcome: Outcome | None = None
    continuity: Continuity | None = None
    continuity_verified: bool = False
    joined: bool = False
    leader_decision_id: UUID | None = None
    attempts: str = "[]"
    error: str | None = None
    inputs: str = "{}"
    finished: bool = False
    project_id: str | None = None
    """Whose project it is about, where no session of its own says so."""

    def about(self, session_id: UUID) -> NewDecision:
        """The same, about this session."""
        return replace(self, session_id=session_id)

    def parameters(self) -> dict[str, Any]:
        """Bind values, named `d_` + column. Any: columns of every type."""
        return {
            "d_decision_id": self.decision_id,
            "d_tenant": self.request.tenant,
            "d_session_id": self.session_id,
            "d_method": self.request.method,
            "d_mode": self.mode,
            "d_rule": self.rule,
            "d_explanation": self.explanation,
            "d_outcome": self.outcome,
            "d_continuity": None if self.continuity is None else int(self.continuity),
            "d_continuity_verified": self.continuity_verified,
            "d_joined": self.joined,
            "d_leader_decision_id": self.leader_decision_id,
            "d_attempts": self.attempts,
            "d_error": self.error,
            "d_request_id": self.request.request_id,
            "d_request_hash": self.request.request_hash,
            "d_inputs": self.inputs,
            "d_project_id": self.project_id,
        }


def inserted_values(*, finished: bool) -> dict[str, sa.ColumnElement[Any]]:
    """The columns of a new row as binds; `finished` stamps it with the database's time."""
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


_INSERT = {
    finished: compiled(
        sa.insert(decisions)
        .values(**inserted_values(finished=finished))
        .returning(*decision_columns()),
        make_decision,
    )
    for finished in (True, False)
}
_BY_ID = compiled(
    sa.select(*decision_columns()).where(
        decisions.c.decision_id == sa.bindparam("decision_id", type_=decisions.c.decision_id.type)
    ),
    make_decision,
)
_BY_REQUEST = compiled(
    sa.select(*decision_columns()).where(
        decisions.c.tenant == sa.bindparam("tenant"),
        decisions.c.method == sa.bindparam("method"),
        decisions.c.request_id == sa.bindparam("request_id", type_=decisions.c.request_id.type),
    ),
    make_decision,
)


#: How long a request id counts (AIP-155 leaves it to the service; the contract says 24 hours).
_ID_KEPT = sa.text("interval '24 hours'")
_FREE = compiled(
    sa.update(decisions)
    .where(
        decisions.c.decision_id == sa.bindparam("decision_id", type_=decisions.c.decision_id.type),
        decisions.c.create_time < sa.func.now() - _ID_KEPT,
        decisions.c.finish_time.is_not(None),
    )
    .values(request_id=sa.null())
    .returning(decisions.c.decision_id),
    scalar(str),
)
_REPLAYED = compiled(
    sa.update(decisions)
    .where(
        decisions.c.decision_id == sa.bindparam("decision_id", type_=decisions.c.decision_id.type)
    )
    .values(replay_count=decisions.c.replay_count + 1)
    .returning(decisions.c.replay_count),
    scalar(int),
)
_TRIM = trimming(
    decisions.c.decision_id,
    decisions.c.create_time < sa.func.now() - sa.bindparam("age", type_=sa.Interval),
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
        _page_statement(of_session=of_session, after=after), make_decision
    )
    for of_session in (True, False)
    for after in (True, False)
}


async def insert(connection: Connection, decision: NewDecision) -> Decision:
    """Append a decision. Raises psycopg.errors.UniqueViolation (index `decisions_request`)."""
    row = await one(connection, _INSERT[decision.finished], decision.parameters())
    if row is None:
        raise AssertionError("an INSERT … RETURNING gives a row")
    return row


async def append(database: Database, decision: NewDecision) -> Decision:
    """Append a decision in a transaction of its own; see `insert`."""
    async with database.connection() as connection:
        return await insert(connection, decision)


async def append_once(
    database: Database, decision: NewDecision, also: Also | None = None
) -> Decision | None:
    """Append a decision, with what else belongs to it; None where its request id is taken or `also`
    says so, and nothing was written.
    """
    if also is None:
        try:
            return await append(database, decision)
        except psycopg.errors.UniqueViolation:
            return None
    written = None
    try:
        async with database.transaction() as connection:
            written = await insert(connection, decision)
            if not await also(connection):
                written = None
                raise psycopg.Rollback
    except psycopg.errors.UniqueViolation:
        return None
    return written


def as_written(decision: NewDecision, now: datetime) -> Decision:
    """The row that a statement wrote of a finished decision, without reading it back."""
    request = decision.request
    return Decision(
        decision.decision_id,
        request.tenant,
        decision.session_id,
        request.method,
        decision.mode,
        decision.rule,
        decision.explanation,
        decision.outcome,
        decision.continuity,
        decision.continuity_verified,
        decision.joined,
        decision.leader_decision_id,
        decision.attempts,
        decision.error,
        request.request_id,
        request.request_hash,
        decision.inputs,
        now,
        now,
    )


async def get(database: Database, decision_id: UUID) -> Decision | None:
    """The decision, or None."""
    return await database.fetch_one(_BY_ID, {"decision_id": decision_id})


async def of_request(database: Database, request: Request) -> Decision | None:
    """The decision that this request id made earlier, finished or in flight; None without one.

    An id that came more than 24 hours ago is free again: it is freed here, when it comes anew, so
    that no pass over all rows is needed for it.
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
    """Note that a call was answered with this decision once more."""
    await database.fetch_one(_REPLAYED, {"decision_id": decision_id})


async def trim(database: Database, age: timedelta, most: int) -> int:
    """Delete up to `most` decisions older than this; how many."""
    return await database.fetch_one(_TRIM, {"age": age, "most": most}, PATIENT) or 0


async def page(
    database: Database, tenant: str, session_id: UUID | None, last: UUID | None, size: int
) -> list[Decision]:
    """Up to `size` decisions, newest first, older than `last`."""
    statement = _PAGES[session_id is not None, last is not None]
    params = {"tenant": tenant, "session_id": session_id, "last": last, "size": size}
    return await database.fetch_all(statement, params)
