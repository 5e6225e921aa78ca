"""The revision of the database's tables: what it is, and whether this version can use it.

A replica reads it at its start. It is one SELECT, without Alembic: `storage.migrate` imports that,
and only a database that has to be migrated needs it.
"""

from __future__ import annotations

import logging
from pathlib import Path

import psycopg

from session_service.storage import pooler
from session_service.storage.database import network
from session_service.storage.refusals import ReadOnlyDatabase

_log = logging.getLogger(__name__)
MIGRATIONS = Path(__file__).parent / "migrations"


class SchemaMismatch(Exception):
    """The database does not have the tables of this version. The message is one line."""


def read(url: str) -> str | None:
    """The revision of the database; None if it was never migrated.

    Raises psycopg.OperationalError, ReadOnlyDatabase, and DatabaseRefused if the address leads to
    a pooler that pools transactions.
    """
    with psycopg.connect(url, autocommit=True, **network(url)) as connection:
        pooler.check_direct_of(connection, url)
        if connection.execute("SHOW transaction_read_only").fetchone() != ("off",):
            raise ReadOnlyDatabase(
                "the database takes no writes: is it a standby? The address must lead to its "
                "primary"
            )
        try:
            rows = connection.execute("SELECT version_num FROM alembic_version").fetchall()
        except psycopg.errors.UndefinedTable:
            return None
    # Several rows are branches of another program's migrations.
    return ", ".join(str(row[0]) for row in rows) or None


def known(migrations: Path = MIGRATIONS) -> list[str]:
    """The revisions of this version, the newest last. The name of a migration's file begins with
    its revision.
    """
    files = (migrations / "versions").glob("[0-9]*_*.py")
    return sorted(path.name.partition("_")[0] for path in files)


def usable(here: str | None, revisions: list[str]) -> bool:
    """Whether a database at revision `here` has all tables of the version with these `revisions`:
    it is at the newest of them, or a later version has migrated it.

    Raises SchemaMismatch if the revision is not one of Roost's.
    """
    head = revisions[-1]
    if here is None or here in revisions:
        return here == head
    if not here.isdigit() or here < head:
        raise SchemaMismatch(f"the database is at revision {here}, which is not one of Roost's")
    _log.warning(
        "the database is at revision %s, this version has up to %s: a later version migrated it",
        here,
        head,
        extra={"action": "migrate"},
    )
    return True


def check(url: str, migrations: Path = MIGRATIONS) -> None:
    """Check that the database has all tables of this version, without changing anything.

    Raises SchemaMismatch if it has not, and what `read` raises.
    """
    here, revisions = read(url), known(migrations)
    if usable(here, revisions):
        return
    if here is None:
        raise SchemaMismatch("the database has no tables: run `python -m session_service migrate`")
    raise SchemaMismatch(
        f"the database is at revision {here}, and this version needs {revisions[-1]}: "
        "run `python -m session_service migrate`, or set ROOST_MIGRATE=true"
    )
