"""Migrate a database to the tables of this version.

Any number of replicas can do this at the same time: an advisory lock lets one replica migrate, and
the others then find nothing left to do. Replicas of two versions can run side by side, because a
migration only adds to the schema (`tests/unit/test_migrations.py` checks this). A replica therefore
accepts a database that a later version has migrated.
"""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psycopg
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext

from session_service.storage.database import network
from session_service.storage.refusals import ReadOnlyDatabase
from session_service.storage.revision import MIGRATIONS, SchemaMismatch, known, usable

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

_log = logging.getLogger(__name__)

#: The key of the advisory lock: any number that other users of the database do not use. The bytes
#: spell "roost".
LOCK = 0x726F6F7374
#: The pause between two tries to take the lock, in s. The lock is polled, and not waited for inside
#: a statement: CREATE INDEX CONCURRENTLY waits for all transactions that are older than it, and a
#: replica that waited for the migrator inside a statement would be one of them (a deadlock).
LOCK_PAUSE = 0.1
#: How long a change of a table waits for the transactions that use the table. All later statements
#: on the table wait behind the change, and so this must be short.
LOCK_TIMEOUT = "2s"
#: How often a migration is tried if a table is in use, and the pause between two tries, in s.
TRIES = 30
TRY_PAUSE = 1.0
_IN_USE = (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected)


def engine_url(url: str) -> str:
    """The postgresql:// address in SQLAlchemy's form. Raises ValueError for another scheme."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.partition("+")[0] not in ("postgresql", "postgres"):
        raise ValueError("must begin with postgresql://")
    return f"postgresql+psycopg://{rest}"


def upgrade(url: str, revision: str = "head", migrations: Path = MIGRATIONS) -> None:
    """Apply the missing migrations, and block until that is done. A database that a later version
    has migrated is not changed.

    Raises sqlalchemy.exc.OperationalError, ReadOnlyDatabase, and SchemaMismatch if the database's
    revision is not one of Roost's, or if its user may not create what is missing.
    """
    config = Config()
    config.set_main_option("script_location", str(migrations))
    engine = _engine(url)
    try:
        with engine.connect() as connection:
            config.attributes["connection"] = connection
            _take_lock(connection)
            if usable(_revision(connection), known(migrations)):
                return
            with _explained(connection):
                _apply(connection, config, revision)
                connection.commit()
    finally:
        engine.dispose()


def _engine(url: str) -> sa.Engine:
    return sa.create_engine(engine_url(url), poolclass=sa.NullPool, connect_args=network(url))


@contextmanager
def _explained(connection: sa.Connection) -> Generator[None]:
    """Say what the operator can do about a server that does not let this user migrate."""
    try:
        yield
    except sa.exc.DBAPIError as error:
        if isinstance(error.orig, psycopg.errors.ReadOnlySqlTransaction):
            raise ReadOnlyDatabase(
                "the database takes no writes: is it a standby? The address must lead to its "
                "primary"
            ) from error
        if isinstance(error.orig, psycopg.errors.InsufficientPrivilege):
            user = connection.engine.url.username
            said = str(error.orig).partition("\n")[0]
            raise SchemaMismatch(
                f"the database user {user!r} may not migrate ({said}): as the owner of the schema, "
                f'run GRANT USAGE, CREATE ON SCHEMA public TO "{user}"'
            ) from error
        raise


def _take_lock(connection: sa.Connection) -> None:
    # A lock of the connection and not of the transaction, because a migration can commit in parts.
    take = sa.text("SELECT pg_try_advisory_lock(:lock)")
    while not connection.execute(take, {"lock": LOCK}).scalar():
        connection.commit()
        time.sleep(LOCK_PAUSE)
    connection.commit()


def _apply(connection: sa.Connection, config: Config, revision: str) -> None:
    """Run the migrations. If a table is in use, roll back, which lets the statements that wait for
    the table continue, and try again after a pause.
    """
    for tries_left in reversed(range(TRIES)):
        limit_locks(connection)
        connection.commit()
        try:
            command.upgrade(config, revision)
        except sa.exc.OperationalError as error:
            connection.rollback()
            if not isinstance(error.orig, _IN_USE) or not tries_left:
                raise
            _log.warning(
                "a table is in use; the migration is tried again", extra={"action": "migrate"}
            )
            time.sleep(TRY_PAUSE)
        else:
            return


def limit_locks(connection: sa.Connection) -> None:
    """Set the limit of waits for locks. A migration that builds an index lifts it for the session,
    and neither the migration after it nor the next try may inherit that.
    """
    connection.execute(sa.text(f"SET lock_timeout = '{LOCK_TIMEOUT}'"))


def _revision(connection: sa.Connection) -> str | None:
    """The revision of the database; None if it was never migrated."""
    revision = MigrationContext.configure(connection).get_current_revision()
    connection.commit()
    return revision
