"""Writing checkpoints' rows: begun, READY or FAILED, each by compare-and-set on the state.

A row is WRITING under a lease. Whoever finds one whose owner is gone says FAILED, and from then on
nothing that the owner still does makes it READY.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
import sqlalchemy as sa

from session_service import points
from session_service.domain.checkpoint import CheckpointState
from session_service.storage import decisions as decision_rows
from session_service.storage.checkpoint_rows import checkpoint_columns, make_checkpoint
from session_service.storage.database import compiled, one
from session_service.storage.notifications import notice
from session_service.storage.rows import scalar
from session_service.storage.tables import (
    REQUEST,
    WRITING,
    checkpoint_numbers,
    checkpoints,
    containers,
    decisions,
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


@dataclass(frozen=True, slots=True)
class Proved:
    """What is known of a checkpoint whose bytes are durable and were read back."""

    size_bytes: int
    stored_bytes: int
    sha256: bytes | None


_DONE = (
    sa.update(checkpoints)
    .where(checkpoints.c.checkpoint_id == _ID, checkpoints.c.state == sa.text("'WRITING'"))
    .values(
        state=sa.text("'READY'"),
        ready_time=sa.func.now(),
        size_bytes=sa.bindparam("size_bytes", type_=sa.BigInteger),
        stored_bytes=sa.bindparam("stored_bytes", type_=sa.BigInteger),
        sha256=sa.bindparam("sha256", type_=sa.LargeBinary),
        upload=sa.null(),
        lease_until=sa.null(),
    )
    .returning(*checkpoint_columns())
    .cte("done")
)
# Not where a rollback came in between: then it is beside the session's line. None did where the
# epoch has not moved, or where the session still descends from what it did: that alone would not
# do, since what it descended from may have been deleted meanwhile.
_HEADED = (
    sa.update(sessions)
    .where(
        sessions.c.session_id == _DONE.c.session_id,
        (sessions.c.epoch == sa.bindparam("epoch", type_=sa.BigInteger))
        | sessions.c.checkpoint_id.is_not_distinct_from(_DONE.c.parent_id),
        sa.text("sessions.state IN ('STARTING', 'ACTIVE', 'PAUSING', 'PAUSED')"),
    )
    .values(checkpoint_id=_DONE.c.checkpoint_id, checkpoint_time=sa.func.now())
    .cte("headed")
)
_ANSWERED = (
    sa.update(decisions)
    .where(
        decisions.c.decision_id == _DONE.c.decision_id,
        sa.bindparam("answers", type_=sa.Boolean),
    )
    .values(finish_time=sa.func.now())
    .cte("answered")
)
_READY = compiled(
    sa.select(*checkpoint_columns(_DONE), notice(_DONE.c.session_id)).add_cte(_HEADED, _ANSWERED),
    make_checkpoint,
)


async def ready(
    database: Database, checkpoint_id: UUID, proved: Proved, *, epoch: int, answers: bool
) -> Checkpoint | None:
    """Say READY; the session descends from it from now on. None where somebody said FAILED before.

    `epoch` is the session's when it was begun. With `answers` the decision that it was taken for is
    finished by it.
    """
    params = {
        "checkpoint_id": checkpoint_id,
        "size_bytes": proved.size_bytes,
        "stored_bytes": proved.stored_bytes,
        "sha256": proved.sha256,
        "epoch": epoch,
        "answers": answers,
    }
    saving = database.fetch_one(_READY, params)
    saved: Checkpoint | None = await points.around("ready", saving)
    return saved


_LOST = (
    sa.update(checkpoints)
    .where(checkpoints.c.checkpoint_id == _ID, checkpoints.c.state == sa.text("'WRITING'"))
    .values(
        state=sa.text("'FAILED'"),
        failure=sa.bindparam("failure", type_=sa.Text),
        lease_until=sa.null(),
    )
    .returning(*checkpoint_columns())
    .cte("lost")
)
_FAIL = compiled(sa.select(*checkpoint_columns(_LOST), notice(_LOST.c.session_id)), make_checkpoint)
_SUPERSEDED = (
    sa.update(checkpoints)
    .where(
        checkpoints.c.session_id == sessions.c.session_id,
        checkpoints.c.state == sa.text("'WRITING'"),
        sessions.c.session_id == sa.bindparam("session_id", type_=_UUID),
        sessions.c.epoch == sa.bindparam("epoch", type_=sa.BigInteger),
    )
    .values(state=sa.text("'FAILED'"), failure=sa.text("'SUPERSEDED'"), lease_until=sa.null())
    .returning(*checkpoint_columns())
    .cte("superseded")
)
_SUPERSEDE = compiled(
    sa.select(*checkpoint_columns(_SUPERSEDED), notice(_SUPERSEDED.c.session_id)), make_checkpoint
)
_LAPSED = (
    sa.update(checkpoints)
    .where(
        checkpoints.c.state == sa.text("'WRITING'"),
        checkpoints.c.lease_until <= sa.func.now(),
        (sa.bindparam("only", type_=_UUID).is_(None))
        | (checkpoints.c.session_id == sa.bindparam("only", type_=_UUID)),
    )
    .values(state=sa.text("'FAILED'"), failure=sa.text("'OWNER_GONE'"), lease_until=sa.null())
    .returning(*checkpoint_columns())
    .cte("lapsed")
)
_LAPSE = compiled(
    sa.select(*checkpoint_columns(_LAPSED), notice(_LAPSED.c.session_id)), make_checkpoint
)
_ANSWER = compiled(
    sa.update(decisions)
    .where(
        decisions.c.decision_id == sa.bindparam("decision_id", type_=_UUID),
        decisions.c.finish_time.is_(None),
    )
    .values(
        finish_time=sa.func.now(),
        error=sa.bindparam("error", type_=decisions.c.error.type),
        request_id=sa.case(
            (sa.bindparam("free", type_=sa.Boolean), sa.null()), else_=decisions.c.request_id
        ),
    )
    .returning(decisions.c.decision_id),
    scalar(str),
)


async def fail(database: Database, checkpoint_id: UUID, failure: str) -> Checkpoint | None:
    """Say FAILED; None where it is no longer being written."""
    params = {"checkpoint_id": checkpoint_id, "failure": failure}
    return await database.fetch_one(_FAIL, params)


async def supersede(database: Database, session_id: UUID, epoch: int) -> list[Checkpoint]:
    """Say FAILED of what is being written of a session, by the owner of its transition: what a dead
    owner left, and what a call began before the transition. Nothing where the epoch has moved on.
    """
    params = {"session_id": session_id, "epoch": epoch}
    return await database.fetch_all(_SUPERSEDE, params)


async def lapse(database: Database, session_id: UUID | None = None) -> list[Checkpoint]:
    """Say FAILED of those whose owners are gone, of one session or of all."""
    return await database.fetch_all(_LAPSE, {"only": session_id})


async def answer(database: Database, decision_id: UUID, error: str, *, free: bool) -> None:
    """Finish a call's decision with a refusal; `free` gives its request id back."""
    params = {"decision_id": decision_id, "error": error, "free": free}
    await database.fetch_one(_ANSWER, params)


def is_over(checkpoint: Checkpoint) -> bool:
    """Whether nobody writes it any more."""
    return checkpoint.state is not CheckpointState.WRITING
