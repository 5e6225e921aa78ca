"""Bringing a database to this version's tables, at start or by command, or only looking at it.

Safe with any number of replicas starting at once: an advisory lock lets one through at a time, and
the rest find nothing left to do. Replicas of two versions run side by side: migrations only add
(`tests/unit/test_migrations.py` holds them to it), so that one whose database is ahead goes on.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

import psycopg
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from session_service.storage.connections import network

_log = logging.getLogger(__name__)

#: Any number that other users of the database do not take; spells "roost".
LOCK = 0x726F6F7374
#: Between two looks whether the other migrator is done, in s. Nobody waits inside a statement: an
#: index that is built concurrently waits for all statements that are older.
LOCK_PAUSE = 0.1
#: A change of a table waits for who uses it, and all who come later wait for the change: so long.
LOCK_TIMEOUT = "2s"
#: How often a migration that met a busy table is begun again, and the pause between, in s.
TRIES = 30
TRY_PAUSE = 1.0
_IN_USE = (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected)
MIGRATIONS = Path(__file__).parent / "migrations"


class SchemaMismatch(Exception):
    """The tables are not what this version needs; the message is one line that says what to do."""


def engine_url(url: str) -> str:
    """The address as SQLAlchemy wants it, for any postgresql:// address."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.partition("+")[0] not in ("postgresql", "postgres"):
        raise ValueError("must begin with postgresql://")
    return f"postgresql+psycopg://{rest}"


def upgrade(url: str, revision: str = "head", migrations: Path = MIGRATIONS) -> None:
    """Apply what is missing, blocking until done; a database that is ahead is left as it is.

    Raises sqlalchemy.exc.OperationalError, and SchemaMismatch for a database of somebody else's.
    """
    config = Config()
    config.set_main_option("script_location", str(migrations))
    engine = _engine(url)
    try:
        with engine.connect() as connection:
            config.attributes["connection"] = connection
            _take_lock(connection)
            if _ahead(connection, ScriptDirectory.from_config(config)):
                return
            connection.execute(sa.text(f"SET lock_timeout = '{LOCK_TIMEOUT}'"))
            connection.commit()
            _apply(connection, config, revision)
            connection.commit()
    finally:
        engine.dispose()


def check(url: str, migrations: Path = MIGRATIONS) -> None:
    """Make sure, changing nothing, that the database has all that this version needs.

    Raises SchemaMismatch where it has not, and sqlalchemy.exc.OperationalError.
    """
    scripts = ScriptDirectory(str(migrations))
    engine = _engine(url)
    try:
        with engine.connect() as connection:
            if _ahead(connection, scripts):
                return
            here, head = _revision(connection), scripts.get_current_head()
    finally:
        engine.dispose()
    if here is None:
        raise SchemaMismatch("the database has no tables: run `python -m session_service migrate`")
    if here != head:
        raise SchemaMismatch(
            f"the database is at revision {here}, and this version needs {head}: "
            "run `python -m session_service migrate`, or set ROOST_MIGRATE=true"
        )


def _engine(url: str) -> sa.Engine:
    return sa.create_engine(engine_url(url), poolclass=sa.NullPool, connect_args=network(url))


def _take_lock(connection: sa.Connection) -> None:
    # The lock is the connection's, not the transaction's: a migration may commit in parts.
    take = sa.text("SELECT pg_try_advisory_lock(:lock)")
    while not connection.execute(take, {"lock": LOCK}).scalar():
        connection.commit()
        time.sleep(LOCK_PAUSE)
    connection.commit()


def _apply(connection: sa.Connection, config: Config, revision: str) -> None:
    """Run the migrations; one that meets a busy table steps back, and lets its users through."""
    for tries_left in reversed(range(TRIES)):
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


def _ahead(connection: sa.Connection, scripts: ScriptDirectory) -> bool:
    """Whether a later version than this one has migrated the database. Raises SchemaMismatch."""
    here, head = _revision(connection), scripts.get_current_head()
    if here is None or here in {script.revision for script in scripts.walk_revisions()}:
        return False
    if not here.isdigit() or head is None or here < head:
        raise SchemaMismatch(f"the database is at revision {here}, which is none of Roost's")
    _log.warning(
        "the database is at revision %s, this version knows up to %s: a later version runs, or ran",
        here,
        head,
        extra={"action": "migrate"},
    )
    return True


def _revision(connection: sa.Connection) -> str | None:
    """The database's revision; None where nothing was ever migrated."""
    revision = MigrationContext.configure(connection).get_current_revision()
    connection.commit()
    return revision
