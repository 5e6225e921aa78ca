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
#: How often the log says who holds the lock, in s.
TELL_EVERY = 30.0
#: Of a lock with a key of 64 bits `pg_locks` has the two halves.
_HOLDER = sa.text(
    """
    SELECT pid, usename, application_name, host(client_addr), date_trunc('second', now()
        - state_change), state
    FROM pg_locks JOIN pg_stat_activity USING (pid)
    WHERE locktype = 'advisory' AND granted AND objsubid = 1
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND (classid::bigint << 32 | objid::bigint) = :lock
    """
)
#: How long a change of a table waits for the transactions that use the table. All later statements
#: on the table wait behind the change, and so this must be short.
LOCK_TIMEOUT = "2s"
#: How often a migration is tried if a table is in use, and the pause between two tries, in s.
TRIES = 30
TRY_PAUSE = 1.0
_IN_USE = (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected)


def engine(url: str) -> sa.Engine:
    """SQLAlchemy on the address, which is read by libpq: SQLAlchemy's own reader knows fewer
    forms. It keeps no connection.
    """

    def connect() -> psycopg.Connection:
        return psycopg.connect(url, **network(url))

    return sa.create_engine("postgresql+psycopg://", poolclass=sa.NullPool, creator=connect)


def upgrade(url: str, revision: str = "head", migrations: Path = MIGRATIONS) -> None:
    """Apply the missing migrations, and block until that is done. A database that a later version
    has migrated is not changed.

    Raises sqlalchemy.exc.OperationalError, ReadOnlyDatabase, and SchemaMismatch if the database's
    revision is not one of Roost's, or if its user may not create what is missing.
    """
    config = Config()
    config.set_main_option("script_location", str(migrations))
    connecting = engine(url)
    try:
        with connecting.connect() as connection:
            config.attributes["connection"] = connection
            _take_lock(connection)
            if usable(_revision(connection), known(migrations)):
                return
            with _explained(connection):
                _apply(connection, config, revision)
                connection.commit()
    finally:
        connecting.dispose()


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
            user = _driver(connection).info.user
            said = str(error.orig).partition("\n")[0]
            raise SchemaMismatch(
                f"the database user {user!r} may not migrate ({said}): as the owner of the schema, "
                f'run GRANT USAGE, CREATE ON SCHEMA public TO "{user}"'
            ) from error
        raise


def _driver(connection: sa.Connection) -> psycopg.Connection:
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    return driver


def _take_lock(connection: sa.Connection) -> None:
    # A lock of the connection and not of the transaction, because a migration can commit in parts.
    take = sa.text("SELECT pg_try_advisory_lock(:lock)")
    tell = time.monotonic()
    while not connection.execute(take, {"lock": LOCK}).scalar():
        if time.monotonic() >= tell:
            _log.warning(
                "waiting for another migration: its lock is held by %s",
                _holder(connection),
                extra={"action": "migrate"},
            )
            tell = time.monotonic() + TELL_EVERY
        connection.commit()
        time.sleep(LOCK_PAUSE)
    connection.commit()


def _holder(connection: sa.Connection) -> str:
    """Who holds the lock, in words with which an operator can find it."""
    row = connection.execute(_HOLDER, {"lock": LOCK}).first()
    if row is None:
        return "nobody any more"
    pid, user, program, address, since, state = row
    # Of other users' processes PostgreSQL shows the first three to superusers only.
    known = f"{program or 'unknown'!r} of user {user!r}" if user else "another user"
    where = f" at {address}" if address else ""
    idle = f", {state} for {since}" if state else ""
    return f"process {pid}, {known}{where}{idle} (SELECT pg_terminate_backend({pid}) ends it)"


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
