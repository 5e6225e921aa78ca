"""Write the row and the chunks of a checkpoint: WRITING under a lease, then READY or FAILED.

Every write is a compare-and-set on the state. A replica that finds a checkpoint with an expired
lease sets it to FAILED. If the owner still runs, its later writes change nothing, and the
checkpoint never becomes READY.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
import sqlalchemy as sa

from session_service import failpoints
from session_service.domain.checkpoint import CheckpointState
from session_service.storage.checkpoint.reads import checkpoint_columns, make_checkpoint
from session_service.storage.database import BATCH_TIMEOUT, Connection, compiled, one, scalar
from session_service.storage.notifications import notice
from session_service.storage.tables import (
    LIVE_STATES,
    WRITING,
    checkpoint_chunks,
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


_UUID = checkpoints.c.checkpoint_id.type
_ID = sa.bindparam("checkpoint_id", type_=_UUID)
_KEY = ("tenant", "project_id", "user_id", "slot")


class AlreadyWriting(Exception):
    """Another checkpoint of the session is being written."""


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
# The upsert locks the key's row until the transaction of this statement ends: two checkpoints of a
# key never get the same number.
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
_VALUES = sa.select(*_NEW.values()).select_from(_SOURCE.join(_NUMBERED, sa.true()))
_INSERTED = (
    sa.insert(checkpoints)
    .from_select(list(_NEW), _VALUES)
    .returning(*checkpoint_columns())
    .cte("inserted")
)
# While the insert waits for a lock, a transition of the session can be committed. Its owner cannot
# see the new row, and so cannot mark it FAILED. So this locks the newest version of the session's
# row and checks the epoch again. FOR KEY SHARE would not do: it lets the epoch be updated. The
# session is locked after the insert, because `ready` too locks the checkpoint before the session.
_BEGIN = compiled(
    lambda: (
        sa.select(*checkpoint_columns(_INSERTED))
        .join(sessions, sessions.c.session_id == _INSERTED.c.session_id)
        .where(sessions.c.epoch == sa.bindparam("epoch", type_=sa.BigInteger))
        .with_for_update(read=True, of=sessions)
    ),
    make_checkpoint,
)


@dataclass(frozen=True, slots=True)
class NewCheckpoint:
    """A checkpoint to take of a session at this epoch. The statement copies the key, the spec and
    the like from the session's and the container's row, and takes the next number of the key.
    """

    checkpoint_id: UUID
    session_id: UUID
    epoch: int
    kind: Kind
    reason: Reason
    place: Place
    lease: timedelta
    label: str = ""
    decision_id: UUID | None = None

    async def apply(self, connection: Connection) -> Checkpoint | None:
        """Insert the row. None if the session has changed since it was read: the caller must then
        roll back. Raises psycopg.errors.UniqueViolation (index `checkpoints_writing`) if another
        checkpoint of the session is being written.
        """
        params = {
            "checkpoint_id": self.checkpoint_id,
            "session_id": self.session_id,
            "epoch": self.epoch,
            "kind": self.kind,
            "reason": self.reason,
            "label": self.label,
            "place": self.place,
            "decision_id": self.decision_id,
            "lease": self.lease,
        }
        return await one(connection, _BEGIN, params)


async def begin(database: Database, new: NewCheckpoint) -> Checkpoint | None:
    """Insert the row of a checkpoint in a transaction of its own, if no call waits for the
    checkpoint. None if the session has changed since it was read. Raises AlreadyWriting.
    """
    begun: Checkpoint | None = None
    try:
        async with database.transaction() as connection:
            begun = await new.apply(connection)
            if begun is None:
                raise psycopg.Rollback
    except psycopg.errors.UniqueViolation as error:
        if error.diag.constraint_name != WRITING:
            raise
        raise AlreadyWriting from error
    return begun


_RENEW = compiled(
    lambda: (
        sa.update(checkpoints)
        .where(checkpoints.c.checkpoint_id == _ID, checkpoints.c.state == sa.text("'WRITING'"))
        .values(lease_until=sa.func.now() + sa.bindparam("lease", type_=sa.Interval))
        .returning(checkpoints.c.number)
    ),
    scalar(int),
)
_MOVE = compiled(
    lambda: (
        sa.update(checkpoints)
        .where(checkpoints.c.checkpoint_id == _ID, checkpoints.c.state == sa.text("'WRITING'"))
        .values(
            place=sa.bindparam("place", type_=sa.Text),
            object=sa.bindparam("object", type_=sa.Text),
        )
        .returning(checkpoints.c.number)
    ),
    scalar(int),
)


async def renew(database: Database, checkpoint_id: UUID, lease: timedelta) -> bool:
    """Extend the lease; False if the checkpoint is no longer WRITING."""
    params = {"checkpoint_id": checkpoint_id, "lease": lease}
    return await database.fetch_one(_RENEW, params) is not None


async def move(database: Database, checkpoint_id: UUID, place: Place, name: str) -> bool:
    """Set where the bytes are written from now on; False if the checkpoint is not WRITING."""
    params = {"checkpoint_id": checkpoint_id, "place": place, "object": name}
    return await database.fetch_one(_MOVE, params) is not None


@dataclass(frozen=True, slots=True)
class Proved:
    """The sizes and the hash of a checkpoint whose bytes are durable and were read back. A snapshot
    of the provider has no hash, and is not read back.
    """

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
        lease_until=sa.null(),
    )
    .returning(*checkpoint_columns())
    .cte("done")
)
# The checkpoint becomes the session's head, unless another one was restored while it was written:
# then the session's state does not descend from it. Any of three conditions proves that none was:
# - The epoch is the same. Every pause advances it, so the other proofs are needed too.
# - The session still has the checkpoint's container. A rollback into that container would have set
#   the checkpoint to FAILED. A new container on the same volume restores no checkpoint either.
# - The head is still the checkpoint's parent. If the parent was deleted, the head is another one.
# All use the session's row only: PostgreSQL evaluates them again if the row changes first.
_HEADED = (
    sa.update(sessions)
    .where(
        sessions.c.session_id == _DONE.c.session_id,
        (sessions.c.epoch == sa.bindparam("epoch", type_=sa.BigInteger))
        | (sessions.c.generation == _DONE.c.generation)
        | sessions.c.checkpoint_id.is_not_distinct_from(_DONE.c.parent_id),
        sa.text(f"sessions.state IN ({LIVE_STATES})"),
    )
    .values(
        checkpoint_id=_DONE.c.checkpoint_id,
        checkpoint_time=sa.func.now(),
        # A checkpoint has succeeded, for whatever reason it was taken: the condition is over.
        conditions=sa.func.jsonb_path_query_array(
            sessions.c.conditions,
            sa.literal_column("""'strict $[*] ? (@[0] != "CHECKPOINT_FAILED")'"""),
        ),
    )
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
    lambda: sa.select(*checkpoint_columns(_DONE), notice(_DONE.c.session_id)).add_cte(
        _HEADED, _ANSWERED
    ),
    make_checkpoint,
)


async def ready(
    database: Database, checkpoint_id: UUID, proved: Proved, *, epoch: int, answers: bool
) -> Checkpoint | None:
    """Set the checkpoint to READY, and make it the session's head unless another checkpoint was
    restored meanwhile. None if the checkpoint is no longer WRITING.

    If the checkpoint does not become the head, the session's state does not descend from it. A
    start tries it after the head and the ancestors of the head.

    `epoch` is the session's epoch when the checkpoint was begun. With `answers`, the decision that
    the checkpoint was taken for is finished in the same statement.
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
    saved: Checkpoint | None = await failpoints.around("ready", saving)
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
_FAIL = compiled(
    lambda: sa.select(*checkpoint_columns(_LOST), notice(_LOST.c.session_id)), make_checkpoint
)
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
    lambda: sa.select(*checkpoint_columns(_SUPERSEDED), notice(_SUPERSEDED.c.session_id)),
    make_checkpoint,
)
_EXPIRED = (
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
_FAIL_EXPIRED = compiled(
    lambda: sa.select(*checkpoint_columns(_EXPIRED), notice(_EXPIRED.c.session_id)), make_checkpoint
)
_ANSWER = compiled(
    lambda: (
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
        .returning(decisions.c.decision_id)
    ),
    scalar(str),
)


async def fail(database: Database, checkpoint_id: UUID, failure: str) -> Checkpoint | None:
    """Set the checkpoint to FAILED; None if it is no longer WRITING."""
    params = {"checkpoint_id": checkpoint_id, "failure": failure}
    return await database.fetch_one(_FAIL, params)


async def supersede(database: Database, session_id: UUID, epoch: int) -> list[Checkpoint]:
    """Set the WRITING checkpoint of a session to FAILED, for the owner of the session's transition:
    a dead owner may have left one, or a call may have begun one before the transition. Returns it
    in a list, which is empty if there is none or if the session has another epoch.
    """
    params = {"session_id": session_id, "epoch": epoch}
    return await database.fetch_all(_SUPERSEDE, params)


async def fail_expired(database: Database, session_id: UUID | None = None) -> list[Checkpoint]:
    """Set the WRITING checkpoints whose leases have expired to FAILED, of one session or of all."""
    return await database.fetch_all(_FAIL_EXPIRED, {"only": session_id})


async def answer(database: Database, decision_id: UUID, error: str, *, free: bool) -> None:
    """Finish an unfinished decision with an error; `free` makes its request id usable again."""
    params = {"decision_id": decision_id, "error": error, "free": free}
    await database.fetch_one(_ANSWER, params)


def is_over(checkpoint: Checkpoint) -> bool:
    """Whether the checkpoint is no longer being written."""
    return checkpoint.state is not CheckpointState.WRITING


#: The size of a chunk in bytes. Only the last chunk of a checkpoint can be smaller.
PIECE = 1024 * 1024

_ID_CHUNKS = sa.bindparam("checkpoint_id", type_=checkpoint_chunks.c.checkpoint_id.type)
_NUMBER = sa.bindparam("number", type_=sa.BigInteger)
_PUT = compiled(
    lambda: (
        sa.insert(checkpoint_chunks)
        .from_select(
            ["checkpoint_id", "number", "bytes"],
            sa.select(
                checkpoints.c.checkpoint_id, _NUMBER, sa.bindparam("bytes", type_=sa.LargeBinary)
            ).where(
                checkpoints.c.checkpoint_id == _ID_CHUNKS,
                checkpoints.c.state == sa.text("'WRITING'"),
            ),
        )
        .returning(checkpoint_chunks.c.number)
    ),
    scalar(int),
)
_GET = compiled(
    lambda: sa.select(checkpoint_chunks.c.bytes).where(
        checkpoint_chunks.c.checkpoint_id == _ID_CHUNKS, checkpoint_chunks.c.number == _NUMBER
    ),
    scalar(bytes),
)
_DELETE = compiled(
    lambda: sa.select(sa.func.count()).select_from(
        sa.delete(checkpoint_chunks)
        .where(checkpoint_chunks.c.checkpoint_id == _ID_CHUNKS)
        .returning(checkpoint_chunks.c.number)
        .cte("gone")
    ),
    scalar(int),
)


async def put(database: Database, checkpoint_id: UUID, number: int, piece: bytes) -> bool:
    """Insert a chunk; False if the checkpoint is no longer WRITING."""
    params = {"checkpoint_id": checkpoint_id, "number": number, "bytes": piece}
    return await failpoints.around("chunk", database.fetch_one(_PUT, params)) is not None


async def get(database: Database, checkpoint_id: UUID, number: int) -> bytes | None:
    """The bytes of a chunk; None if there is no such chunk."""
    params = {**_GET.constants, "checkpoint_id": checkpoint_id, "number": number}
    async with database.connection() as connection:
        # Binary: the text format of bytea has twice the size.
        cursor = await connection.execute(_GET.sql, params, binary=True)
        row = await cursor.fetchone()
    return None if row is None else _GET.make(row)


async def delete(database: Database, checkpoint_id: UUID) -> int:
    """Delete all chunks of a checkpoint; return how many there were."""
    return await database.fetch_one(_DELETE, {"checkpoint_id": checkpoint_id}, BATCH_TIMEOUT) or 0
