"""Writing down that a checkpoint is wanted, and holding on to it while its bytes are written.

A row is WRITING under a lease; `checkpoint_outcomes` has what becomes of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
import sqlalchemy as sa

from session_service.storage import decisions as decision_rows
from session_service.storage.checkpoint_rows import checkpoint_columns, make_checkpoint
from session_service.storage.database import compiled, one
from session_service.storage.rows import scalar
from session_service.storage.tables import (
    REQUEST,
    WRITING,
    checkpoint_numbers,
    checkpoints,
    containers,
    sessions,
)

if TYPE_CHECKING:
    from datetime import timedelta
    from uuid import UUID

    from session_service.domain.checkpoint import Checkpoint, Kind, Place, Reason
    from session_service.storage.database import Database
    from session_service.storage.decisions import NewDecision

_UUID = checkpoints.c.checkpoint_id.type
_ID = sa.bindparam("checkpoint_id", type_=_UUID)
_KEY = ("tenant", "project_id", "user_id", "slot")


class AlreadyWriting(Exception):
    """Another checkpoint of the session is being written."""


@dataclass(frozen=True, slots=True)
class NewCheckpoint:
    """A checkpoint that is wanted of a session as of this epoch; the rest is in the rows."""

    checkpoint_id: UUID
    session_id: UUID
    epoch: int
    kind: Kind
    reason: Reason
    place: Place
    lease: timedelta
    label: str = ""
    decision_id: UUID | None = None


def _bind(name: str, column: sa.Column[Any]) -> sa.ColumnElement[Any]:
    return sa.bindparam(name, type_=column.type).label(name)


_SOURCE = (
    sa.select(
        *(sessions.c[name] for name in _KEY),
        sessions.c.session_id,
        sessions.c.generation,
        sessions.c.checkpoint_id.label("parent_id"),
        containers.c.app,
        sessions.c.spec,
        sessions.c.fingerprint,
    )
    .join(
        containers,
        (containers.c.session_id == sessions.c.session_id)
        & (containers.c.generation == sessions.c.generation),
    )
    .where(
        sessions.c.session_id == sa.bindparam("session_id", type_=_UUID),
        sessions.c.epoch == sa.bindparam("epoch", type_=sa.BigInteger),
    )
    .cte("source")
)
_COUNTED = sa.dialects.postgresql.insert(checkpoint_numbers).from_select(
    [*_KEY, "last_number"], sa.select(*(_SOURCE.c[name] for name in _KEY), sa.literal_column("1"))
)
# The lock on the key's row is held to the end of this one statement.
_NUMBERED = (
    _COUNTED.on_conflict_do_update(
        index_elements=_KEY, set_={"last_number": checkpoint_numbers.c.last_number + 1}
    )
    .returning(checkpoint_numbers.c.last_number)
    .cte("numbered")
)
_NEW: dict[str, sa.ColumnElement[Any]] = {
    "checkpoint_id": _bind("checkpoint_id", checkpoints.c.checkpoint_id),
    **{name: _SOURCE.c[name] for name in (*_KEY, "session_id", "generation", "parent_id")},
    **{name: _SOURCE.c[name] for name in ("app", "spec", "fingerprint")},
    "number": _NUMBERED.c.last_number,
    "state": sa.literal_column("'WRITING'"),
    **{name: _bind(name, checkpoints.c[name]) for name in ("kind", "reason", "label", "place")},
    "decision_id": _bind("decision_id", checkpoints.c.decision_id),
    "lease_until": sa.func.now() + sa.bindparam("lease", type_=sa.Interval),
}
_BEGIN = compiled(
    sa.insert(checkpoints)
    .from_select(
        list(_NEW), sa.select(*_NEW.values()).select_from(_SOURCE.join(_NUMBERED, sa.true()))
    )
    .returning(*checkpoint_columns()),
    make_checkpoint,
)


async def begin(
    database: Database, new: NewCheckpoint, decision: NewDecision | None = None
) -> Checkpoint | None:
    """Commit the want of a checkpoint, with the decision of the call that asks for it.

    None where the session has changed since it was read, or the decision's request id is taken.
    Raises AlreadyWriting.
    """
    params = {
        "checkpoint_id": new.checkpoint_id,
        "session_id": new.session_id,
        "epoch": new.epoch,
        "kind": new.kind,
        "reason": new.reason,
        "label": new.label,
        "place": new.place,
        "decision_id": new.decision_id,
        "lease": new.lease,
    }
    begun = None
    try:
        async with database.transaction() as connection:
            begun = await one(connection, _BEGIN, params)
            if begun is None:
                raise psycopg.Rollback
            if decision is not None:
                await decision_rows.insert(connection, decision.about(new.session_id))
    except psycopg.errors.UniqueViolation as error:
        if error.diag.constraint_name == WRITING:
            raise AlreadyWriting from error
        if error.diag.constraint_name != REQUEST:
            raise
        return None
    return begun


_RENEW = compiled(
    sa.update(checkpoints)
    .where(checkpoints.c.checkpoint_id == _ID, checkpoints.c.state == sa.text("'WRITING'"))
    .values(lease_until=sa.func.now() + sa.bindparam("lease", type_=sa.Interval))
    .returning(checkpoints.c.number),
    scalar(int),
)
_MOVE = compiled(
    sa.update(checkpoints)
    .where(checkpoints.c.checkpoint_id == _ID, checkpoints.c.state == sa.text("'WRITING'"))
    .values(
        place=sa.bindparam("place", type_=sa.Text),
        object=sa.bindparam("object", type_=sa.Text),
        upload=sa.bindparam("upload", type_=sa.Text),
    )
    .returning(checkpoints.c.number),
    scalar(int),
)


async def renew(database: Database, checkpoint_id: UUID, lease: timedelta) -> bool:
    """Hold the lease longer; False where somebody said FAILED meanwhile."""
    params = {"checkpoint_id": checkpoint_id, "lease": lease}
    return await database.fetch_one(_RENEW, params) is not None


async def move(
    database: Database, checkpoint_id: UUID, place: Place, name: str, upload: str | None
) -> bool:
    """Say where its bytes go from now on; False where somebody said FAILED meanwhile."""
    params = {"checkpoint_id": checkpoint_id, "place": place, "object": name, "upload": upload}
    return await database.fetch_one(_MOVE, params) is not None
