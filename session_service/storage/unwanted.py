"""Containers that nobody wants: which there are, and that one is gone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from session_service.storage.database import compiled
from session_service.storage.rows import container_columns, make_container
from session_service.storage.tables import containers

if TYPE_CHECKING:
    from uuid import UUID

    from session_service.domain.session import Container
    from session_service.storage.database import Database

_UNWANTED = compiled(
    sa.select(*container_columns())
    .where(sa.not_(containers.c.wanted), containers.c.destroy_time.is_(None))
    # So that those that cannot be destroyed for now are not all that is ever tried.
    .order_by(sa.func.random())
    .limit(sa.bindparam("most", type_=sa.BigInteger)),
    make_container,
)
_DESTROYED = compiled(
    sa.update(containers)
    .where(
        containers.c.session_id == sa.bindparam("session_id", type_=containers.c.session_id.type),
        containers.c.generation == sa.bindparam("generation", type_=sa.BigInteger),
        sa.not_(containers.c.wanted),
    )
    .values(destroy_time=sa.func.now(), state="DESTROYED")
    .returning(containers.c.generation),
    lambda row: int(row[0]),
)


async def find(database: Database, most: int) -> list[Container]:
    """Containers that nobody wants and that are not known to be gone."""
    return await database.fetch_all(_UNWANTED, {"most": most})


async def destroyed(database: Database, session_id: UUID, generation: int) -> None:
    """Note that a container that nobody wants is gone."""
    params = {"session_id": session_id, "generation": generation}
    await database.fetch_one(_DESTROYED, params)
