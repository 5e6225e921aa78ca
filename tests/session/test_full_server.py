"""A database server whose disk is full, and one whose connections are all taken."""

from __future__ import annotations

import asyncio
import errno
import logging
import secrets
import shutil
import tempfile
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psycopg
import pytest

from local.postgres.server import EmbeddedPostgres
from roost.session.v1 import session_service_pb2 as rpc_pb
from session_service.storage.migrate import upgrade
from tests.database import scratch
from tests.eventually import eventually
from tests.needs import small_disk
from tests.session.database_faults import DEADLINE, Calls, begin_talk, check_rows, rows
from tests.session.harness import TIMEOUT, key, request_id, world
from tests.session.test_database_outages import CHECK_EVERY, start_once

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from local.fly.emulator import Emulator

MIB = 1024 * 1024
DISK = 192 * MIB
#: Users whose starts meet the full disk.
USERS = 6
#: How many tracebacks an outage of some seconds may cost.
TRACEBACKS = 3

pytestmark = [pytest.mark.proof, pytest.mark.timeout(300)]


class Disk:
    """A small disk that can be filled."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"

    def fill(self) -> None:
        """Leave not a block free."""
        with self._filler.open("wb") as file:
            for size in (MIB, 4096):
                try:
                    while True:
                        file.write(bytes(size))
                        file.flush()
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
            # What lies in the file's buffer cannot be written any more.
            with suppress(OSError):
                file.close()

    def free(self) -> None:
        """Free it again."""
        self._filler.unlink()


@asynccontextmanager
async def server_on(disk: str) -> AsyncGenerator[tuple[EmbeddedPostgres, Disk]]:
    """A server with its tables on a small disk; with its log (WAL) too if `disk` is "log"."""
    with (
        tempfile.TemporaryDirectory(dir=scratch(), prefix="roost-tests-") as folder,
        tempfile.TemporaryDirectory(dir=scratch(), prefix="roost-tests-") as elsewhere,
        small_disk(Path(folder), DISK),
    ):
        place = Path(folder)
        async with EmbeddedPostgres(place) as server:
            await server.ensure_database("roost")
            await asyncio.to_thread(upgrade, server.url("roost"))
            log = server.folder.cluster / "pg_wal"
        if disk == "tables":
            moved = shutil.move(log, Path(elsewhere) / "pg_wal")
            log.symlink_to(moved)
        async with EmbeddedPostgres(place) as server:
            yield server, Disk(place)


@pytest.mark.parametrize("disk", ["tables", "log"])
async def test_a_disk_that_is_really_full_is_waited_out(
    emulator: Emulator, caplog: pytest.LogCaptureFixture, disk: str
) -> None:
    """Without a block for tables the server refuses statements; without one for its log it stops at
    once, and if it does not come back when there is room, somebody starts it.
    """
    caplog.set_level(logging.WARNING)
    async with (
        server_on(disk) as (server, small),
        world(emulator, server.url("roost"), health_interval=CHECK_EVERY) as roost,
    ):
        await roost.one.start()
        calls, done = Calls(), asyncio.Event()
        talk = await begin_talk(roost.one, "talk")
        await talk.say(calls)
        await asyncio.to_thread(small.fill)
        caplog.clear()

        async def speak() -> None:
            # Not to be compressed: each turn needs blocks of its own.
            while not done.is_set():
                await talk.say(calls, secrets.token_bytes(100_000))

        # Any: results, unread.
        jobs: list[asyncio.Task[Any]] = [asyncio.create_task(speak())]
        jobs += [
            asyncio.create_task(start_once(roost.two, calls, f"user-{n}", request_id()))
            for n in range(USERS)
        ]
        if disk == "log":
            await use_up_log(server.url("roost"))
        assert await eventually(lambda: calls.failed > 20, timeout=120)
        loud = [record for record in caplog.records if record.levelno >= logging.WARNING]
        traced = [record for record in loud if record.exc_info]
        await asyncio.to_thread(small.free)

        async def up() -> bool:
            if server.child.status is not None:
                await server.recover()
            with suppress(psycopg.OperationalError):
                return bool(await rows(server.url("roost"), "SELECT 1"))
            return False

        assert await eventually(up, timeout=60)
        back = monotonic()
        await start_once(roost.one, Calls(), "new", request_id())
        print(
            f"{disk}: {calls.failed} failed, the longest {calls.longest:.2f} s, {len(loud)} lines,"
            f" {len(traced)} tracebacks; healed {monotonic() - back:.2f} s after there was room"
        )
        done.set()
        await asyncio.gather(*jobs)
        assert calls.longest < DEADLINE
        assert len(traced) <= TRACEBACKS
        await talk.check()
        await check_rows(server.url("roost"))
        assert await roost.committed("create") == USERS + 2


async def test_a_server_whose_connections_are_all_taken_is_waited_out(emulator: Emulator) -> None:
    """Its own limit, `max_connections`: what is left is for superusers, and we are none."""
    with tempfile.TemporaryDirectory(dir=scratch(), prefix="roost-tests-") as folder:
        async with AsyncExitStack() as stack:
            server = EmbeddedPostgres(Path(folder), durable=False, connections=24)
            await stack.enter_async_context(server)
            await server.ensure_database("roost")
            await asyncio.to_thread(upgrade, server.url("roost"))
            await rows(
                server.url("roost"),
                "CREATE ROLE plain LOGIN PASSWORD 'plain'; GRANT pg_read_all_data,"
                " pg_write_all_data TO plain; GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO plain",
            )
            parts = urlsplit(server.url("roost"))
            plain = parts._replace(netloc=f"plain:plain@{parts.hostname}:{parts.port}").geturl()
            running = world(emulator, plain, replicas=1, health_interval=CHECK_EVERY)
            roost = await stack.enter_async_context(running)
            session = (await roost.one.start()).session
            others = await stack.enter_async_context(AsyncExitStack())
            taken = asyncio.create_task(take_all(others, plain))
            admin = await psycopg.AsyncConnection.connect(server.url("roost"), autocommit=True)
            await stack.enter_async_context(admin)

            async def ours_gone() -> bool:
                cursor = await admin.execute(
                    "SELECT pg_terminate_backend(pid, 30000) FROM pg_stat_activity"
                    " WHERE application_name = 'roost'"
                )
                return not await cursor.fetchall()

            assert await eventually(ours_gone, timeout=60, interval=0.2)
            calls = Calls()
            request = rpc_pb.StartSessionRequest(key=key())
            start = roost.one.stub.StartSession
            await asyncio.gather(*(calls.once(start(request, timeout=TIMEOUT)) for _ in range(20)))
            assert calls.failed == 20
            assert calls.longest < DEADLINE
            taken.cancel()
            await asyncio.wait({taken})
            await others.aclose()
            back = monotonic()
            answer = await calls.until_answered(roost.one.start)
            print(f"the longest {calls.longest:.2f} s; healed {monotonic() - back:.2f} s after")
            assert answer.session.session_id == session.session_id
            await check_rows(server.url("roost"))


async def use_up_log(url: str) -> None:
    """Begin new files of the log until there is no room for one."""
    with suppress(psycopg.OperationalError):
        while True:
            await rows(url, "SELECT pg_switch_wal()")
            await rows(url, "SELECT pg_logical_emit_message(false, 'full', 'x', true)")


async def take_all(others: AsyncExitStack, url: str) -> None:
    """Take every connection that the server gives, until it is cancelled."""
    while True:
        try:
            connection = await psycopg.AsyncConnection.connect(url, autocommit=True)
        except psycopg.OperationalError as error:
            assert "remaining connection slots" in str(error) or "too many" in str(error)
            await asyncio.sleep(0.01)
        else:
            await others.enter_async_context(connection)
