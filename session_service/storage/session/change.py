"""Write changes of a session: a transition, its lease, its outcome, and the notes before that.

Every write is a compare-and-set on the session's `epoch`. A writer that holds an older epoch
changes nothing, neither the session nor its container nor its decision. The database can compute a
value: its own time (`Now`), or the column's value plus a number (`Plus`).

The lease in the row says which replica carries the transition out, and until when. The replica
renews its lease. When a lease has expired, another replica claims the transition and advances the
epoch, so that every later write of the first replica fails.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from session_service import failpoints
from session_service.domain.states import State
from session_service.storage.database import Connection, Database, Statement, compiled, one
from session_service.storage.notifications import notice
from session_service.storage.session.reads import make_session, session_columns
from session_service.storage.session.stats import end_insert, end_removal
from session_service.storage.tables import containers, decisions, sessions
from session_service.storage.tables import session_events as events

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import timedelta
    from uuid import UUID

    from session_service.domain.session import Session


@dataclass(frozen=True, slots=True)
class Now:
    """The database's time at the start of the transaction, plus a span."""

    after: timedelta | None = None


@dataclass(frozen=True, slots=True)
class Plus:
    """The value of the column, plus a number."""

    amount: int = 1


NOW = Now()
Shape = tuple[tuple[str, str], ...]


def shape(values: Mapping[str, object]) -> Shape:
    """The kind of value that each column gets. Statements are compiled once per shape."""
    return tuple(sorted((name, _kind(value)) for name, value in values.items()))


def _kind(value: object) -> str:
    if isinstance(value, Now):
        return "now" if value.after is None else "later"
    return "plus" if isinstance(value, Plus) else "given"


def expressions(table: sa.Table, form: Shape, prefix: str) -> dict[str, sa.ColumnElement[Any]]:
    """The SQL expression that each column is set to. A bind is named `prefix` + column. Any:
    columns of every type.
    """
    made: dict[str, sa.ColumnElement[Any]] = {}
    for name, kind in form:
        column = table.c[name]
        bind: sa.BindParameter[Any] = sa.bindparam(prefix + name, type_=column.type)
        if kind == "now":
            made[name] = sa.func.now()
        elif kind == "later":
            made[name] = sa.func.now() + sa.bindparam(prefix + name, type_=sa.Interval)
        else:
            made[name] = column + bind if kind == "plus" else bind
    return made


def parameters(values: Mapping[str, object], prefix: str) -> dict[str, object]:
    """The values of the binds, by the names that `expressions` gave to them."""
    return dict(_binds(values, prefix))


def _binds(values: Mapping[str, object], prefix: str) -> Iterable[tuple[str, object]]:
    for name, value in values.items():
        if isinstance(value, Now):
            if value.after is not None:
                yield prefix + name, value.after
        else:
            yield prefix + name, value.amount if isinstance(value, Plus) else value


#: The columns of a transition, with their values after it. `failure_count` gets another value if
#: the due pass is to try again: then a failure is added to those before.
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
    current generation, and of the decision `decision_id`.
    """

    session_id: UUID
    epoch: int
    session: Mapping[str, object] = field(default_factory=dict)
    container: Mapping[str, object] = field(default_factory=dict)
    decision: Mapping[str, object] = field(default_factory=dict)
    decision_id: UUID | None = None
    advance: bool = True
    """Whether the epoch advances. False for notes: those of a transition's owner during its work,
    and those of an observation, of the user's activity or of a hold. A note must not make the
    compare-and-set of another writer fail."""
    event: str | None = None
    """The type of the event. Without one, a change of the state appends an event whose type is the
    new state."""
    details: Mapping[str, str] = field(default_factory=dict)
    """The details of the event."""
    idle_for: timedelta | None = None
    """Write only if the user was not active for this long and no hold is in force. The statement
    compares the columns of the row that it locks, and so activity that is committed between the
    caller's read and this write prevents it."""

    async def apply(self, connection: Connection) -> Session | None:
        """Write the change; None if a condition of it no longer holds. See `apply`."""
        return await apply(connection, self)

    @property
    def appends_event(self) -> bool:
        """Whether the change appends an event."""
        return self.event is not None or "state" in self.session

    @property
    def end(self) -> bool | None:
        """True if the change ends the session, False if it undoes the end, None for neither."""
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
    appends_event: bool,
    idle: bool,
    end: bool | None,
) -> Statement[Session]:
    """The one statement of a change of this shape.

    The update of the session's row is the fence: it has no row if the epoch differs. Every other
    write is a CTE that reads the row which the update returns, and so writes nothing without it.
    """
    assigned = expressions(sessions, session, "s_")
    if advance:
        assigned["epoch"] = sessions.c.epoch + 1
        assigned["change_time"] = sa.func.now()
    if appends_event:
        assigned["event_sequence"] = sessions.c.event_sequence + 1
    if not assigned:
        # An UPDATE must set a column, and it is the UPDATE that locks the row and is the fence.
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
    if appends_event:
        query = query.add_cte(event_insert(fenced))
    if container:
        query = query.add_cte(_container_update(fenced, container))
    if decision:
        query = query.add_cte(_decision_update(fenced, decision))
    if end is not None:
        query = query.add_cte(end_insert(fenced) if end else end_removal(fenced))
    return compiled(lambda: query, make_session)


def _idle() -> list[sa.ColumnElement[bool]]:
    """The user was not active, and no hold is in force. Both conditions use columns of the updated
    row only: if the update waits for the row's lock, PostgreSQL evaluates them again on the version
    that the other transaction committed.
    """
    since = sa.func.now() - sa.bindparam("idle_for", type_=sa.Interval)
    hold_until = sessions.c.hold_until
    no_hold = hold_until.is_(None) | (hold_until <= sa.func.now())
    return [sessions.c.last_active_time <= since, no_hold]


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
    """Write a change. None if the session has another epoch by now, or if `idle_for` is given and
    the session is not idle; then nothing was written.
    """
    decided = change.decision if change.decision_id is not None else {}
    statement = _statement(
        shape(change.session),
        shape(change.container),
        shape(decided),
        advance=change.advance,
        appends_event=change.appends_event,
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
    if change.appends_event:
        params.update(event_parameters(change.event, change.details))
    if change.idle_for is not None:
        params["idle_for"] = change.idle_for
    return await one(connection, statement, params)


async def write(database: Database, change: Change) -> Session | None:
    """`apply` as a transaction of its own. It is a single statement: one round trip."""
    return await failpoints.around(
        "outcome" if change.advance else "note", _write(database, change)
    )


async def _write(database: Database, change: Change) -> Session | None:
    async with database.connection() as connection:
        return await apply(connection, change)


def finished(**values: object) -> dict[str, object]:
    """The columns that finish a decision, with the database's time as its `finish_time`."""
    return {"finish_time": NOW, **values}


def event_insert(changed: sa.CTE) -> sa.CTE:
    """Append the event of a change. The change holds the lock on the session's row, and so no two
    events of a session get the same sequence number.
    """
    word = sa.func.coalesce(sa.bindparam("e_type", type_=sa.Text), changed.c.state)
    values = {
        "session_id": changed.c.session_id,
        "sequence": changed.c.event_sequence,
        "type": word,
        "state": changed.c.state,
        "generation": changed.c.generation,
        "details": sa.bindparam("e_details", type_=events.c.details.type),
    }
    source = sa.select(*values.values()).select_from(changed)
    return sa.insert(events).from_select(list(values), source).cte("event")


def event_parameters(word: str | None, details: Mapping[str, str]) -> dict[str, object]:
    """The values of the binds of `event_insert`."""
    return {"e_type": word, "e_details": json.dumps(dict(details))}


@dataclass(frozen=True, slots=True)
class Terms:
    """The owner of a transition, how long its lease is valid without a renewal, and the time limit
    of the whole transition.
    """

    owner: UUID
    lease: timedelta
    budget: timedelta

    def values(self) -> dict[str, object]:
        """The columns of these terms, and their values."""
        return {
            "owner": self.owner,
            "lease_until": Now(self.lease),
            "deadline": Now(self.budget),
            "due_at": Now(self.lease),
            "cause": None,
        }


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
    lambda: sa.select(*session_columns(_CLAIMED)).add_cte(event_insert(_CLAIMED)), make_session
)


async def claim(database: Database, session_id: UUID, epoch: int, terms: Terms) -> Session | None:
    """Take over a transition whose lease or deadline has passed; None if neither has passed, or if
    the session has another epoch, because another replica was first.
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


class Renewal(StrEnum):
    """The result of renewing a lease."""

    KEPT = "KEPT"
    LOST = "LOST"
    """The lease expired, or the session has another epoch."""
    BUSY = "BUSY"
    """Another transaction has the row locked. The lease was not renewed, but it may still be valid:
    the caller tries again."""


_EACH = sa.select(
    sa.func.unnest(
        sa.bindparam("session_ids", type_=postgresql.ARRAY(sessions.c.session_id.type))
    ).label("session_id"),
    sa.func.unnest(sa.bindparam("epochs", type_=postgresql.ARRAY(sa.BigInteger))).label("epoch"),
).cte("each")
_OURS = (
    (sessions.c.session_id == _EACH.c.session_id)
    & (sessions.c.epoch == _EACH.c.epoch)
    & (sessions.c.lease_until > sa.func.now())
)
# SKIP LOCKED: the statement waits for no lock. Other transactions lock two rows in an order of
# their own. If this statement waited for them while it holds locks, a deadlock would be possible.
# And one row that is locked for long would delay the renewal of all other leases until they expire.
_LOCKED = (
    sa.select(sessions.c.session_id)
    .join(_EACH, _OURS)
    .with_for_update(of=sessions, key_share=True, skip_locked=True)
    .cte("locked")
)
_KEPT = (
    sa.update(sessions)
    .where(sessions.c.session_id == _LOCKED.c.session_id)
    .values(lease_until=sa.func.now() + sa.bindparam("lease", type_=sa.Interval))
    .returning(sessions.c.session_id, sessions.c.epoch)
    .cte("kept")
)
_RENEW = compiled(
    lambda: sa.select(
        _EACH.c.session_id,
        _EACH.c.epoch,
        sa.case(
            (_KEPT.c.session_id.is_not(None), sa.text("'KEPT'")),
            # The row of the statement's snapshot, before its own update: the lease is still this
            # replica's, but the row was locked.
            (sessions.c.session_id.is_not(None), sa.text("'BUSY'")),
            else_=sa.text("'LOST'"),
        ),
    ).select_from(
        _EACH.outerjoin(
            _KEPT, (_KEPT.c.session_id == _EACH.c.session_id) & (_KEPT.c.epoch == _EACH.c.epoch)
        ).outerjoin(sessions, _OURS)
    ),
    lambda row: ((row[0], row[1]), Renewal(row[2])),
)


async def renew(
    database: Database, owned: Sequence[tuple[UUID, int]], lease: timedelta
) -> dict[tuple[UUID, int], Renewal]:
    """Extend the leases of these sessions at these epochs, with one statement that waits for no
    lock. Returns the result for each (session id, epoch).
    """
    params = {
        "session_ids": [session_id for session_id, _ in owned],
        "epochs": [epoch for _, epoch in owned],
        "lease": lease,
    }
    return dict(await database.fetch_all(_RENEW, params))
