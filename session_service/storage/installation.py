"""Which installation of Roost this database belongs to.

Its id is in the labels of every machine. It is bound to the database that made it, by the identity
of its PostgreSQL cluster and its own within that: a copy that was restored elsewhere, or beside it,
has the id, but is not the installation. (A copy of a whole cluster's files cannot be told from it.)
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

import sqlalchemy as sa

from session_service.errors import StorageUnavailable
from session_service.storage.database import Database, compiled
from session_service.storage.rows import scalar
from session_service.storage.tables import installation


@dataclass(frozen=True, slots=True)
class Installation:
    """The installation's id, and whether this is the database that it was made in."""

    installation_id: UUID
    original: bool


@dataclass(frozen=True, slots=True)
class Binding:
    """An installation, the database that it is bound to, and the one that answers.

    Databases are told apart by their cluster's system identifier and their own OID in it.
    """

    installation_id: UUID
    bound_to: str
    here: str

    @property
    def original(self) -> bool:
        """Whether they are the same. One that names no OID is bound to the whole cluster."""
        return self.bound_to in (self.here, self.here.partition("/")[0])


#: Which database this is, as SQL.
HERE = (
    "(SELECT system_identifier || '/' || oid FROM pg_control_system(), pg_database "
    "WHERE datname = current_database())"
)
_HERE = sa.text(HERE)
_READ = compiled(
    sa.select(installation.c.installation_id, installation.c.system_identifier, _HERE),
    lambda row: Binding(UUID(str(row[0])), str(row[1]), str(row[2])),
)
_CLAIM = compiled(
    sa.update(installation)
    .where(
        installation.c.installation_id
        == sa.bindparam("installation_id", type_=installation.c.installation_id.type),
        # As it was shown to whoever said yes to it.
        installation.c.system_identifier == sa.bindparam("bound_to", type_=sa.Text),
    )
    .values(system_identifier=_HERE)
    .returning(installation.c.system_identifier),
    scalar(str),
)


async def read(database: Database) -> Installation:
    """The installation. Raises StorageUnavailable."""
    found = await binding(database)
    return Installation(found.installation_id, found.original)


async def binding(database: Database) -> Binding:
    """The installation, and what it is bound to. Raises StorageUnavailable."""
    found = await database.fetch_one(_READ, {})
    if found is None:
        raise StorageUnavailable("the database has no installation row: run the migrations")
    return found


async def claim(database: Database, seen: Binding) -> bool:
    """Bind the installation to this database; False where it is no longer bound as was seen."""
    params = {"installation_id": seen.installation_id, "bound_to": seen.bound_to}
    return await database.fetch_one(_CLAIM, params) is not None
