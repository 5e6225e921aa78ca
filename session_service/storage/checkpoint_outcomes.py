"""What becomes of a checkpoint that is written: READY or FAILED, by compare-and-set on the state.

Whoever finds one whose owner is gone says FAILED, and from then on nothing that the owner still
does makes it READY.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa

from session_service import points
from session_service.domain.checkpoint import CheckpointState
from session_service.storage.checkpoint_rows import checkpoint_columns, make_checkpoint
from session_service.storage.database import compiled
from session_service.storage.notifications import notice
from session_service.storage.rows import scalar
from session_service.storage.tables import checkpoints, decisions, sessions

if TYPE_CHECKING:
    from uuid import UUID

    from session_service.domain.checkpoint import Checkpoint
    from session_service.storage.database import Database

_UUID = checkpoints.c.checkpoint_id.type
_ID = sa.bindparam("checkpoint_id", type_=_UUID)


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
    .values(
        checkpoint_id=_DONE.c.checkpoint_id,
        checkpoint_time=sa.func.now(),
        # Whoever saved it: that it cannot be saved is no longer so.
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
