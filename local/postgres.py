"""An embedded PostgreSQL: a child of ours on a folder of ours, reachable over loopback only."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import TYPE_CHECKING, Self

import psycopg
from psycopg import sql

from local.children import Child
from local.leash import NO_USER_NAMESPACE
from local.ports import HOST, free_port
from local.postgres_folder import FolderInUse, PostgresFailed, PostgresFolder, binaries

if TYPE_CHECKING:
    from pathlib import Path

USER = "roost"
#: A server whose parent was killed needs up to a second to go; its successor waits for that.
LOCK_SECONDS = 10.0
INITDB_SECONDS = 120.0
#: After a crash the server first replays its log.
START_SECONDS = 120.0
#: Fast shutdown, then an immediate one, which loses nothing either but replays at the next start.
STOP_STEPS = ((signal.SIGINT, 30.0), (signal.SIGQUIT, 5.0))
#: Immediate shutdown: every connection is dropped, and the next start replays the log.
CRASH_STEP = (signal.SIGQUIT, 5.0)
PORT_TRIES = 5
NO_SYNC = ("-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off")


class PortTaken(PostgresFailed):
    """Somebody listens on the port that was asked for."""


class EmbeddedPostgres:
    """A PostgreSQL that lives as long as this context, and never longer than this process.

    `port` 0 chooses a free one. `durable=False` gives up safety against a crash of the machine,
    for databases that nobody will miss; with the default nothing acknowledged is lost, whoever is
    killed. Enter it in the main thread. A failure is a `PostgresFailed`, its message one line.
    """

    def __init__(self, data: Path, port: int = 0, durable: bool = True) -> None:
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
        """The address of one of its databases, password included."""
        return f"postgresql://{USER}:{self.folder.password}@{HOST}:{self.port}/{database}"

    async def ensure_database(self, name: str) -> None:
        """Make the database unless it is there."""
        async with await _connect(self.url("postgres")) as connection:
            row = await connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name])
            if await row.fetchone() is None:
                await connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))

    async def crash(self) -> None:
        """End the server at once, as a failing host would; its folder and its port stay ours."""
        await self.child.stop(CRASH_STEP)

    async def recover(self) -> None:
        """Start it again after a crash, on the same port. Raises PostgresFailed."""
        await self._start()

    async def __aenter__(self) -> Self:
        try:
            self._binaries = await asyncio.to_thread(binaries)
            await self._take_folder()
            if await asyncio.to_thread(self.folder.prepare):
                await self._make_cluster()
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

    async def _take_folder(self) -> None:
        deadline = time.monotonic() + LOCK_SECONDS
        while not await asyncio.to_thread(self.folder.lock.acquire):
            if time.monotonic() > deadline:
                raise FolderInUse(f"a PostgreSQL runs on {self.folder.path} already")
            await asyncio.sleep(0.05)

    async def _make_cluster(self) -> None:
        options = ["-D", str(self.folder.unfinished), "-U", USER, "--encoding=UTF8", "--no-locale"]
        options += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--no-instructions"]
        options += ["--auth=scram-sha-256", f"--pwfile={self.folder.password_file}"]
        # Rounds of hashing protect passwords that can be guessed. Ours is random; 4096 rounds cost
        # each connection 10 ms.
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
            self.port = self._wanted_port or free_port()
            try:
                await self._start()
            except PortTaken:
                # The free port was lost between our look and the server's bind: take another.
                if self._wanted_port or not tries_left:
                    raise
            else:
                return

    async def _start(self) -> None:
        options = ["-D", str(self.folder.cluster), "-h", HOST, "-p", str(self.port), "-k", ""]
        options += ["-c", "max_connections=200", "-c", "log_timezone=UTC", "-c", "timezone=UTC"]
        self._child = self._spawn("postgres", options if self._durable else [*options, *NO_SYNC])
        # Both, because whoever has taken the port may be silent, and we would wait for its answer.
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
        """Whether our server answers. A stranger's on our port is not taken for it."""
        try:
            async with await _connect(self.url("postgres")) as connection:
                row = await (await connection.execute("SHOW data_directory")).fetchone()
        except psycopg.OperationalError:
            return False
        # Our server may have failed to bind while its port's owner answered in its place.
        return row == (str(self.folder.cluster),) and self.child.status is None

    def _spawn(self, program: str, options: list[str]) -> Child:
        return Child(
            program,
            [str(self._binaries / program), *options],
            log=self.folder.log,
            # A killed parent means a fast shutdown, and initdb's half of a cluster is thrown away.
            death_signal=signal.SIGINT if program == "postgres" else signal.SIGKILL,
            # The caller's PG* and LC_* variables are not for this server.
            environment={"PATH": os.defpath, "LC_ALL": "C"},
            drop_root=True,
            keep_open=[self.folder.lock.descriptor],
        )


async def _connect(url: str) -> psycopg.AsyncConnection[tuple[object, ...]]:
    return await psycopg.AsyncConnection.connect(url, autocommit=True, connect_timeout=5)


async def _failure(child: Child, status: int, port: int | None = None) -> PostgresFailed:
    """The error to raise for an `initdb` or `postgres` that ended by itself."""
    if status == NO_USER_NAMESPACE:
        return PostgresFailed(
            "PostgreSQL refuses to run as root, and user namespaces are closed here: "
            "run as a normal user, or set ROOST_DATABASE_URL to a PostgreSQL of yours"
        )
    output = await child.output()
    if port and "Address already in use" in output:
        return PortTaken(f"PostgreSQL: port {port} is taken")
    said = " | ".join(line for line in output.splitlines() if line.strip())[-500:]
    return PostgresFailed(f"{child.name} ended with status {status}: {said} (log: {child.log})")
