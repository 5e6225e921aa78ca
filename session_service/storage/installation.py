"""Which installation of Roost this database belongs to.

Its id is in the labels of every machine. It is bound to the identity of the PostgreSQL cluster that
made it: a copy of the database that runs elsewhere has the id, but is not the installation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

import sqlalchemy as sa

from session_service.errors import StorageUnavailable
from session_service.storage.database import Database, compiled
from session_service.storage.tables import installation

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Installation:
    """The installation's id, and whether this is the cluster that it was made on."""

    installation_id: UUID
    original: bool


def _make(row: Sequence[object]) -> Installation:
    return Installation(UUID(str(row[0])), row[1] == row[2])


_READ = compiled(
    sa.select(
        installation.c.installation_id,
        installation.c.system_identifier,
        sa.text("(SELECT system_identifier::text FROM pg_control_system())"),
    ),
    _make,
)


async def read(database: Database) -> Installation:
    """The installation. Raises StorageUnavailable."""
    found = await database.fetch_one(_READ, {})
    if found is None:
        raise StorageUnavailable("the database has no installation row: run the migrations")
    return found
