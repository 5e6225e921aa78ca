"""Writing transitions: the intent before the provider is called, the outcome after.

Every write is a compare-and-set on the session's `epoch`. Whoever holds an older epoch changes
nothing, neither the session nor its container nor its decision.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import psycopg
import sqlalchemy as sa

from session_service import points
from session_service.domain.states import State
from session_service.storage import decisions as decision_rows
from session_service.storage.assignments import (
    NOW,
    Now,
    Plus,
    Shape,
    expressions,
    parameters,
    shape,
)
from session_service.storage.database import Also, Connection, Database, Statement, compiled, one
from session_service.storage.ends import end_insert, end_removal
from session_service.storage.quotas import Quota, held_to
from session_service.storage.rows import make_session, session_columns
from session_service.storage.tables import (
    LIVE_KEY,
    containers,
    decisions,
    session_events,
    sessions,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import timedelta
    from uuid import UUID

    from session_service.domain.session import Session
    from session_service.storage.decisions import NewDecision

#: The live key's own predicate, in the words of its index.
LIVE_INDEX = sa.text("state IN ('STARTING', 'ACTIVE', 'PAUSING', 'PAUSED')")
#: Who waits for a session listens here; the payload is its id.
CHANNEL = "roost_session"


class LiveKeyTaken(Exception):
    """The write would have put a second live session at a key."""


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
class Terms:
    """How long an owner has: its lease between renewals, and the whole transition."""

    owner: UUID
    lease: timedelta
    budget: timedelta

    def values(self) -> dict[str, object]:
        """The columns that say so."""
        return {
            "owner": self.owner,
            "lease_until": Now(self.lease),
            "deadline": Now(self.budget),
            "due_at": Now(self.lease),
            "cause": None,
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
    notice = sa.func.pg_notify(CHANNEL, sa.cast(fenced.c.session_id, sa.Text))
    query = sa.select(*session_columns(fenced), notice)
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


def event_insert(changed: sa.CTE) -> sa.CTE:
    """Append the event of a change, under the lock that the change holds on the session's row."""
    word = sa.func.coalesce(sa.bindparam("e_type", type_=sa.Text), changed.c.state)
    values = {
        "session_id": changed.c.session_id,
        "sequence": changed.c.event_sequence,
        "type": word,
        "state": changed.c.state,
        "generation": changed.c.generation,
        "details": sa.bindparam("e_details", type_=session_events.c.details.type),
    }
    source = sa.select(*values.values()).select_from(changed)
    return sa.insert(session_events).from_select(list(values), source).cte("event")


def event_parameters(word: str | None, details: Mapping[str, str]) -> dict[str, object]:
    """The values of `event_insert`'s binds."""
    return {"e_type": word, "e_details": json.dumps(dict(details))}


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


_NEW_SESSION = (
    "session_id",
    "tenant",
    "project_id",
    "user_id",
    "slot",
    "state",
    "generation",
    "epoch",
    "transition",
    "wish",
    "decision_id",
    "predecessor_id",
    "spec",
    "fingerprint",
    "policy",
    "checkpoint_id",
)
_NEW_CONTAINER = ("session_id", "generation", "name", "app", "state")


@lru_cache(maxsize=8)
def _insert_session(form: Shape) -> Statement[Session]:
    opened = (
        sa.dialects.postgresql.insert(sessions)
        .values(
            **{
                name: sa.bindparam(f"s_{name}", type_=sessions.c[name].type)
                for name in _NEW_SESSION
            },
            event_sequence=1,
            **expressions(sessions, form, "s_"),
        )
        .on_conflict_do_nothing(
            index_elements=["tenant", "project_id", "user_id", "slot"], index_where=LIVE_INDEX
        )
        .returning(*session_columns())
        .cte("opened")
    )
    query = sa.select(*session_columns(opened)).add_cte(event_insert(opened))
    return compiled(query, make_session)


_INSERT_CONTAINER = compiled(
    sa.insert(containers)
    .values(
        **{
            name: sa.bindparam(f"c_{name}", type_=containers.c[name].type)
            for name in _NEW_CONTAINER
        }
    )
    .returning(containers.c.generation),
    lambda row: int(row[0]),
)


@dataclass(frozen=True, slots=True)
class Opening:
    """A new session's row, and its first container's."""

    session: Mapping[str, object]
    terms: Terms
    container: Mapping[str, object]


async def open_session(
    database: Database,
    opening: Opening,
    decision: NewDecision,
    replaced: Change | None = None,
    quota: Quota | None = None,
    also: Also | None = None,
) -> Session | None:
    """Commit the intent of a new session: its row, its container's, its decision, what becomes of
    the session that it replaces, and what else belongs to it, all or nothing.

    None where somebody else was first: another live session stands at the key, the replaced one
    changed since it was read, the decision's request id is taken, or `also` says so. Raises
    QuotaReached.
    """
    session = None
    try:
        async with database.transaction() as connection, held_to(connection, quota):
            if replaced is not None and await apply(connection, replaced) is None:
                raise psycopg.Rollback
            session = await _insert(connection, opening)
            if session is None:
                raise psycopg.Rollback
            await decision_rows.insert(connection, decision.about(session.session_id))
            if also is not None and not await also(connection):
                session = None
                raise psycopg.Rollback
    except psycopg.errors.UniqueViolation:
        return None
    return session


async def _insert(connection: Connection, opening: Opening) -> Session | None:
    terms = opening.terms.values()
    statement = _insert_session(shape(terms))
    given: dict[str, Any] = {f"s_{name}": opening.session.get(name) for name in _NEW_SESSION}
    told = event_parameters(None, {})
    session = await one(connection, statement, {**given, **parameters(terms, "s_"), **told})
    if session is not None:
        params = {f"c_{name}": opening.container[name] for name in _NEW_CONTAINER}
        await one(connection, _INSERT_CONTAINER, params)
    return session


async def begin(
    database: Database,
    change: Change,
    decision: NewDecision | None,
    *others: Change,
    quota: Quota | None = None,
    also: Also | None = None,
) -> Session | None:
    """Commit the intent of a transition of a session that is there, with its decision, what becomes
    of `others` by it, and what else belongs to it.

    None where the session changed since it was read, the decision's request id is taken, or `also`
    says so. Raises LiveKeyTaken, QuotaReached.
    """
    session = None
    try:
        async with database.transaction() as connection, held_to(connection, quota):
            session = await apply(connection, change)
            for other in others if session is not None else ():
                if await apply(connection, other) is None:
                    session = None
                    break
            if session is None:
                raise psycopg.Rollback
            if decision is not None:
                await decision_rows.insert(connection, decision.about(session.session_id))
            if also is not None and not await also(connection):
                session = None
                raise psycopg.Rollback
    except psycopg.errors.UniqueViolation as error:
        if error.diag.constraint_name == LIVE_KEY:
            raise LiveKeyTaken from error
        return None
    return session


async def next_generation(
    database: Database, session_id: UUID, epoch: int, container: Mapping[str, object]
) -> Session | None:
    """Within a start that its owner holds: the last container is gone, a new one is wanted.

    None where the epoch is no longer the session's.
    """
    change = Change(session_id, epoch, session={"generation": Plus()}, advance=False)
    session = None
    async with database.transaction() as connection:
        session = await apply(connection, change)
        if session is None:
            raise psycopg.Rollback
        params = {f"c_{name}": container.get(name) for name in _NEW_CONTAINER}
        params["c_generation"] = session.generation
        await one(connection, _INSERT_CONTAINER, params)
    return session


_CLAIMED = (
    sa.update(sessions)
    .where(
        sessions.c.session_id == sa.bindparam("session_id", type_=sessions.c.session_id.type),
        sessions.c.epoch == sa.bindparam("epoch", type_=sa.BigInteger),
        sessions.c.transition.is_not(None),
        (sessions.c.lease_until <= sa.func.now()) | (sessions.c.deadline <= sa.func.now()),
    )
    .values(
        epoch=sessions.c.epoch + 1,
        owner=sa.bindparam("owner", type_=sessions.c.owner.type),
        lease_until=sa.func.now() + sa.bindparam("lease", type_=sa.Interval),
        deadline=sa.func.now() + sa.bindparam("budget", type_=sa.Interval),
        due_at=sa.func.now() + sa.bindparam("lease", type_=sa.Interval),
        change_time=sa.func.now(),
        event_sequence=sessions.c.event_sequence + 1,
    )
    .returning(*session_columns())
    .cte("claimed")
)
_CLAIM = compiled(
    sa.select(*session_columns(_CLAIMED)).add_cte(event_insert(_CLAIMED)), make_session
)
_RENEW = compiled(
    sa.update(sessions)
    .where(
        sessions.c.session_id == sa.bindparam("session_id", type_=sessions.c.session_id.type),
        sessions.c.epoch == sa.bindparam("epoch", type_=sa.BigInteger),
        sessions.c.lease_until > sa.func.now(),
    )
    .values(lease_until=sa.func.now() + sa.bindparam("lease", type_=sa.Interval))
    .returning(sessions.c.epoch),
    lambda row: int(row[0]),
)


async def claim(database: Database, session_id: UUID, epoch: int, terms: Terms) -> Session | None:
    """Take over a transition whose lease or deadline passed; None where it has not, or where
    somebody else was first.
    """
    params = {
        "session_id": session_id,
        "epoch": epoch,
        "owner": terms.owner,
        "lease": terms.lease,
        "budget": terms.budget,
        **event_parameters("TAKEN_OVER", {}),
    }
    return await database.fetch_one(_CLAIM, params)


async def renew(database: Database, session_id: UUID, epoch: int, lease: timedelta) -> bool:
    """Hold the lease longer; False where it ran out or the session is another's now."""
    params = {"session_id": session_id, "epoch": epoch, "lease": lease}
    return await database.fetch_one(_RENEW, params) is not None


_DESTROYED = compiled(
    sa.update(containers)
    .where(
        containers.c.session_id == sa.bindparam("session_id", type_=containers.c.session_id.type),
        containers.c.generation == sa.bindparam("generation", type_=sa.BigInteger),
        sa.not_(containers.c.wanted),
    )
    .values(destroy_time=sa.func.now(), state="DESTROYED")
    .returning(containers.c.generation),
    lambda row: int(row[0]),
)


async def destroyed(database: Database, session_id: UUID, generation: int) -> None:
    """Note that a container that nobody wants is gone."""
    params = {"session_id": session_id, "generation": generation}
    await database.fetch_one(_DESTROYED, params)


def finished(**values: object) -> dict[str, object]:
    """A decision's last word, stamped with the database's time."""
    return {"finish_time": NOW, **values}
