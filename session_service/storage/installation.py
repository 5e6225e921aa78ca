"""The installation of Roost that this database belongs to.

The installation's id is in the labels of every machine. The id is bound to the database in which it
was created, identified by the system identifier of the PostgreSQL cluster and the database's OID.
A copy of the database that was restored in another cluster, or in the same one under another name,
has the same id but is not the installation. A copy of the files of a whole cluster cannot be
distinguished from the original.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

import sqlalchemy as sa

from session_service.errors import StorageUnavailable
from session_service.storage.database import Database, compiled, scalar
from session_service.storage.tables import installation


@dataclass(frozen=True, slots=True)
class Installation:
    """The installation's id, and whether it is bound to this database."""

    installation_id: UUID
    original: bool


@dataclass(frozen=True, slots=True)
class Binding:
    """An installation, the database that it is bound to, and the database that answered (`here`).

    A database is identified by the system identifier of its cluster and its OID, as "SYSTEM/OID".
    """

    installation_id: UUID
    bound_to: str
    here: str

    @property
    def original(self) -> bool:
        """Whether both are the same database. A binding without an OID is to the whole cluster."""
        return self.bound_to in (self.here, self.here.partition("/")[0])


#: The identity of the current database, as an SQL expression.
HERE = (
    "(SELECT system_identifier || '/' || oid FROM pg_control_system(), pg_database "
    "WHERE datname = current_database())"
)
_HERE = sa.text(HERE)
_READ = compiled(
    lambda: sa.select(installation.c.installation_id, installation.c.system_identifier, _HERE),
    lambda row: Binding(UUID(str(row[0])), str(row[1]), str(row[2])),
)
_CLAIM = compiled(
    lambda: (
        sa.update(installation)
        .where(
            installation.c.installation_id
            == sa.bindparam("installation_id", type_=installation.c.installation_id.type),
            # The binding must still be the one that the operator saw and confirmed.
            installation.c.system_identifier == sa.bindparam("bound_to", type_=sa.Text),
        )
        .values(system_identifier=_HERE)
        .returning(installation.c.system_identifier)
    ),
    scalar(str),
)


async def read(database: Database) -> Installation:
    """The installation. Raises StorageUnavailable."""
    found = await binding(database)
    return Installation(found.installation_id, found.original)


async def binding(database: Database) -> Binding:
    """The installation, and the database that it is bound to. Raises StorageUnavailable."""
    found = await database.fetch_one(_READ, {})
    if found is None:
        raise StorageUnavailable("the database has no installation row: run the migrations")
    return found


async def claim(database: Database, seen: Binding) -> bool:
    """Bind the installation to this database; False if its binding is no longer that of `seen`."""
    params = {"installation_id": seen.installation_id, "bound_to": seen.bound_to}
    return await database.fetch_one(_CLAIM, params) is not None
