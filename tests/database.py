"""A PostgreSQL for a test run, and a database of its own for each test."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import secrets
import shutil
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

from local.lock import FolderLock
from local.postgres import EmbeddedPostgres

if TYPE_CHECKING:
    from collections.abc import Iterator

#: How long the server may need to notice that a closed connection is closed.
CLOSING_SECONDS = 3.0
#: How long a database's removal may take before what holds it up is looked for.
DROP_SECONDS = 5
PREFIX = "roost-tests-"
ROOM_BYTES = 2 * 1024**3
LEFTOVER_SECONDS = 3600.0


@contextmanager
def running_server() -> Iterator[str]:
    """The address of this run's server: ROOST_DATABASE_URL's, or an embedded one without fsync."""
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
    """Where the cluster goes: to memory where there is enough, since a database is 300 files.

    A copy of the template takes 10 ms there and 120 ms on a disk.
    """
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > ROOM_BYTES
    return memory if roomy and os.access(memory, os.W_OK) else Path(tempfile.gettempdir())


def remove_leftovers(place: Path) -> None:
    """Take away clusters of runs that were killed: old ones that nobody holds the lock of."""
    for old in place.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            lock = FolderLock(old)
            if time.time() - old.stat().st_mtime > LEFTOVER_SECONDS and lock.acquire():
                shutil.rmtree(old, ignore_errors=True)
            lock.release()


class Databases:
    """Makes and drops databases of one server, under names that no other run uses."""

    def __init__(self, server_url: str) -> None:
        self._server_url = server_url
        self._prefix = f"roost_test_{secrets.token_hex(4)}"
        self._count = 0

    def create(self, template: str | None = None) -> str:
        """Make a database, empty or a copy, and return its address."""
        self._count += 1
        url = urlsplit(self._server_url)._replace(path=f"/{self._prefix}_{self._count}")
        statement = sql.SQL("CREATE DATABASE {}").format(_name(urlunsplit(url)))
        if template:
            # As files, not through the log: 15 ms with fsync off.
            copy = sql.SQL(" TEMPLATE {} STRATEGY file_copy").format(_name(template))
            statement = statement + copy
        self._execute(statement)
        return urlunsplit(url)

    def drop(self, url: str) -> None:
        """Drop the database, whoever is connected.

        PostgreSQL waits for all that are just being connected, to any database: up to a minute for
        one that was given up half-way, which lives until it is collected.
        """
        statement = sql.SQL("DROP DATABASE {} WITH (FORCE)").format(_name(url))
        try:
            self._execute(statement, DROP_SECONDS)
        except psycopg.errors.QueryCanceled:
            gc.collect()
            self._execute(statement)

    def connections(self, url: str) -> list[str]:
        """The connections to the database that do not go away: what they are and said last."""
        deadline = time.monotonic() + CLOSING_SECONDS
        while True:
            with psycopg.connect(self._server_url, autocommit=True) as connection:
                rows = connection.execute(
                    "SELECT application_name || ': ' || query FROM pg_stat_activity"
                    " WHERE datname = %s AND backend_type = 'client backend'",
                    [urlsplit(url).path[1:]],
                ).fetchall()
            if not rows or time.monotonic() > deadline:
                return [row[0] for row in rows]
            time.sleep(0.02)

    def _execute(self, statement: sql.Composed, seconds: int = 0) -> None:
        """Execute it, for at most so many seconds; 0 is without a limit."""
        with psycopg.connect(self._server_url, autocommit=True) as connection:
            connection.execute("SELECT set_config('statement_timeout', %s, false)", [f"{seconds}s"])
            connection.execute(statement)


def _name(url: str) -> sql.Identifier:
    """The name of the database that the address leads to."""
    return sql.Identifier(urlsplit(url).path[1:])
