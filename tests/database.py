"""A PostgreSQL for a test run, and a database for each test."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import secrets
import shutil
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

from local.postgres.server import EmbeddedPostgres
from local.processes.folder_lock import FolderLock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

#: Longest time, in s, until the server notices a closed connection. Only a connection that was left
#: open takes so long.
CLOSING_SECONDS = 30.0
#: When abandoned connections are collected, in s.
COLLECT_SECONDS = 1.0
#: Longest time, in s, to drop a database before its connections are reported.
DROP_SECONDS = 5
PREFIX = "roost-tests-"
ROOM_BYTES = 2 * 1024**3
LEFTOVER_SECONDS = 3600.0


@contextmanager
def running_server() -> Iterator[str]:
    """The URL of this run's server: ROOST_DATABASE_URL, or an embedded one without fsync."""
    if given := os.environ.get("ROOST_DATABASE_URL"):
        yield given
        return
    place = scratch()
    remove_leftovers(place)
    with (
        tempfile.TemporaryDirectory(prefix=PREFIX, dir=place) as folder,
        asyncio.Runner() as runner,
    ):
        server = EmbeddedPostgres(Path(folder), durable=False)
        runner.run(server.__aenter__())
        try:
            yield server.url("postgres")
        finally:
            runner.run(server.__aexit__())


def scratch() -> Path:
    """The folder for the cluster: in memory if there is enough, because a database is 300 files.

    A copy of the template takes 10 ms there and 120 ms on a disk.
    """
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > ROOM_BYTES
    return memory if roomy and os.access(memory, os.W_OK) else Path(tempfile.gettempdir())


def remove_leftovers(place: Path) -> None:
    """Remove clusters of killed runs: old ones whose lock is free."""
    for old in place.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            lock = FolderLock(old)
            if time.time() - old.stat().st_mtime > LEFTOVER_SECONDS and lock.acquire():
                shutil.rmtree(old, ignore_errors=True)
            lock.release()


#: How long a statement that fills tables for a test may take, in s. The limit for a statement of a
#: call is shorter.
FILL_SECONDS = 20.0

#: What a test may change of a database beside its rows: any of these makes the digest another. Who
#: changes a catalog writes a row with a newer `xmin`, or removes one. The first oid of an object
#: that is not PostgreSQL's own is 16384.
SCHEMA = """
    SELECT md5(string_agg(item, ',' ORDER BY item)) FROM (
        SELECT format('class %s %s', count(*), max(xmin::text::bigint)) AS item
        FROM pg_class WHERE oid >= 16384
        UNION ALL
        SELECT format('attribute %s %s', count(*), max(xmin::text::bigint))
        FROM pg_attribute WHERE attrelid >= 16384
        UNION ALL
        SELECT format('proc %s %s', count(*), max(xmin::text::bigint))
        FROM pg_proc WHERE oid >= 16384
        UNION ALL
        SELECT format('trigger %s %s', count(*), max(xmin::text::bigint)) FROM pg_trigger
        UNION ALL
        SELECT format('constraint %s %s', count(*), max(xmin::text::bigint)) FROM pg_constraint
        UNION ALL
        SELECT format('namespace %s %s', count(*), max(xmin::text::bigint)) FROM pg_namespace
        UNION ALL
        SELECT format('index %s %s', count(*), max(xmin::text::bigint))
        FROM pg_index WHERE indexrelid >= 16384
        UNION ALL
        SELECT format('type %s %s', count(*), max(xmin::text::bigint))
        FROM pg_type WHERE oid >= 16384
        UNION ALL
        SELECT format('database %s %s', datallowconn, datconnlimit) FROM pg_database
        WHERE datname = current_database()
        UNION ALL
        SELECT format('setting %s %s', setdatabase, setconfig) FROM pg_db_role_setting
    ) AS items
"""

#: The tables of which the file has a page, and the bytes of all files. Of the others a statement
#: would only load the description, which takes a new connection longer than the rest of a reset.
WRITTEN = """
    SELECT coalesce(array_agg(relname::text) FILTER (WHERE relkind = 'r' AND size > 0), '{}'),
        coalesce(sum(size), 0)
    FROM (
        SELECT relname, relkind,
            (pg_stat_file(format('base/%s/%s', pg_database.oid, relfilenode), true)).size
        FROM pg_class, pg_database
        WHERE pg_database.datname = current_database()
            AND pg_class.oid >= 16384 AND relkind IN ('r', 't')
    ) AS files
"""


@dataclass
class Original:
    """What the next test is to find in a database, and how often it was used."""

    digest: str
    rows: dict[str, str]
    """By table the rows, as JSON; empty if there are none."""
    sequences: dict[str, tuple[Any, ...]]
    """By sequence the last value, and whether that was given out. Any: a number and a truth."""
    uses: int = 0


class Reused:
    """Copies of a template that tests use one after another, each as if it were new.

    Emptying one takes PostgreSQL a fifth of the time that a new copy takes. One whose schema or
    settings a test has changed is dropped instead.
    """

    #: Deleted rows stay in the files until a vacuum: after so many tests, or if the tables have
    #: grown to so many bytes, a new copy is cheaper.
    USES = 40
    BYTES = 4_000_000

    def __init__(self, databases: Databases, template: str) -> None:
        """`template`: a URL of a database whose rows each test is to find."""
        self._databases = databases
        self._template = template
        self._free: list[str] = []
        self._originals: dict[str, Original] = {}

    def take(self, prepare: Callable[[str], None]) -> str:
        """The URL of a database for one test. `prepare` is called with that of a new one."""
        if self._free:
            return self._free.pop()
        url = self._databases.create(template=self._template)
        prepare(url)
        with psycopg.connect(url, autocommit=True) as connection:
            self._originals[url] = _read(connection)
        return url

    def give_back(self, url: str) -> None:
        """Empty it for the next test, or drop it."""
        original = self._originals.pop(url)
        original.uses += 1
        try:
            with psycopg.connect(url, autocommit=True) as connection:
                written, size = _fetch(connection, sql.SQL(WRITTEN))
                (digest,) = _fetch(connection, sql.SQL(SCHEMA))
                usable = (
                    original.uses < self.USES and size < self.BYTES and digest == original.digest
                )
                if usable:
                    connection.execute(_reset(original, written))
        except psycopg.Error:
            usable = False
        if usable:
            # Under a new name, so that what was left of the test by mistake cannot reach it.
            renamed = self._databases.rename(url)
            self._originals[renamed] = original
            self._free.append(renamed)
        else:
            self._databases.drop(url)

    def close(self) -> None:
        """Drop those that are free."""
        while self._free:
            self._databases.drop(self._free.pop())


def _read(connection: psycopg.Connection) -> Original:
    """What is to be restored: the rows, of this database alone, and the sequences."""
    (digest,) = _fetch(connection, sql.SQL(SCHEMA))
    names, _ = _fetch(connection, sql.SQL(WRITTEN))
    rows: dict[str, str] = {}
    for name in names:
        content = sql.SQL("SELECT coalesce(json_agg(t)::text, '') FROM {} AS t")
        (rows[name],) = _fetch(connection, content.format(sql.Identifier(name)))
    found = "SELECT coalesce(array_agg(sequencename::text), '{}') FROM pg_sequences"
    sequences: dict[str, tuple[Any, ...]] = {}
    for name in _fetch(connection, sql.SQL(found))[0]:
        value = sql.SQL("SELECT last_value, is_called FROM {}").format(sql.Identifier(name))
        sequences[name] = _fetch(connection, value)
    return Original(digest, rows, sequences)


def _reset(original: Original, written: Iterable[str]) -> sql.Composed:
    """Give a database its rows again, and the first numbers of its sequences; in one round trip.

    `written`: the tables that may have rows.
    """
    # Without triggers and foreign keys, so that the order of tables does not matter.
    steps: list[sql.Composable] = [sql.SQL("BEGIN; SET LOCAL session_replication_role = replica")]
    steps += [sql.SQL("DELETE FROM {}").format(sql.Identifier(name)) for name in written]
    for name, rows in original.rows.items():
        if rows:
            insert = "INSERT INTO {} SELECT * FROM json_populate_recordset(NULL::{}, {})"
            table = sql.Identifier(name)
            steps.append(sql.SQL(insert).format(table, table, sql.Literal(rows)))
    for name, first in original.sequences.items():
        steps.append(sql.SQL("SELECT setval({}, {}, {})").format(*map(sql.Literal, (name, *first))))
    # Some tests read how many rows a statement has changed.
    steps.append(sql.SQL("COMMIT; SELECT pg_stat_reset()"))
    return sql.SQL("; ").join(steps)


def _fetch(connection: psycopg.Connection, query: sql.SQL | sql.Composed) -> tuple[Any, ...]:
    """The one row of a query. Any: columns of every type."""
    row = connection.execute(query).fetchone()
    assert row is not None
    return tuple(row)


class Databases:
    """Creates and drops databases of one server, under names that no other run uses."""

    def __init__(self, server_url: str) -> None:
        self._server_url = server_url
        #: One for the run, because a new one takes the server ten times as long as a statement.
        self._connection = psycopg.connect(server_url, autocommit=True)
        self._prefix = f"roost_test_{secrets.token_hex(4)}"
        self._count = 0
        self._one = threading.Lock()

    def close(self) -> None:
        """Close the connection to the server."""
        self._connection.close()

    def create(self, template: str | None = None) -> str:
        """Create a database, empty or a copy of a template, and return its URL."""
        url = self._next_url()
        statement = sql.SQL("CREATE DATABASE {}").format(_name(url))
        if template:
            # A copy of files, not through the WAL: 15 ms with fsync off.
            copy = sql.SQL(" TEMPLATE {} STRATEGY file_copy").format(_name(template))
            statement = statement + copy
        self._execute(statement)
        return url

    def rename(self, url: str) -> str:
        """Give a database without connections a name that it never had, and return its URL."""
        new = self._next_url()
        self._execute(sql.SQL("ALTER DATABASE {} RENAME TO {}").format(_name(url), _name(new)))
        return new

    def _next_url(self) -> str:
        self._count += 1
        url = urlsplit(self._server_url)._replace(path=f"/{self._prefix}_{self._count}")
        return urlunsplit(url)

    def drop(self, url: str) -> None:
        """Drop the database and its connections.

        PostgreSQL waits for connections that are being established, to any database, for up to a
        minute. One that was abandoned half-way exists until it is garbage-collected.
        """
        statement = sql.SQL("DROP DATABASE {} WITH (FORCE)").format(_name(url))
        try:
            self._execute(statement, DROP_SECONDS)
        except psycopg.errors.QueryCanceled:
            gc.collect()
            self._execute(statement)

    def connections(self, url: str) -> list[str]:
        """Describe the open connections to the database, with their last statements.

        One that was abandoned half-way is closed when it is garbage-collected.
        """
        deadline = time.monotonic() + CLOSING_SECONDS
        collect_at = time.monotonic() + COLLECT_SECONDS
        while True:
            rows = self._connection.execute(
                "SELECT application_name || ': ' || query FROM pg_stat_activity"
                " WHERE datname = %s AND backend_type = 'client backend'",
                [urlsplit(url).path[1:]],
            ).fetchall()
            if not rows or time.monotonic() > deadline:
                return [row[0] for row in rows]
            if time.monotonic() > collect_at:
                collect_at = float("inf")
                gc.collect()
            time.sleep(0.02)

    def _execute(self, statement: sql.Composed, seconds: int = 0) -> None:
        """Execute a statement for at most this many seconds; 0 is no limit.

        PostgreSQL itself waits 5 s for connections that are ending. On a busy machine that is too
        short, so the statement is then repeated.
        """
        limit = "SELECT set_config('statement_timeout', %s, false)"
        deadline = time.monotonic() + CLOSING_SECONDS
        with self._one:
            self._connection.execute(limit, [f"{seconds}s"])
            while True:
                try:
                    self._connection.execute(statement)
                    return
                except psycopg.errors.ObjectInUse:
                    if time.monotonic() > deadline:
                        raise


def _name(url: str) -> sql.Identifier:
    """The name of the database in a URL."""
    return sql.Identifier(urlsplit(url).path[1:])
