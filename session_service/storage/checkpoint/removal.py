"""Mark checkpoints as damaged, delete them, and find the leftovers of failed ones.

A checkpoint that a session needs is never deleted: the condition is part of the update. A commit
that makes a session need a certain checkpoint locks the checkpoint's row (`Kept`) before its own
writes; `withdraw` takes the same lock before it looks for such sessions. There are two kinds of
such commits: a start that is to restore the checkpoint, and the note that a container may be
destroyed since the checkpoint has its state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
import sqlalchemy as sa

from session_service.storage.checkpoint.reads import checkpoint_columns, make_checkpoint
from session_service.storage.database import compiled, one, scalar
from session_service.storage.session import decisions
from session_service.storage.tables import LIVE_STATES, checkpoints, containers, sessions

if TYPE_CHECKING:
    from datetime import timedelta
    from uuid import UUID

    from session_service.domain.checkpoint import Checkpoint
    from session_service.domain.decision import Decision
    from session_service.storage.database import Connection, Database

_UUID = checkpoints.c.checkpoint_id.type
_ID = sa.bindparam("checkpoint_id", type_=_UUID)

#: Whether the session's container does not hold its state, so that a start could only restore a
#: checkpoint: no start has succeeded on the container, or it is gone, or it may be destroyed at any
#: moment (`domain.session.has_come_up` says the same of rows that were read). An ended session
#: whose container is gone cannot come back, unless it is paused to a checkpoint.
_NOT_IN_CONTAINER = sa.exists(
    sa.select(sa.literal_column("1"))
    .where(
        containers.c.session_id == sessions.c.session_id,
        containers.c.generation == sessions.c.generation,
        sa.or_(
            containers.c.start_time.is_(None),
            (sessions.c.state != sa.text("'ENDED'"))
            & sa.or_(sa.not_(containers.c.wanted), containers.c.destroy_time.is_not(None)),
        ),
    )
    .correlate(sessions)
)
#: Sessions that could not be started without the checkpoint whose row is `checkpoints`:
#:
#: - a session that was forked from it and has no checkpoint of its own yet,
#: - a session that is paused without a container, or is about to be, with this checkpoint as its
#:   head,
#: - a session that starts, with this checkpoint as its head,
#: - any other session with this checkpoint as its head, if its state is in no container,
#: - a session that is being rolled back to it (the checkpoint's id is in its `wish`).
#:
#: A purged session has no head, and so needs no checkpoint.
_NEEDING: sa.Select[Any] = sa.select(sa.literal_column("1")).where(
    sa.or_(
        (sessions.c.checkpoint_id == checkpoints.c.checkpoint_id)
        & sa.or_(
            sessions.c.session_id != checkpoints.c.session_id,
            sessions.c.pause_depth == sa.text("'CHECKPOINT'"),
            sessions.c.state == sa.text("'STARTING'"),
            _NOT_IN_CONTAINER,
        ),
        # A literal list of states, so that the index on live keys serves.
        sa.and_(
            sessions.c.tenant == checkpoints.c.tenant,
            sessions.c.project_id == checkpoints.c.project_id,
            sessions.c.user_id == checkpoints.c.user_id,
            sessions.c.slot == checkpoints.c.slot,
            sa.text(f"sessions.state IN ({LIVE_STATES})"),
            sessions.c.transition == sa.text("'START'"),
            sessions.c.wish[4].astext == sa.cast(checkpoints.c.checkpoint_id, sa.Text),
        ),
    )
)
NEEDED = sa.exists(_NEEDING.correlate(checkpoints))


def _detach(gone: sa.CTE) -> list[sa.CTE]:
    """Give the checkpoint's parent to its children as their parent, and to sessions with it as
    their head as their head. If it has no parent, such a session gets the newest of its other READY
    checkpoints as its head.
    """
    other = checkpoints.alias("other")
    newest = (
        sa.select(other.c.checkpoint_id)
        .where(
            other.c.session_id == sessions.c.session_id,
            other.c.state == sa.text("'READY'"),
            other.c.checkpoint_id != gone.c.checkpoint_id,
        )
        .order_by(other.c.number.desc())
        .limit(1)
        .scalar_subquery()
    )
    heads = (
        sa.update(sessions)
        .where(sessions.c.checkpoint_id == gone.c.checkpoint_id)
        .values(checkpoint_id=sa.func.coalesce(gone.c.parent_id, newest))
        .cte("heads")
    )
    children = (
        sa.update(checkpoints)
        .where(checkpoints.c.parent_id == gone.c.checkpoint_id)
        .values(parent_id=gone.c.parent_id)
        .cte("children")
    )
    return [heads, children]


def _update_and_detach(
    where: list[sa.ColumnElement[bool] | sa.TextClause], **values: Any
) -> sa.Select[Any]:
    """Update the checkpoint and detach its descendants, in one statement. Any: columns of every
    type.
    """
    gone = (
        sa.update(checkpoints)
        .where(checkpoints.c.checkpoint_id == _ID, *where)
        .values(**values)
        .returning(*checkpoint_columns())
        .cte("gone")
    )
    return sa.select(*checkpoint_columns(gone)).add_cte(*_detach(gone))


_READY: sa.ColumnElement[bool] = checkpoints.c.state == sa.text("'READY'")
_MARK_CORRUPT = compiled(
    lambda: _update_and_detach(
        [_READY], state=sa.text("'FAILED'"), failure=sa.text("'CHECKPOINT_CORRUPT'")
    ),
    make_checkpoint,
)
_LOCK = compiled(
    lambda: (
        sa.select(checkpoints.c.checkpoint_id)
        .where(checkpoints.c.checkpoint_id == _ID)
        .with_for_update()
    ),
    lambda row: True,
)
_KEEP = compiled(
    lambda: (
        sa.select(*checkpoint_columns())
        .where(checkpoints.c.checkpoint_id == _ID, _READY)
        .with_for_update(read=True, key_share=True)
    ),
    make_checkpoint,
)
_WITHDRAW = compiled(
    lambda: _update_and_detach(
        [
            sa.text("checkpoints.state IN ('READY', 'FAILED')"),
            sa.not_(checkpoints.c.pinned),
            sa.not_(NEEDED),
        ],
        state=sa.text("'DELETING'"),
    ),
    make_checkpoint,
)
_REMOVE = compiled(
    lambda: (
        sa.delete(checkpoints)
        .where(checkpoints.c.checkpoint_id == _ID, checkpoints.c.state == sa.text("'DELETING'"))
        .returning(checkpoints.c.number)
    ),
    scalar(int),
)
_NOTE_CLEANED = compiled(
    lambda: (
        sa.update(checkpoints)
        .where(checkpoints.c.checkpoint_id == _ID, checkpoints.c.state == sa.text("'FAILED'"))
        .values(
            place=sa.null(),
            object=sa.case((checkpoints.c.kind == sa.text("'APPLICATION'"), checkpoints.c.object)),
        )
        .returning(checkpoints.c.number)
    ),
    scalar(int),
)
_IS_NEEDED = compiled(
    lambda: sa.select(NEEDED).select_from(checkpoints).where(checkpoints.c.checkpoint_id == _ID),
    scalar(bool),
)
_FIND_UNCLEANED = compiled(
    lambda: (
        sa.select(*checkpoint_columns())
        .where(
            checkpoints.c.state != sa.text("'READY'"),
            sa.or_(
                checkpoints.c.state == sa.text("'DELETING'"),
                (checkpoints.c.state == sa.text("'FAILED'"))
                & checkpoints.c.place.is_not(None)
                & checkpoints.c.ready_time.is_(None),
            ),
        )
        .order_by(checkpoints.c.create_time)
        .limit(sa.bindparam("most", type_=sa.BigInteger))
    ),
    make_checkpoint,
)
_OLD_FAILURES = compiled(
    lambda: (
        sa.select(checkpoints.c.checkpoint_id)
        .where(
            checkpoints.c.state == sa.text("'FAILED'"),
            checkpoints.c.create_time < sa.func.now() - sa.bindparam("age", type_=sa.Interval),
        )
        .limit(sa.bindparam("most", type_=sa.BigInteger))
    ),
    lambda row: row[0],
)


async def mark_corrupt(database: Database, checkpoint_id: UUID) -> Checkpoint | None:
    """Set a READY checkpoint whose bytes are damaged or lost to FAILED; None if it is not READY.
    What is left of the bytes is kept until the retention pass deletes old failures, so that the
    damage can be examined.
    """
    return await database.fetch_one(_MARK_CORRUPT, {"checkpoint_id": checkpoint_id})


@dataclass(frozen=True, slots=True)
class Kept:
    """Within a commit after which a session needs this checkpoint: keep it until that commit.

    A `withdraw` that began before has then committed, and the commit finds the checkpoint gone; or
    `withdraw` waits, and finds the session that needs it. Without this write the state of the
    session of a `withdraw` in flight could be the one from before the transition, when its
    container still held its state.

    It is the commit's first write: like `withdraw`, the commit locks the checkpoint's row before
    those of sessions. The lock is FOR KEY SHARE, which only the FOR UPDATE of `withdraw` conflicts
    with: a stronger one would conflict with `_detach`, which updates children of a checkpoint after
    the rows of sessions, and so could deadlock.
    """

    checkpoint_id: UUID

    async def apply(self, connection: Connection) -> Checkpoint | None:
        """Lock the row; None if the checkpoint is not READY any more."""
        return await one(connection, _KEEP, {"checkpoint_id": self.checkpoint_id})


async def withdraw(
    database: Database, checkpoint_id: UUID, decision: Decision | None = None
) -> Checkpoint | None:
    """Set a checkpoint to DELETING, after which no caller finds it, and insert the decision of the
    call that asks for it, if there is one. None if it is pinned, needed by a session, being
    written, or deleted already, or if the decision's request id is taken.

    The row is locked by a statement of its own. At READ COMMITTED the update's snapshot is then
    taken after the lock, and shows the session of a start that held the lock until its commit. An
    update that waits for a lock does not evaluate its condition on the sessions again.
    """
    params = {"checkpoint_id": checkpoint_id}
    try:
        async with database.transaction() as connection:
            await one(connection, _LOCK, params)
            withdrawn = await one(connection, _WITHDRAW, params)
            if withdrawn is not None and decision is not None:
                await decisions.insert(connection, decision)
    except psycopg.errors.UniqueViolation:
        return None
    return withdrawn


async def remove(database: Database, checkpoint_id: UUID) -> None:
    """Delete the row and the chunks of a withdrawn checkpoint."""
    await database.fetch_one(_REMOVE, {"checkpoint_id": checkpoint_id})


async def note_cleaned(database: Database, checkpoint_id: UUID) -> None:
    """Note that no bytes of a FAILED checkpoint are left. The name of its folder in the bucket
    stays: a writer that is cut off can store one more part later, which is deleted with the row.
    """
    await database.fetch_one(_NOTE_CLEANED, {"checkpoint_id": checkpoint_id})


async def is_needed(database: Database, checkpoint_id: UUID) -> bool:
    """Whether a session exists that could not be started without the checkpoint."""
    return bool(await database.fetch_one(_IS_NEEDED, {"checkpoint_id": checkpoint_id}))


async def find_uncleaned(database: Database, most: int) -> list[Checkpoint]:
    """Up to `most` checkpoints, oldest first, whose bytes are to be deleted: withdrawn ones, and
    FAILED ones that were never READY and may have bytes.
    """
    return await database.fetch_all(_FIND_UNCLEANED, {"most": most})


async def old_failures(database: Database, age: timedelta, most: int) -> list[UUID]:
    """The ids of up to `most` FAILED checkpoints older than `age`."""
    return await database.fetch_all(_OLD_FAILURES, {"age": age, "most": most})
