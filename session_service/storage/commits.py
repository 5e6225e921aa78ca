"""Committing the intent of a transition, before the provider is called: all or nothing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import psycopg
import sqlalchemy as sa

from session_service.storage import decisions as decision_rows
from session_service.storage.assignments import Plus, Shape, expressions, parameters, shape
from session_service.storage.database import Also, Connection, Database, Statement, compiled, one
from session_service.storage.events import event_insert, event_parameters
from session_service.storage.quotas import Quota, held_to
from session_service.storage.rows import make_session, session_columns
from session_service.storage.tables import LIVE_KEY, containers, sessions
from session_service.storage.transitions import Change, apply

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from session_service.domain.session import Session
    from session_service.storage.decisions import NewDecision
    from session_service.storage.leases import Terms

#: The live key's own predicate, in the words of its index.
LIVE_INDEX = sa.text("state IN ('STARTING', 'ACTIVE', 'PAUSING', 'PAUSED')")


class LiveKeyTaken(Exception):
    """The write would have put a second live session at a key."""


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
