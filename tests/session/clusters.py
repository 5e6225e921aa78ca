"""Two PostgreSQL clusters, a primary and its synchronous standby, for failovers."""

from __future__ import annotations

import asyncio
import shutil
import signal
import tempfile
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from local.postgres.folder import PostgresFolder, binaries
from local.postgres.server import EmbeddedPostgres
from local.processes.child import Child
from session_service.storage.migrate import upgrade
from tests.database import scratch
from tests.eventually import eventually
from tests.session.database_faults import rows

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

NAME = "roost"


@dataclass
class Pair:
    """A primary and its standby, which has every commit that was acknowledged."""

    primary: EmbeddedPostgres
    standby: EmbeddedPostgres

    @property
    def url(self) -> str:
        """An address with both hosts, the primary first."""
        return both(self.primary.url(NAME), self.standby.url(NAME))

    async def kill_primary(self) -> None:
        """End it as a lost host does."""
        await self.primary.child.stop()

    async def promote(self) -> None:
        """Make the standby the primary; returns when it takes writes."""
        await rows(self.standby.url(NAME), "SELECT pg_promote(true, 120)")


def both(one: str, other: str, **options: str) -> str:
    """The address of two servers of the same database, user and password."""
    first, second = urlsplit(one), urlsplit(other)
    hosts = f"{first.hostname}:{first.port},{second.hostname}:{second.port}"
    query = "&".join(f"{name}={value}" for name, value in options.items())
    login = first.netloc.rpartition("@")[0]
    return first._replace(netloc=f"{login}@{hosts}", query=query).geturl()


@asynccontextmanager
async def pair() -> AsyncGenerator[Pair]:
    """Two servers with durable commits; the primary waits for the standby at each commit."""
    async with AsyncExitStack() as stack:
        folders = [
            Path(
                stack.enter_context(
                    tempfile.TemporaryDirectory(dir=scratch(), prefix="roost-tests-")
                )
            )
            for _ in range(2)
        ]
        primary = await stack.enter_async_context(EmbeddedPostgres(folders[0]))
        await primary.ensure_database(NAME)
        await asyncio.to_thread(upgrade, primary.url(NAME))
        await _copy(primary, folders[1])
        standby = await stack.enter_async_context(EmbeddedPostgres(folders[1]))
        await rows(primary.url(NAME), "ALTER SYSTEM SET synchronous_standby_names = '*'")
        await rows(primary.url(NAME), "SELECT pg_reload_conf()")

        async def in_step() -> bool:
            state = "SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'"
            return bool(await rows(primary.url(NAME), state))

        assert await eventually(in_step, timeout=60)
        yield Pair(primary, standby)


async def _copy(primary: EmbeddedPostgres, folder: Path) -> None:
    """A copy of the running cluster that follows it."""
    there = PostgresFolder(folder)
    shutil.copy(primary.folder.password_file, there.password_file)
    programs = await asyncio.to_thread(binaries)
    command = (
        *(str(programs / "pg_basebackup"), "-D", str(there.cluster), "-d", primary.url(NAME)),
        *("--write-recovery-conf", "--checkpoint=fast", "--wal-method=stream", "--no-sync"),
    )
    child = Child("pg_basebackup", command, log=folder / "backup.log", death_signal=signal.SIGKILL)
    try:
        assert await child.exited() == 0, await child.output()
    finally:
        await child.stop()
