"""Behind a real PgBouncer: what works, what is refused, and who holds the lock of migrations."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql

from roost.session.v1 import session_pb2 as pb
from session_service.server.replica import prepare
from session_service.storage import migrate
from session_service.storage.database import LIMITS
from session_service.storage.migrate import LOCK, upgrade
from session_service.storage.refusals import DatabaseRefused
from tests.eventually import eventually
from tests.session.database_faults import Calls, begin_talk, check_rows, rows
from tests.session.harness import World, session_config, world
from tests.session.poolers import pgbouncer
from tests.session.test_database_refusals import new_database
from tests.session.test_process import launch, outcome

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from local.fly.emulator import Emulator
    from tests.database import Databases


#: How many users start at once.
AT_ONCE = 10


async def use(roost: World, url: str, users: int, turns: int) -> None:
    """Starts at both replicas at once, two for each user, and turns; nothing is lost or doubled."""
    calls = Calls()
    talks = [await begin_talk(replica, f"talk-{n}") for n, replica in enumerate(roost.replicas)]

    async def speak(number: int) -> None:
        for _ in range(turns):
            await talks[number].say(calls)

    # The limits of creates are not what is tried here.
    room = asyncio.Semaphore(AT_ONCE)

    async def visit(number: int) -> tuple[str, str]:
        async with room:
            starts = [partial(replica.start, f"user-{number}") for replica in roost.replicas]
            answers = await asyncio.gather(*map(calls.until_answered, starts))
        first, second = (answer.session.session_id for answer in answers)
        return first, second

    async with asyncio.TaskGroup() as group:
        visits = [group.create_task(visit(n)) for n in range(users)]
        for number in range(len(talks)):
            group.create_task(speak(number))
    visited = [each.result() for each in visits]
    assert all(first == second for first, second in visited)
    assert len(set(visited)) == users
    for number in range(users):
        again = await roost.replicas[number % 2].start(f"user-{number}")
        assert again.outcome == pb.START_OUTCOME_REUSED
        assert again.session.session_id == visited[number][0]
    for talk in talks:
        await talk.check()
    await check_rows(url)
    assert await roost.committed("create") == users
    print(f"{calls.failed} calls failed, {users} users, {turns * len(talks)} turns")


@asynccontextmanager
async def behind_transactions(
    emulator: Emulator, url: str, size: int = 20
) -> AsyncGenerator[tuple[World, str]]:
    """Two replicas behind a pooler of transactions, and its address."""
    async with (
        pgbouncer(url, "transaction", size) as through,
        world(emulator, through, database_direct_url=url) as roost,
    ):
        yield roost, through


async def test_a_pooler_of_sessions_loses_nothing(emulator: Emulator, database_url: str) -> None:
    """Its 20 connections are what two replicas with pools of 8 and two listeners each want."""
    async with (
        pgbouncer(database_url, "session") as through,
        world(emulator, through) as roost,
    ):
        await use(roost, database_url, users=4, turns=10)


async def test_a_pooler_of_transactions_loses_nothing(
    emulator: Emulator, database_url: str
) -> None:
    """With few server connections, which every client of it gets in turn."""
    async with behind_transactions(emulator, database_url, size=3) as (roost, _):
        await use(roost, database_url, users=4, turns=10)
        prepared = "SELECT count(*) FROM pg_prepared_statements"
        async with roost.one.running.database.connection() as connection:
            assert await (await connection.execute(prepared.encode())).fetchone() == (0,)
        # The limits of our own connections would be those of every client of the pooler.
        async with roost.one.running.database.connection() as connection:
            cursor = await connection.execute("SHOW statement_timeout")
            assert await cursor.fetchone() == ("0",)


@pytest.mark.proof
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mode", ["session", "transaction"])
async def test_a_pooler_under_load_loses_nothing(
    emulator: Emulator, database_url: str, mode: str
) -> None:
    async with pgbouncer(database_url, mode) as through:
        direct = database_url if mode == "transaction" else ""
        async with world(emulator, through, database_direct_url=direct) as roost:
            await use(roost, database_url, users=100, turns=250)


@pytest.mark.parametrize("migrates", [True, False])
async def test_a_pooler_of_transactions_alone_is_refused(database_url: str, migrates: bool) -> None:
    """Before it does harm: two clients would run each other's prepared statements."""
    async with pgbouncer(database_url, "transaction") as through:
        config = session_config(through, "127.0.0.1:1", "http://127.0.0.1:1/", migrate=migrates)
        with pytest.raises(DatabaseRefused, match=r"^ROOST_DATABASE_URL: .* pools transactions"):
            await prepare(config)


@pytest.mark.parametrize("arguments", [("migrate",), ("serve",), ("tier", "get", "default")])
async def test_the_refusal_is_one_line(database_url: str, arguments: tuple[str, ...]) -> None:
    """Of each command that needs the database; it says what to do."""
    async with pgbouncer(database_url, "transaction") as through:
        listen = {"ROOST_SESSION_LISTEN": "127.0.0.1:0"}
        process = await launch(*arguments, ROOST_DATABASE_URL=through, **listen)
        status, out, err = await outcome(process)
    assert (status, out) == (2 if arguments[0] == "tier" else 1, "")
    assert err.count("\n") == 1, err
    assert "ROOST_DATABASE_URL: the address leads to a pooler that pools transactions" in err
    assert "set ROOST_DATABASE_DIRECT_URL" in err


async def refusal(url: str, direct: str) -> str:
    config = session_config(url, "127.0.0.1:1", "http://127.0.0.1:1/", database_direct_url=direct)
    with pytest.raises(DatabaseRefused) as raised:
        await prepare(config)
    return str(raised.value)


async def test_wrong_pairs_of_addresses_are_refused(
    databases: Databases, database_url: str
) -> None:
    """The pooler as the direct address, another database, and a pooler of statements."""
    async with (
        pgbouncer(database_url, "transaction") as through,
        pgbouncer(database_url, "statement") as single,
    ):
        assert (await refusal(through, through)).startswith("ROOST_DATABASE_DIRECT_URL: ")
        assert "pools statements" in await refusal(single, database_url)
        with new_database(databases) as other:
            name = urlsplit(other).path
            foreign = urlsplit(through)._replace(path=name).geturl()
            assert "lead to two databases" in await refusal(foreign, database_url)


async def test_limits_that_the_pooler_lacks_are_named(
    databases: Databases, caplog: pytest.LogCaptureFixture
) -> None:
    """Once for a replica, until the database's user has them."""
    with new_database(databases) as url:
        await asyncio.to_thread(upgrade, url)
        direct = session_config(url, "127.0.0.1:1", "http://127.0.0.1:1/", database_direct_url=url)
        with caplog.at_level(logging.WARNING):
            await prepare(direct)
        (line,) = [each for each in caplog.messages if "pooler" in each]
        assert all(name in line for name in LIMITS)
        caplog.clear()
        database = sql.Identifier(urlsplit(url).path[1:])
        for name in LIMITS:
            setting = sql.SQL("ALTER DATABASE {} SET {} = '5s'")
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(setting.format(database, sql.Identifier(name)))
        with caplog.at_level(logging.WARNING):
            await prepare(direct)
        assert not [each for each in caplog.messages if "pooler" in each]


async def test_who_holds_the_lock_of_migrations_is_told(
    empty_database_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process, program and user, as often as TELL_EVERY says; then the migration goes on."""
    monkeypatch.setattr(migrate, "TELL_EVERY", 0.1)
    async with await psycopg.AsyncConnection.connect(
        empty_database_url, autocommit=True, application_name="a deploy"
    ) as other:
        await other.execute("SELECT pg_advisory_lock(%s)", [LOCK])
        with caplog.at_level(logging.WARNING):
            upgrading = asyncio.ensure_future(asyncio.to_thread(upgrade, empty_database_url))
            assert await eventually(lambda: caplog.text.count("its lock is held") > 1, timeout=30)
        line = caplog.messages[0]
        pid, user = other.info.backend_pid, other.info.user
        assert f"held by process {pid}, 'a deploy' of user '{user}' at 127.0.0.1, idle for" in line
        assert not upgrading.done()
    await upgrading
    assert await rows(empty_database_url, "SELECT version_num FROM alembic_version")
