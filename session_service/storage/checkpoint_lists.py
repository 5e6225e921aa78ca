"""Reading checkpoints, and pinning them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from session_service.storage.checkpoint_rows import checkpoint_columns, make_checkpoint
from session_service.storage.database import compiled
from session_service.storage.sessions import key_parameters
from session_service.storage.tables import checkpoints

if TYPE_CHECKING:
    from uuid import UUID

    from session_service.domain.checkpoint import Checkpoint
    from session_service.domain.session import Key
    from session_service.storage.database import Database

_UUID = checkpoints.c.checkpoint_id.type
_ALL = sa.select(*checkpoint_columns())
# What is being deleted is deleted, for all who ask.
_THERE: sa.ColumnElement[bool] = checkpoints.c.state != sa.text("'DELETING'")
_AT_KEY = [
    checkpoints.c[name] == sa.bindparam(name)
    for name in ("tenant", "project_id", "user_id", "slot")
]
_ONE = [
    checkpoints.c.checkpoint_id == sa.bindparam("checkpoint_id", type_=_UUID),
    checkpoints.c.tenant == sa.bindparam("tenant"),
    _THERE,
]
_GET = compiled(_ALL.where(*_ONE), make_checkpoint)
_NUMBERED = compiled(
    _ALL.where(
        *_AT_KEY, checkpoints.c.number == sa.bindparam("number", type_=sa.BigInteger), _THERE
    ),
    make_checkpoint,
)
_PAGE = compiled(
    _ALL.where(*_AT_KEY, checkpoints.c.number < sa.bindparam("below", type_=sa.BigInteger), _THERE)
    .order_by(checkpoints.c.number.desc())
    .limit(sa.bindparam("size", type_=sa.BigInteger)),
    make_checkpoint,
)
_READY = checkpoints.c.state == sa.text("'READY'")
# The head, its parent, and so on: those of a fork lead to another key.
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
_OF_SESSION = compiled(
    _ALL.where(
        (checkpoints.c.session_id == sa.bindparam("session_id", type_=_UUID))
        | checkpoints.c.checkpoint_id.in_(sa.select(_LINE.c.checkpoint_id)),
        _READY,
    ),
    make_checkpoint,
)
_KEPT = compiled(
    _ALL.where(*_AT_KEY, _READY).order_by(checkpoints.c.number.desc()), make_checkpoint
)
_OF_DECISION = compiled(
    _ALL.where(
        checkpoints.c.decision_id == sa.bindparam("decision_id", type_=_UUID), _THERE
    ).order_by(checkpoints.c.number.desc()),
    make_checkpoint,
)
_PIN = compiled(
    sa.update(checkpoints)
    .where(*_ONE)
    .values(pinned=sa.bindparam("pinned", type_=sa.Boolean))
    .returning(*checkpoint_columns()),
    make_checkpoint,
)

#: Above every number.
TOP = 2**63 - 1


async def get(database: Database, tenant: str, checkpoint_id: UUID) -> Checkpoint | None:
    """The tenant's checkpoint, or None."""
    return await database.fetch_one(_GET, {"tenant": tenant, "checkpoint_id": checkpoint_id})


async def numbered(database: Database, key: Key, number: int) -> Checkpoint | None:
    """The key's checkpoint of this number, or None."""
    return await database.fetch_one(_NUMBERED, {**key_parameters(key), "number": number})


async def page(database: Database, key: Key, below: int, size: int) -> list[Checkpoint]:
    """Up to `size` of the key's checkpoints, newest first, with numbers below this."""
    params = {**key_parameters(key), "below": below, "size": size}
    return await database.fetch_all(_PAGE, params)


async def of_session(database: Database, session_id: UUID, head: UUID | None) -> list[Checkpoint]:
    """What a session can go back to: its own READY ones, and those that it descends from."""
    params = {"session_id": session_id, "head": head}
    return await database.fetch_all(_OF_SESSION, params)


async def kept(database: Database, key: Key) -> list[Checkpoint]:
    """All READY ones of a key, newest first."""
    return await database.fetch_all(_KEPT, key_parameters(key))


async def of_decision(database: Database, decision_id: UUID) -> Checkpoint | None:
    """The newest that was taken for this decision's call, or None."""
    return await database.fetch_one(_OF_DECISION, {"decision_id": decision_id})


async def pin(
    database: Database, tenant: str, checkpoint_id: UUID, *, pinned: bool
) -> Checkpoint | None:
    """Pin it or let it go; None where there is none."""
    params = {"tenant": tenant, "checkpoint_id": checkpoint_id, "pinned": pinned}
    return await database.fetch_one(_PIN, params)
