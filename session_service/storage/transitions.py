"""Writing changes of a session: what its transition is, what becomes of it, what its owner notes.

Every write is a compare-and-set on the session's `epoch`. Whoever holds an older epoch changes
nothing, neither the session nor its container nor its decision.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

import psycopg
import sqlalchemy as sa

from session_service import points
from session_service.domain.states import State
from session_service.storage.assignments import NOW, Shape, expressions, parameters, shape
from session_service.storage.database import Connection, Database, Statement, compiled, one
from session_service.storage.ends import end_insert, end_removal
from session_service.storage.events import event_insert, event_parameters
from session_service.storage.notifications import notice
from session_service.storage.rows import make_session, session_columns
from session_service.storage.tables import containers, decisions, sessions

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import timedelta
    from uuid import UUID

    from session_service.domain.session import Session

#: What a settled row no longer has.
SETTLED: Mapping[str, object] = {
    "transition": None,
    "prior_state": None,
    "owner": None,
    "lease_until": None,
    "deadline": None,
    "decision_id": None,
    "wish": None,
    "successor_id": None,
    "failure_count": 0,
}


@dataclass(frozen=True, slots=True)
class Change:
    """A write fenced by (session_id, epoch): columns of the session, of the container of its
    current generation, and of the decision that its transition answers.
    """

    session_id: UUID
    epoch: int
    session: Mapping[str, object] = field(default_factory=dict)
    container: Mapping[str, object] = field(default_factory=dict)
    decision: Mapping[str, object] = field(default_factory=dict)
    decision_id: UUID | None = None
    advance: bool = True
    """Whether the epoch moves: everything but notes that its owner takes on the way."""
    event: str | None = None
    """A word for what happened; where none is given a move of state is told by the state's name."""
    details: Mapping[str, str] = field(default_factory=dict)
    """What the event tells beside that."""
    idle_for: timedelta | None = None
    """Writes only if nobody was there for so long and no hold is in force, by the row as it is at
    the very moment of the write: activity that lands in between wins."""

    @property
    def told(self) -> bool:
        """Whether it leaves an event."""
        return self.event is not None or "state" in self.session

    @property
    def end(self) -> bool | None:
        """Whether it ends the session, or takes its end back; None for neither."""
        if self.session.get("state") is State.ENDED:
            return True
        return False if self.session.get("end_time", NOW) is None else None


@lru_cache(maxsize=256)
def _statement(
    session: Shape,
    container: Shape,
    decision: Shape,
    *,
    advance: bool,
    told: bool,
    idle: bool,
    end: bool | None,
) -> Statement[Session]:
    """The one statement of a change of this shape: fenced update, what hangs on it, the notice."""
    assigned = expressions(sessions, session, "s_")
    if advance:
        assigned["epoch"] = sessions.c.epoch + 1
        assigned["change_time"] = sa.func.now()
    if told:
        assigned["event_sequence"] = sessions.c.event_sequence + 1
    if not assigned:
        assigned["epoch"] = sessions.c.epoch
    fenced = (
        sa.update(sessions)
        .where(
            sessions.c.session_id == sa.bindparam("session_id", type_=sessions.c.session_id.type),
            sessions.c.epoch == sa.bindparam("epoch", type_=sa.BigInteger),
            *(_idle() if idle else ()),
        )
        .values(**assigned)
        .returning(*session_columns())
        .cte("fenced")
    )
    query = sa.select(*session_columns(fenced), notice(fenced.c.session_id))
    if told:
        query = query.add_cte(event_insert(fenced))
    if container:
        query = query.add_cte(_container_update(fenced, container))
    if decision:
        query = query.add_cte(_decision_update(fenced, decision))
    if end is not None:
        query = query.add_cte(end_insert(fenced) if end else end_removal(fenced))
    return compiled(query, make_session)


def _idle() -> list[sa.ColumnElement[bool]]:
    """Nobody there, and nothing that holds: columns of the row itself, so that a write that waited
    for another's lock compares what that one left.
    """
    since = sa.func.now() - sa.bindparam("idle_for", type_=sa.Interval)
    held = sessions.c.hold_until
    return [sessions.c.last_active_time <= since, held.is_(None) | (held <= sa.func.now())]


def _container_update(fenced: sa.CTE, form: Shape) -> sa.CTE:
    return (
        sa.update(containers)
        .where(
            containers.c.session_id == fenced.c.session_id,
            containers.c.generation == fenced.c.generation,
        )
        .values(**expressions(containers, form, "c_"))
        .cte("container")
    )


def _decision_update(fenced: sa.CTE, form: Shape) -> sa.CTE:
    bind = sa.bindparam("d_id", type_=decisions.c.decision_id.type)
    return (
        sa.update(decisions)
        .where(decisions.c.decision_id == bind, sa.exists(sa.select(fenced.c.session_id)))
        .values(**expressions(decisions, form, "d_"))
        .cte("decided")
    )


async def apply(connection: Connection, change: Change) -> Session | None:
    """Write a change; None where its epoch is no longer the session's, and nothing was written."""
    decided = change.decision if change.decision_id is not None else {}
    statement = _statement(
        shape(change.session),
        shape(change.container),
        shape(decided),
        advance=change.advance,
        told=change.told,
        idle=change.idle_for is not None,
        end=change.end,
    )
    params: dict[str, object] = {
        "session_id": change.session_id,
        "epoch": change.epoch,
        **parameters(change.session, "s_"),
        **parameters(change.container, "c_"),
        **parameters(decided, "d_"),
    }
    if decided:
        params["d_id"] = change.decision_id
    if change.told:
        params.update(event_parameters(change.event, change.details))
    if change.idle_for is not None:
        params["idle_for"] = change.idle_for
    return await one(connection, statement, params)


async def write(database: Database, change: Change) -> Session | None:
    """`apply` in a transaction of its own, which is its statement: one round trip."""
    return await points.around("outcome" if change.advance else "note", _write(database, change))


async def _write(database: Database, change: Change) -> Session | None:
    async with database.connection() as connection:
        return await apply(connection, change)


async def write_all(database: Database, changes: list[Change]) -> list[Session] | None:
    """Several changes in one transaction, in order; None and nothing written where one is fenced
    off. Raises psycopg.errors.UniqueViolation where a key would get two live sessions.
    """
    return await points.around("outcome", _write_all(database, changes))


async def _write_all(database: Database, changes: list[Change]) -> list[Session] | None:
    written: list[Session] = []
    async with database.transaction() as connection:
        for change in changes:
            session = await apply(connection, change)
            if session is None:
                raise psycopg.Rollback
            written.append(session)
    return written if len(written) == len(changes) else None


def finished(**values: object) -> dict[str, object]:
    """A decision's last word, stamped with the database's time."""
    return {"finish_time": NOW, **values}
