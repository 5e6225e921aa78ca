"""The bytes of checkpoints that are kept in the database: pieces, each a short statement."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from session_service import points
from session_service.storage.connections import PATIENT
from session_service.storage.database import compiled
from session_service.storage.rows import scalar
from session_service.storage.tables import checkpoint_chunks, checkpoints

if TYPE_CHECKING:
    from uuid import UUID

    from session_service.storage.database import Database

#: How large a piece is, but for the last, in bytes.
PIECE = 1024 * 1024

_ID = sa.bindparam("checkpoint_id", type_=checkpoint_chunks.c.checkpoint_id.type)
_NUMBER = sa.bindparam("number", type_=sa.BigInteger)
_PUT = compiled(
    sa.insert(checkpoint_chunks)
    .from_select(
        ["checkpoint_id", "number", "bytes"],
        sa.select(
            checkpoints.c.checkpoint_id, _NUMBER, sa.bindparam("bytes", type_=sa.LargeBinary)
        ).where(checkpoints.c.checkpoint_id == _ID, checkpoints.c.state == sa.text("'WRITING'")),
    )
    .returning(checkpoint_chunks.c.number),
    scalar(int),
)
_GET = compiled(
    sa.select(checkpoint_chunks.c.bytes).where(
        checkpoint_chunks.c.checkpoint_id == _ID, checkpoint_chunks.c.number == _NUMBER
    ),
    scalar(bytes),
)
_DELETE = compiled(
    sa.select(sa.func.count()).select_from(
        sa.delete(checkpoint_chunks)
        .where(checkpoint_chunks.c.checkpoint_id == _ID)
        .returning(checkpoint_chunks.c.number)
        .cte("gone")
    ),
    scalar(int),
)


async def put(database: Database, checkpoint_id: UUID, number: int, piece: bytes) -> bool:
    """Append a piece; False where the checkpoint is no longer being written."""
    params = {"checkpoint_id": checkpoint_id, "number": number, "bytes": piece}
    return await points.around("chunk", database.fetch_one(_PUT, params)) is not None


async def get(database: Database, checkpoint_id: UUID, number: int) -> bytes | None:
    """A piece; None where there is no such."""
    params = {**_GET.constants, "checkpoint_id": checkpoint_id, "number": number}
    async with database.connection() as connection:
        # Binary: as text it would come at twice its size.
        cursor = await connection.execute(_GET.sql, params, binary=True)
        row = await cursor.fetchone()
    return None if row is None else _GET.make(row)


async def delete(database: Database, checkpoint_id: UUID) -> int:
    """Delete all pieces of a checkpoint; how many there were."""
    return await database.fetch_one(_DELETE, {"checkpoint_id": checkpoint_id}, PATIENT) or 0
