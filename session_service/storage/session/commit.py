"""Commit in one transaction: the intent of a transition before the provider is called, its outcome,
or an answer that needs no transition.

If there is a quota, the number of the tenant's live sessions is read inside the transaction, under
an advisory lock. A trigger updates the number at each change, so that no code path can forget to,
and reading it takes the same time however large it is (`live_counts`).
"""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol
from uuid import UUID

import psycopg
import sqlalchemy as sa

from session_service import failpoints
from session_service.domain.session import Record, Session
from session_service.storage.database import Connection, Database, Statement, compiled, one
from session_service.storage.session import choices, decisions
from session_service.storage.session.change import (
    Change,
    Plus,
    Shape,
    apply,
    event_insert,
    event_parameters,
    expressions,
    parameters,
    shape,
)
from session_service.storage.session.live_counts import COUNT
from session_service.storage.session.reads import Reuse, make_session, session_columns
from session_service.storage.tables import LIVE_KEY, LIVE_STATES, WRITING, containers, sessions

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from session_service.domain.checkpoint import Checkpoint
    from session_service.domain.decision import Decision
    from session_service.domain.policy import LiveQuota
    from session_service.domain.session import Container
    from session_service.storage.session.change import Terms
    from session_service.storage.session.choices import Made

    Row = Session | Record | Checkpoint


_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Quota:
    """The most live sessions that a tenant may have."""

    tenant: str
    most: int
    tier: str | None = None
    """The name of the tier that sets the number; None if the operator's configuration sets it."""

    @classmethod
    def of(cls, tenant: str, live: LiveQuota | None) -> Quota | None:
        """The tenant's quota; None if the number of its live sessions has no limit."""
        return None if live is None else cls(tenant, live.most, live.tier)


class QuotaReached(Exception):
    """The transaction would have left the tenant with more live sessions than its quota."""

    def __init__(self, quota: Quota) -> None:
        super().__init__(f"{quota.tenant} has {quota.most} live sessions")
        self.quota = quota


_TENANT = sa.bindparam("tenant", type_=sa.Text)
#: Hash seed of the quota's advisory locks. Another use of advisory locks must take another seed, so
#: that the two do not share a lock.
_SEED = 7_685
_LOCK = compiled(
    lambda: sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(_TENANT, _SEED))),
    lambda row: True,
)


@asynccontextmanager
async def within_quota(connection: Connection, quota: Quota | None) -> AsyncGenerator[None, None]:
    """Check the quota around the writes of a transaction that can make a session live. Raises
    QuotaReached after the writes if the tenant then has too many live sessions; the exception rolls
    the transaction back. With None there is no check.

    The advisory lock of the tenant is taken before the writes and held until the commit. Of two
    concurrent transactions, the second therefore counts the sessions that the first committed;
    without the lock, neither would see the other's session, and both would pass.

    The count comes after the writes. A caller that finds its key taken by a concurrent start must
    get that conflict, and not a quota error.
    """
    if quota is None:
        yield
        return
    await one(connection, _LOCK, {"tenant": quota.tenant})
    yield
    # A statement of its own: at READ COMMITTED its snapshot is then taken after the lock.
    count = await one(connection, COUNT, {"tenant": quota.tenant})
    if (count or 0) > quota.most:
        raise QuotaReached(quota)


#: The predicate of the index on live keys, written as in the index.
LIVE_INDEX = sa.text(f"state IN ({LIVE_STATES})")


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
    return compiled(lambda: query, make_session)


_INSERT_CONTAINER = compiled(
    lambda: (
        sa.insert(containers)
        .values(
            **{
                name: sa.bindparam(f"c_{name}", type_=containers.c[name].type)
                for name in _NEW_CONTAINER
            }
        )
        .returning(containers.c.generation)
    ),
    lambda row: int(row[0]),
)


@dataclass(frozen=True, slots=True)
class Opening:
    """The rows of a new session and of its first container."""

    session: Mapping[str, object]
    terms: Terms
    container: Mapping[str, object]

    @property
    def session_id(self) -> UUID:
        """The new session's id."""
        session_id = self.session["session_id"]
        assert isinstance(session_id, UUID)
        return session_id

    async def apply(self, connection: Connection) -> Session | None:
        """Insert both rows; None if another live session exists at the key."""
        return await _insert(connection, self)


async def _insert(connection: Connection, opening: Opening) -> Session | None:
    terms = opening.terms.values()
    statement = _insert_session(shape(terms))
    given: dict[str, Any] = {f"s_{name}": opening.session.get(name) for name in _NEW_SESSION}
    event = event_parameters(None, {})
    session = await one(connection, statement, {**given, **parameters(terms, "s_"), **event})
    if session is not None:
        params = {f"c_{name}": opening.container[name] for name in _NEW_CONTAINER}
        await one(connection, _INSERT_CONTAINER, params)
    return session


@dataclass(frozen=True, slots=True)
class NextGeneration:
    """Within a start: insert the row of a new container, because the last container is gone.

    This write is two statements. It must share its commit with another write (the note that the
    last container is gone), because a commit of several writes runs in a transaction; a commit of
    one write does not, and could stop between the two statements.
    """

    session_id: UUID
    epoch: int
    container: Mapping[str, object]
    """The new row. Its generation is the next generation of the session."""

    async def apply(self, connection: Connection) -> Session | None:
        """Advance the session's generation and insert the row; None if the session has another
        epoch by now.
        """
        change = Change(self.session_id, self.epoch, session={"generation": Plus()}, advance=False)
        session = await apply(connection, change)
        if session is not None:
            params = {f"c_{name}": self.container.get(name) for name in _NEW_CONTAINER}
            params["c_generation"] = session.generation
            await one(connection, _INSERT_CONTAINER, params)
        return session


class Write(Protocol):
    """One write of a commit. It changes nothing if its row has changed since the caller read it."""

    async def apply(self, connection: Connection) -> Row | None:
        """Execute the write; None if the row has changed since the caller read it, in which case
        nothing was written.
        """
        ...


class Conflict(Enum):
    """The reason why a commit wrote nothing."""

    CHANGED = "changed"
    """A row changed since it was read, the request id is taken, or the choice is no longer valid.
    The caller reads again, beginning with an earlier decision of the same request id."""
    QUOTA = "quota"
    """The tenant would have more live sessions than its quota allows."""
    LIVE_KEY = "live key"
    """Another live session exists at the key."""
    WRITING = "writing"
    """Another checkpoint of the session is being written."""


@dataclass(frozen=True, slots=True)
class Commit:
    """The writes of one transaction, and the work that begins with it."""

    writes: tuple[Write, ...] = ()
    """The writes, in the order in which they are executed and therefore lock their rows."""
    decision: Decision | None = None
    """The decision to insert. Its session is that of `begins`, else that of the first write, else
    the one that the decision itself names."""
    begins: UUID | None = None
    """The session or checkpoint whose work this replica carries out after the commit."""
    quota: Quota | None = None
    choice: Made | None = None
    """The user's choice that the decision carries out. The commit uses up its token."""
    discards: Container | None = None
    """The container to destroy after the commit. Until it is destroyed, its committed row says that
    no session needs it."""

    @property
    def only_answers(self) -> bool:
        """Whether the commit begins no work and changes no more than the counts of a reuse."""
        return self.begins is None and all(isinstance(write, Reuse) for write in self.writes)


@dataclass(frozen=True, slots=True)
class Committed:
    """The written rows by session id (checkpoints by checkpoint id), and the decision."""

    rows: Mapping[UUID, Row] = field(default_factory=dict)
    decision: Decision | None = None

    def session(self, session_id: UUID) -> Session:
        """The session with this id, as it was written."""
        row = self.rows[session_id]
        if isinstance(row, Record):
            return row.session
        assert isinstance(row, Session), "a checkpoint's id is no session's"
        return row

    def record(self, session_id: UUID | None) -> Record | None:
        """The session with its container, if a write returned both; None if it must be read."""
        row = None if session_id is None else self.rows.get(session_id)
        return row if isinstance(row, Record) else None


class Observer(Protocol):
    """Counts commits. `commit` tells it of each one."""

    def committed(self, wanted: Commit, done: Committed) -> None:
        """`wanted` was committed, with this result. Must be cheap. An exception is only logged."""
        ...


async def commit(
    database: Database,
    wanted: Commit,
    point: str | None = None,
    observer: Observer | None = None,
) -> Committed | Conflict:
    """Write everything or nothing, and tell `observer` of what was written. `point` is the
    failpoint around the commit: `intent` if work begins, `outcome` if work ends, None if neither.
    Raises StorageUnavailable.
    """
    committing = _commit(database, wanted)
    done = await (committing if point is None else failpoints.around(point, committing))
    if observer is not None and isinstance(done, Committed):
        try:
            observer.committed(wanted, done)
        except Exception:  # noqa: BLE001  # the commit stands
            # If this raised, the caller would believe that the commit failed, and no replica would
            # carry out the work before the lease of the transition expires.
            _log.exception("a commit could not be counted", extra={"action": "count"})
    return done


async def _commit(database: Database, wanted: Commit) -> Committed | Conflict:
    try:
        if wanted.choice is None and wanted.quota is None:
            if wanted.decision is None and len(wanted.writes) == 1:
                return await _alone(database, wanted.writes[0])
            if not wanted.writes and wanted.decision is not None:
                appended = await decisions.append(database, wanted.decision)
                return Committed(decision=appended)
        return await _together(database, wanted)
    except QuotaReached:
        return Conflict.QUOTA
    except psycopg.errors.UniqueViolation as error:
        named = {LIVE_KEY: Conflict.LIVE_KEY, WRITING: Conflict.WRITING}
        return named.get(error.diag.constraint_name or "", Conflict.CHANGED)


async def _alone(database: Database, write: Write) -> Committed | Conflict:
    """Write without BEGIN and COMMIT, which saves two round trips: a single statement is atomic."""
    async with database.connection() as connection:
        row = await write.apply(connection)
    if row is None:
        return Conflict.CHANGED
    rows = {_id(row): row}
    return Committed(rows, _written_by((write,), rows))


async def _together(database: Database, wanted: Commit) -> Committed | Conflict:
    done: list[Committed] = []
    async with database.transaction() as connection, within_quota(connection, wanted.quota):
        written = await _write(connection, wanted)
        if written is None:
            raise psycopg.Rollback
        done.append(written)
    # `transaction` suppresses psycopg.Rollback, which a type checker cannot know. After a Rollback
    # this line is reached with an empty `done`, and nothing was written.
    return done[0] if done else Conflict.CHANGED


async def _write(connection: Connection, wanted: Commit) -> Committed | None:
    rows: dict[UUID, Row] = {}
    for write in wanted.writes:
        row = await write.apply(connection)
        if row is None:
            return None
        rows[_id(row)] = row
    decision = _written_by(wanted.writes, rows)
    if wanted.decision is not None:
        about = _about(wanted, rows)
        new = wanted.decision if about is None else wanted.decision.about(about)
        decision = await decisions.insert(connection, new)
    if wanted.choice is not None:
        assert decision is not None, "a choice is carried out by a decision"
        if not await choices.make(connection, wanted.choice, decision.decision_id):
            return None
    return Committed(rows, decision)


def _written_by(writes: tuple[Write, ...], rows: Mapping[UUID, Row]) -> Decision | None:
    """The decision that a write has inserted itself: a `Reuse` does so, in its one statement."""
    for write in writes:
        if isinstance(write, Reuse):
            record = rows[write.session_id]
            assert isinstance(record, Record), "a reuse gives its session with the container"
            return write.decision.about(write.session_id).as_written(record.now)
    return None


def _about(wanted: Commit, rows: Mapping[UUID, Row]) -> UUID | None:
    """The id of the session that the decision belongs to."""
    row = rows.get(wanted.begins) if wanted.begins is not None else None
    row = row or next(iter(rows.values()), None)
    if row is None:
        return None
    return row.session.session_id if isinstance(row, Record) else row.session_id


def _id(row: Row) -> UUID:
    if isinstance(row, Record):
        return row.session.session_id
    return row.session_id if isinstance(row, Session) else row.checkpoint_id
