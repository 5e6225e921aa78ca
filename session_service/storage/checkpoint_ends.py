"""How checkpoints go: found damaged, deleted, tidied up after. None goes that a session needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import sqlalchemy as sa

from session_service.storage import decisions as decision_rows
from session_service.storage.checkpoint_rows import checkpoint_columns, make_checkpoint
from session_service.storage.database import compiled, one
from session_service.storage.rows import scalar
from session_service.storage.tables import checkpoints, sessions

if TYPE_CHECKING:
    from datetime import timedelta
    from uuid import UUID

    from session_service.domain.checkpoint import Checkpoint
    from session_service.storage.database import Database
    from session_service.storage.decisions import NewDecision

_UUID = checkpoints.c.checkpoint_id.type
_ID = sa.bindparam("checkpoint_id", type_=_UUID)

#: Sessions that could not come back without the checkpoint, whose row is `checkpoints`:
#: what was forked from it and has none of its own, what rests on it without a container or is on
#: its way up, and what is just being put back to it. One that is purged descends from none.
_NEEDING: sa.Select[Any] = sa.select(sa.literal_column("1")).where(
    sa.or_(
        (sessions.c.checkpoint_id == checkpoints.c.checkpoint_id)
        & sa.or_(
            sessions.c.session_id != checkpoints.c.session_id,
            sessions.c.pause_depth == sa.text("'CHECKPOINT'"),
            sessions.c.state == sa.text("'STARTING'"),
        ),
        # A literal list of states, so that the index on live keys serves.
        sa.and_(
            sessions.c.tenant == checkpoints.c.tenant,
            sessions.c.project_id == checkpoints.c.project_id,
            sessions.c.user_id == checkpoints.c.user_id,
            sessions.c.slot == checkpoints.c.slot,
            sa.text("sessions.state IN ('STARTING', 'ACTIVE', 'PAUSING', 'PAUSED')"),
            sessions.c.transition == sa.text("'START'"),
            sessions.c.wish[4].astext == sa.cast(checkpoints.c.checkpoint_id, sa.Text),
        ),
    )
)
NEEDED = sa.exists(_NEEDING.correlate(checkpoints))


def _detached(gone: sa.CTE) -> list[sa.CTE]:
    """What descends from a checkpoint that goes descends from its parent from now on; a session
    whose checkpoint has none, from the newest of its others.
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


def _gone(where: list[sa.ColumnElement[bool] | sa.TextClause], **values: Any) -> sa.Select[Any]:
    """Any: columns of every type."""
    gone = (
        sa.update(checkpoints)
        .where(checkpoints.c.checkpoint_id == _ID, *where)
        .values(**values)
        .returning(*checkpoint_columns())
        .cte("gone")
    )
    return sa.select(*checkpoint_columns(gone)).add_cte(*_detached(gone))


_READY: sa.ColumnElement[bool] = checkpoints.c.state == sa.text("'READY'")
_CONDEMN = compiled(
    _gone([_READY], state=sa.text("'FAILED'"), failure=sa.text("'CHECKPOINT_CORRUPT'")),
    make_checkpoint,
)
_WITHDRAW = compiled(
    _gone(
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
    sa.delete(checkpoints)
    .where(checkpoints.c.checkpoint_id == _ID, checkpoints.c.state == sa.text("'DELETING'"))
    .returning(checkpoints.c.number),
    scalar(int),
)
_CLEANED = compiled(
    sa.update(checkpoints)
    .where(checkpoints.c.checkpoint_id == _ID, checkpoints.c.state == sa.text("'FAILED'"))
    .values(place=sa.null(), object=sa.null(), upload=sa.null())
    .returning(checkpoints.c.number),
    scalar(int),
)
_IS_NEEDED = compiled(
    sa.select(NEEDED).select_from(checkpoints).where(checkpoints.c.checkpoint_id == _ID),
    scalar(bool),
)
_UNTIDY = compiled(
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
    .limit(sa.bindparam("most", type_=sa.BigInteger)),
    make_checkpoint,
)
_OLD_FAILURES = compiled(
    sa.select(checkpoints.c.checkpoint_id)
    .where(
        checkpoints.c.state == sa.text("'FAILED'"),
        checkpoints.c.create_time < sa.func.now() - sa.bindparam("age", type_=sa.Interval),
    )
    .limit(sa.bindparam("most", type_=sa.BigInteger)),
    lambda row: row[0],
)


async def condemn(database: Database, checkpoint_id: UUID) -> Checkpoint | None:
    """Say FAILED of a READY checkpoint that was found damaged. Its bytes stay for a while, for
    whoever wants to know how that came.
    """
    return await database.fetch_one(_CONDEMN, {"checkpoint_id": checkpoint_id})


async def withdraw(
    database: Database, checkpoint_id: UUID, decision: NewDecision | None = None
) -> Checkpoint | None:
    """Take a checkpoint from all who ask, for good, with the decision of the call that asks for it;
    None where it is pinned, needed, being written, or gone already, or where the decision's request
    id is taken.
    """
    params = {"checkpoint_id": checkpoint_id}
    if decision is None:
        return await database.fetch_one(_WITHDRAW, params)
    try:
        async with database.transaction() as connection:
            withdrawn = await one(connection, _WITHDRAW, params)
            if withdrawn is not None:
                await decision_rows.insert(connection, decision)
    except psycopg.errors.UniqueViolation:
        return None
    return withdrawn


async def remove(database: Database, checkpoint_id: UUID) -> None:
    """Delete the row, and its chunks, of one that was withdrawn."""
    await database.fetch_one(_REMOVE, {"checkpoint_id": checkpoint_id})


async def cleaned(database: Database, checkpoint_id: UUID) -> None:
    """Note that no bytes are left of one that FAILED."""
    await database.fetch_one(_CLEANED, {"checkpoint_id": checkpoint_id})


async def is_needed(database: Database, checkpoint_id: UUID) -> bool:
    """Whether a session could not come back without it."""
    return bool(await database.fetch_one(_IS_NEEDED, {"checkpoint_id": checkpoint_id}))


async def untidy(database: Database, most: int) -> list[Checkpoint]:
    """What was withdrawn or never came to be, and still has bytes somewhere."""
    return await database.fetch_all(_UNTIDY, {"most": most})


async def old_failures(database: Database, age: timedelta, most: int) -> list[UUID]:
    """What FAILED so long ago that nobody asks any more."""
    return await database.fetch_all(_OLD_FAILURES, {"age": age, "most": most})
