"""An embedded PostgreSQL: a child process on a folder, reachable over loopback only."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import TYPE_CHECKING, Self

import psycopg
from psycopg import sql

from local.ports import HOST, free_port
from local.postgres.folder import FolderInUse, PostgresFailed, PostgresFolder, binaries
from local.processes.child import Child
from local.processes.parent_death import NO_USER_NAMESPACE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

USER = "roost"
#: After a parent was killed its server needs up to a second to shut down; a new one waits for it.
LOCK_SECONDS = 10.0
INITDB_SECONDS = 120.0
#: After a crash the server replays its log before it accepts connections.
START_SECONDS = 120.0
#: Fast shutdown, then an immediate one. That loses nothing, but the next start replays the log.
STOP_STEPS = ((signal.SIGINT, 30.0), (signal.SIGQUIT, 5.0))
#: Immediate shutdown: all connections are dropped, and the next start replays the log.
CRASH_STEP = (signal.SIGQUIT, 5.0)
PORT_TRIES = 5
CONNECTIONS = 200
NO_SYNC = ("-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off")


class PortTaken(PostgresFailed):
    """Another process listens on the requested port."""


class EmbeddedPostgres:
    """A PostgreSQL that runs as long as this context, and never longer than this process.

    `port` 0 chooses a free one. With `durable=True` no committed transaction is lost, whichever
    process is killed; `durable=False` switches fsync off, for databases that only a test uses.
    It takes `connections` clients, the last three of them superusers. `choose_port` finds the free
    port. `lock_seconds` limits the wait for the folder's lock.
    Enter the context in the main thread. Every failure is a PostgresFailed with a one-line message.
    """

    def __init__(
        self,
        data: Path,
        port: int = 0,
        durable: bool = True,
        *,
        connections: int = CONNECTIONS,
        lock_seconds: float = LOCK_SECONDS,
        choose_port: Callable[[], int] = free_port,
    ) -> None:
        self._connections = connections
        self._lock_seconds = lock_seconds
        self._choose_port = choose_port
        self.folder = PostgresFolder(data)
        self.port = port
        self._wanted_port = port
        self._durable = durable
        self._child: Child | None = None
        self._binaries: Path

    @property
    def child(self) -> Child:
        """The server process."""
        if self._child is None:
            raise RuntimeError("PostgreSQL has not been started")
        return self._child

    def url(self, database: str) -> str:
        """The URL of one of its databases, including the password."""
        return f"postgresql://{USER}:{self.folder.password}@{HOST}:{self.port}/{database}"

    async def ensure_database(self, name: str) -> None:
        """Create the database unless it exists."""
        async with await _connect(self.url("postgres")) as connection:
            row = await connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name])
            if await row.fetchone() is None:
                await connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))

    async def crash(self) -> None:
        """End the server at once, as a failing host would. Folder and port stay reserved."""
        await self.child.stop(CRASH_STEP)

    async def recover(self) -> None:
        """Start it again after a crash, on the same port. Raises PostgresFailed."""
        await self._start()

    async def __aenter__(self) -> Self:
        try:
            self._binaries = await asyncio.to_thread(binaries)
            await self._lock_folder()
            if await asyncio.to_thread(self.folder.prepare):
                await self._create_cluster()
            await self._start_on_some_port()
        except OSError as error:
            await self._close()
            raise PostgresFailed(f"{self.folder.path} cannot be used: {error}") from error
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._close()

    async def _close(self) -> None:
        try:
            if self._child is not None:
                await self._child.stop(*STOP_STEPS)
        finally:
            self.folder.lock.release()

    async def _lock_folder(self) -> None:
        deadline = time.monotonic() + self._lock_seconds
        while not await asyncio.to_thread(self.folder.lock.acquire):
            if time.monotonic() > deadline:
                raise FolderInUse(f"another PostgreSQL runs on {self.folder.path}")
            await asyncio.sleep(0.05)

    async def _create_cluster(self) -> None:
        options = ["-D", str(self.folder.unfinished), "-U", USER, "--encoding=UTF8", "--no-locale"]
        options += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--no-instructions"]
        options += ["--auth=scram-sha-256", f"--pwfile={self.folder.password_file}"]
        # Rounds of hashing protect guessable passwords. Ours is random, and the default of 4096
        # rounds costs each connection 10 ms.
        options += ["--set=scram_iterations=1"]
        child = self._spawn("initdb", options if self._durable else [*options, "--no-sync"])
        try:
            status = await asyncio.wait_for(child.exited(), INITDB_SECONDS)
        finally:
            await child.stop()
        if status != 0:
            raise await _failure(child, status)
        await asyncio.to_thread(self.folder.adopt_new_cluster)

    async def _start_on_some_port(self) -> None:
        for tries_left in reversed(range(PORT_TRIES)):
            self.port = self._wanted_port or self._choose_port()
            try:
                await self._start()
            except PortTaken:
                # Another process bound the free port before our server did: choose another one.
                if self._wanted_port or not tries_left:
                    raise
            else:
                return

    async def _start(self) -> None:
        options = ["-D", str(self.folder.cluster), "-h", HOST, "-p", str(self.port), "-k", ""]
        options += [
            "-c",
            f"max_connections={self._connections}",
            "-c",
            "log_timezone=UTC",
            "-c",
            "timezone=UTC",
        ]
        self._child = self._spawn("postgres", options if self._durable else [*options, *NO_SYNC])
        # Wait for both: if another process took the port and never answers, only the end of our own
        # server, which cannot bind, tells us.
        ready = asyncio.create_task(self._ready(), name="postgres-ready")
        ended = asyncio.create_task(self._child.exited(), name="postgres-ended")
        try:
            await asyncio.wait({ready, ended}, timeout=START_SECONDS, return_when="FIRST_COMPLETED")
            if ended.done():
                raise await _failure(self._child, ended.result(), self.port)
            if not ready.done():
                raise PostgresFailed(f"PostgreSQL did not answer; its log is {self.folder.log}")
            ready.result()
        finally:
            ready.cancel()
            ended.cancel()
            await asyncio.gather(ready, ended, return_exceptions=True)

    async def _ready(self) -> None:
        while not await self._answers():  # noqa: ASYNC110  (a server says only by answering)
            await asyncio.sleep(0.02)

    async def _answers(self) -> bool:
        """Whether our server answers, and not another PostgreSQL on the same port."""
        try:
            async with await _connect(self.url("postgres")) as connection:
                row = await (await connection.execute("SHOW data_directory")).fetchone()
        except psycopg.OperationalError:
            return False
        # If our server could not bind, the port's owner answers in its place.
        return row == (str(self.folder.cluster),) and self.child.status is None

    def _spawn(self, program: str, options: list[str]) -> Child:
        return Child(
            program,
            [str(self._binaries / program), *options],
            log=self.folder.log,
            # When the parent is killed: a fast shutdown of the server. An initdb may be killed: the
            # next start deletes an unfinished cluster.
            death_signal=signal.SIGINT if program == "postgres" else signal.SIGKILL,
            # The caller's PG* and LC_* variables must not apply to this server.
            environment={"PATH": os.defpath, "LC_ALL": "C"},
            drop_root=True,
            keep_open=[self.folder.lock.descriptor],
        )


async def _connect(url: str) -> psycopg.AsyncConnection[tuple[object, ...]]:
    return await psycopg.AsyncConnection.connect(url, autocommit=True, connect_timeout=5)


async def _failure(child: Child, status: int, port: int | None = None) -> PostgresFailed:
    """The error for an `initdb` or `postgres` that ended by itself."""
    if status == NO_USER_NAMESPACE:
        return PostgresFailed(
            "PostgreSQL refuses to run as root, and user namespaces are not available: "
            "run as another user, or set ROOST_DATABASE_URL to a running PostgreSQL"
        )
    output = await child.output()
    if port and "Address already in use" in output:
        return PortTaken(f"PostgreSQL: port {port} is taken")
    output_line = " | ".join(line for line in output.splitlines() if line.strip())[-500:]
    return PostgresFailed(
        f"{child.name} ended with status {status}: {output_line} (log: {child.log})"
    )
