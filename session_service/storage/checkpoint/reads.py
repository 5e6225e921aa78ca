"""Read checkpoints, and pin them."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import psycopg
import sqlalchemy as sa

from session_service.domain.checkpoint import Checkpoint, CheckpointState, Kind, Place, Reason
from session_service.storage.database import compiled, one
from session_service.storage.session import decisions
from session_service.storage.session.reads import key_parameters
from session_service.storage.tables import checkpoints, sessions

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from session_service.domain.decision import Decision
    from session_service.domain.session import Key
    from session_service.storage.database import Database


CHECKPOINT_NAMES = [field.name for field in fields(Checkpoint)]
_ENUMS = [
    (CHECKPOINT_NAMES.index(name), kind)
    for name, kind in (
        ("kind", Kind),
        ("state", CheckpointState),
        ("reason", Reason),
        ("place", Place),
    )
]


def checkpoint_columns(source: sa.FromClause = checkpoints) -> list[sa.ColumnElement[Any]]:
    """The columns of `source`, in the order that `make_checkpoint` reads."""
    return [source.c[name] for name in CHECKPOINT_NAMES]


def make_checkpoint(row: Sequence[Any]) -> Checkpoint:
    """Build a checkpoint from its columns; further columns of the row are ignored."""
    values = list(row[: len(CHECKPOINT_NAMES)])
    for position, kind in _ENUMS:
        if values[position] is not None:
            values[position] = kind(values[position])
    return Checkpoint(*values)


_UUID = checkpoints.c.checkpoint_id.type
_ALL = sa.select(*checkpoint_columns())
# A checkpoint that is being deleted does not exist for callers.
_EXISTS: sa.ColumnElement[bool] = checkpoints.c.state != sa.text("'DELETING'")
_AT_KEY = [
    checkpoints.c[name] == sa.bindparam(name)
    for name in ("tenant", "project_id", "user_id", "slot")
]
_ONE = [
    checkpoints.c.checkpoint_id == sa.bindparam("checkpoint_id", type_=_UUID),
    checkpoints.c.tenant == sa.bindparam("tenant"),
    _EXISTS,
]
_GET = compiled(lambda: _ALL.where(*_ONE), make_checkpoint)
_NUMBERED = compiled(
    lambda: _ALL.where(
        *_AT_KEY, checkpoints.c.number == sa.bindparam("number", type_=sa.BigInteger), _EXISTS
    ),
    make_checkpoint,
)
_PAGE = compiled(
    lambda: (
        _ALL.where(
            *_AT_KEY, checkpoints.c.number < sa.bindparam("below", type_=sa.BigInteger), _EXISTS
        )
        .order_by(checkpoints.c.number.desc())
        .limit(sa.bindparam("size", type_=sa.BigInteger))
    ),
    make_checkpoint,
)
_HEAD_OF = compiled(
    lambda: _ALL.where(
        checkpoints.c.checkpoint_id
        == sa.select(sessions.c.checkpoint_id)
        .where(sessions.c.session_id == sa.bindparam("session_id", type_=_UUID))
        .scalar_subquery(),
        _EXISTS,
    ),
    make_checkpoint,
)
_READY = checkpoints.c.state == sa.text("'READY'")
# The head, its parent, and so on. The ancestors of a forked session are at another key.
_HEAD = (
    sa.select(checkpoints.c.checkpoint_id, checkpoints.c.parent_id)
    .where(checkpoints.c.checkpoint_id == sa.bindparam("head", type_=_UUID))
    .cte("line", recursive=True)
)
_LINE = _HEAD.union(
    sa.select(checkpoints.c.checkpoint_id, checkpoints.c.parent_id).join(
        _HEAD, checkpoints.c.checkpoint_id == _HEAD.c.parent_id
    )
)
_OWN = sa.select(checkpoints.c.checkpoint_id).where(
    checkpoints.c.session_id == sa.bindparam("session_id", type_=_UUID)
)
# A union of ids, each by an index. With OR instead, PostgreSQL reads all checkpoints: it compares
# each with the line, and no index serves both conditions.
_OF_SESSION = compiled(
    lambda: _ALL.where(
        checkpoints.c.checkpoint_id.in_(_OWN.union(sa.select(_LINE.c.checkpoint_id))), _READY
    ),
    make_checkpoint,
)
_KEPT = compiled(
    lambda: _ALL.where(*_AT_KEY, _READY).order_by(checkpoints.c.number.desc()), make_checkpoint
)
_OF_DECISION = compiled(
    lambda: _ALL.where(
        checkpoints.c.decision_id == sa.bindparam("decision_id", type_=_UUID), _EXISTS
    ).order_by(checkpoints.c.number.desc()),
    make_checkpoint,
)
_PIN = compiled(
    lambda: (
        sa.update(checkpoints)
        .where(*_ONE)
        .values(pinned=sa.bindparam("pinned", type_=sa.Boolean))
        .returning(*checkpoint_columns())
    ),
    make_checkpoint,
)

#: Above every number.
TOP = 2**63 - 1


async def get(database: Database, tenant: str, checkpoint_id: UUID) -> Checkpoint | None:
    """The tenant's checkpoint, or None."""
    return await database.fetch_one(_GET, {"tenant": tenant, "checkpoint_id": checkpoint_id})


async def head_of(database: Database, session_id: UUID) -> Checkpoint | None:
    """The checkpoint that the session's state descends from; None if it has none."""
    return await database.fetch_one(_HEAD_OF, {"session_id": session_id})


async def numbered(database: Database, key: Key, number: int) -> Checkpoint | None:
    """The key's checkpoint of this number, or None."""
    return await database.fetch_one(_NUMBERED, {**key_parameters(key), "number": number})


async def page(database: Database, key: Key, below: int, size: int) -> list[Checkpoint]:
    """Up to `size` of the key's checkpoints with numbers below `below`, newest first."""
    params = {**key_parameters(key), "below": below, "size": size}
    return await database.fetch_all(_PAGE, params)


async def of_session(database: Database, session_id: UUID, head: UUID | None) -> list[Checkpoint]:
    """The READY checkpoints that a session can be rolled back to: its own, and the ancestors of its
    `head`, including the head.
    """
    params = {"session_id": session_id, "head": head}
    return await database.fetch_all(_OF_SESSION, params)


async def kept(database: Database, key: Key) -> list[Checkpoint]:
    """All READY checkpoints of a key, newest first."""
    return await database.fetch_all(_KEPT, key_parameters(key))


async def of_decision(database: Database, decision_id: UUID) -> Checkpoint | None:
    """The newest checkpoint that was taken for the call of this decision, or None."""
    return await database.fetch_one(_OF_DECISION, {"decision_id": decision_id})


async def pin(
    database: Database, checkpoint_id: UUID, decision: Decision, *, pinned: bool
) -> Checkpoint | None:
    """Set whether the tenant's checkpoint is pinned, and insert the decision of the call. None, and
    nothing is written, if there is no such checkpoint or the decision's request id is taken.
    """
    tenant = decision.request.tenant
    params = {"tenant": tenant, "checkpoint_id": checkpoint_id, "pinned": pinned}
    try:
        async with database.transaction() as connection:
            written = await one(connection, _PIN, params)
            if written is not None:
                await decisions.insert(connection, decision)
    except psycopg.errors.UniqueViolation:
        return None
    return written
