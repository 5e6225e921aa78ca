"""PostgreSQL restarts, fails over, is slow, hangs or is full: calls say so in time, and heal."""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import grpc.aio
import psycopg
import pytest
from grpc_health.v1 import health_pb2
from psycopg import sql

from local.postgres import EmbeddedPostgres
from roost.session.v1 import session_pb2 as pb
from roost.session.v1 import session_service_pb2 as rpc_pb
from session_service import health as health_module
from session_service.storage import connections
from session_service.storage.connections import PATIENT
from session_service.storage.database import Database
from session_service.storage.migrate import upgrade
from tests.database import scratch
from tests.eventually import eventually
from tests.session import database_front
from tests.session.database_front import (
    DEADLINE,
    HEALED,
    Calls,
    begin_talk,
    behind,
    check_loops,
    check_rows,
    fronted,
    rows,
    tasks_at_work,
)
from tests.session.harness import key, request_id, world

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from local.fly.emulator import Emulator
    from local.netfault import NetFault
    from tests.session.harness import Replica

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture(autouse=True)
def _quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks at the database follow each other quickly; what each may take is as it is."""
    monkeypatch.setattr(health_module, "WATCH_SECONDS", 0.2)


async def until_health(replica: Replica, status: int, timeout: float = 20.0) -> None:
    async def told() -> bool:
        return await database_front.health(replica) == status

    await eventually(told, timeout=timeout, interval=0.1)


async def start_once(replica: Replica, calls: Calls, user_id: str, once: str) -> pb.Session:
    """StartSession with this request id until it is answered."""
    request = rpc_pb.StartSessionRequest(key=key(user_id), request_id=once)
    call = partial(replica.stub.StartSession, request, timeout=DEADLINE)
    answer, again = await calls.until_answered(call), await calls.until_answered(call)
    assert (again.outcome, again.decision_id) == (answer.outcome, answer.decision_id)
    return answer.session


@asynccontextmanager
async def own_server() -> AsyncGenerator[EmbeddedPostgres]:
    """A server that this test may strike, whose commits are safe."""
    with tempfile.TemporaryDirectory(dir=scratch(), prefix="roost-tests-") as folder:
        async with EmbeddedPostgres(Path(folder)) as server:
            await server.ensure_database("roost")
            await asyncio.to_thread(upgrade, server.url("roost"))
            yield server


def _refused_more_than(count: int, calls: Calls) -> bool:
    return calls.refused > count


@pytest.mark.slow
async def test_a_restart_of_the_server_loses_nothing_that_was_acknowledged(
    emulator: Emulator,
) -> None:
    """Stopped at once, twice, in the middle of starts and appends at both replicas."""
    async with own_server() as server, world(emulator, server.url("roost")) as roost:
        calls, done = Calls(), asyncio.Event()
        talks = [await begin_talk(each, f"talk-{n}") for n, each in enumerate(roost.replicas * 2)]

        async def talk(number: int) -> None:
            while not done.is_set():
                await talks[number].say(calls)

        async def visit(number: int) -> None:
            while not done.is_set():
                replica = roost.replicas[number % 2]
                await start_once(replica, calls, f"user-{number}", request_id())

        jobs = [asyncio.create_task(talk(n)) for n in range(4)]
        jobs += [asyncio.create_task(visit(n)) for n in range(4)]
        for _ in range(2):
            await asyncio.sleep(0.4)
            before = calls.refused
            await server.crash()
            # Until callers have met it: on a busy machine they might come only when it is back.
            await eventually(partial(_refused_more_than, before, calls), timeout=20)
            await server.recover()
            back = monotonic()
            fresh = Calls()
            await asyncio.gather(
                *(start_once(each, fresh, "new", request_id()) for each in roost.replicas)
            )
            print(f"healed {monotonic() - back:.2f} s after the server was back")
            assert monotonic() - back < HEALED
        done.set()
        await asyncio.gather(*jobs)
        print(f"{calls.refused} refused, the longest {calls.longest:.2f} s; said "
              f"{sum(each.said for each in talks)}")  # fmt: skip
        assert calls.longest < DEADLINE
        for each in talks:
            await each.check()
        await check_rows(server.url("roost"))
        assert await roost.committed("create") == 5
        check_loops(2)


async def test_connections_that_a_restart_ended_are_not_handed_out(
    emulator: Emulator, database_url: str
) -> None:
    """Not one call fails of those that come when the server is back."""
    async with world(emulator, database_url, replicas=1) as roost:
        await asyncio.gather(*(roost.one.start(f"user-{n}") for n in range(8)))
        await rows(
            database_url,
            # With a time limit it returns when they have ended, and not when they were told to.
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )
        for number in range(8):
            answer = await roost.one.start(f"user-{number}")
            assert answer.outcome == pb.START_OUTCOME_REUSED


async def test_a_failover_is_waited_out_and_the_old_primary_left(
    emulator: Emulator, database_url: str
) -> None:
    """A standby answers: reads go on, the rest is refused; connections to it are not kept."""
    name = sql.Identifier(urlsplit(database_url).path[1:])
    read_only = sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(name)
    writable = sql.SQL("ALTER DATABASE {} RESET default_transaction_read_only").format(name)
    async with (
        world(emulator, database_url) as roost,
        await psycopg.AsyncConnection.connect(database_url, autocommit=True) as admin,
    ):
        session = (await roost.one.start()).session
        talk = await begin_talk(roost.one, "talk")
        calls = Calls()
        await talk.say(calls)
        await admin.execute(read_only)
        await admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        once = request_id()
        again = rpc_pb.StartSessionRequest(key=key(), request_id=once)
        assert await calls.once(roost.one.stub.StartSession(again, timeout=DEADLINE)) is None
        assert calls.longest < DEADLINE
        # A connection that is ended in the very moment in which it is used costs its call.
        assert await eventually(lambda: _reads(roost.two, session.session_id))
        await until_health(roost.one, NOT_SERVING)
        speaking = asyncio.create_task(talk.say(calls))
        await asyncio.sleep(0.3)
        # The sessions that were opened meanwhile stay read-only, like those to a demoted server.
        await admin.execute(writable)
        back = monotonic()
        found = await start_once(roost.one, calls, "wren", once)
        assert found.session_id == session.session_id
        await speaking
        print(f"healed after {monotonic() - back:.2f} s, {calls.refused} refused")
        assert monotonic() - back < HEALED
        await until_health(roost.one, SERVING)
        await talk.check()
        await check_rows(database_url)
        check_loops(2)


async def _reads(replica: Replica, session_id: str) -> bool:
    """Whether the session can be read."""
    try:
        return (await replica.get(session_id)).state == pb.Session.STATE_ACTIVE
    except grpc.aio.AioRpcError:
        return False


async def test_a_slow_database_is_slow_and_nothing_else(
    emulator: Emulator, database_url: str
) -> None:
    """300 ms for each round trip: every call is answered, and the lease is kept."""
    usual = {"lease": timedelta(seconds=10), "replicas": 1}
    async with behind(emulator, database_url, **usual) as (roost, fault):
        session = (await roost.one.start()).session
        talk = await begin_talk(roost.one, "talk")
        fault.slow(0.15)
        calls = Calls()
        began = monotonic()
        answers = await asyncio.gather(
            roost.one.start(), roost.one.start("robin"), talk.say(calls), roost.one.get(
                session.session_id
            ),
        )  # fmt: skip
        print(f"four calls at once took {monotonic() - began:.2f} s")
        assert answers[0].outcome == pb.START_OUTCOME_REUSED
        assert answers[1].outcome == pb.START_OUTCOME_CREATED
        assert not calls.refused
        fault.clear()
        await talk.check()
        await check_rows(database_url)
        assert await roost.committed("create") == 2


@pytest.mark.slow
async def test_a_database_that_hangs_is_told_in_time_and_heals(
    emulator: Emulator, database_url: str
) -> None:
    """Bytes go nowhere. No call waits for its deadline, nothing piles up, every loop goes on."""
    quick = {"keeper_interval": timedelta(seconds=0.5)}
    async with behind(emulator, database_url, **quick) as (roost, fault):
        session = (await roost.one.start()).session
        talk = await begin_talk(roost.one, "talk")
        calls = Calls()
        await talk.say(calls)
        tasks = tasks_at_work()
        fault.half_open()
        once = request_id()
        hangs = rpc_pb.StartSessionRequest(key=key(), request_id=once)
        speaking = asyncio.create_task(talk.say(calls))
        for _ in range(2):
            tried = await asyncio.gather(
                *(calls.once(roost.one.stub.StartSession(hangs, timeout=DEADLINE))
                  for _ in range(20)),
                *(calls.once(roost.two.stub.GetSession(
                    rpc_pb.GetSessionRequest(session_id=session.session_id), timeout=DEADLINE))
                  for _ in range(20)),
            )  # fmt: skip
            assert tried == [None] * 40
        assert calls.longest < DEADLINE, calls
        await until_health(roost.one, NOT_SERVING)
        await eventually(lambda: tasks_at_work() <= tasks + 8, timeout=DEADLINE)
        fault.clear()
        back = monotonic()
        found = await start_once(roost.one, calls, "wren", once)
        assert found.session_id == session.session_id
        await speaking
        print(f"longest refusal {calls.longest:.2f} s, healed after {monotonic() - back:.2f} s")
        assert monotonic() - back < HEALED
        await until_health(roost.one, SERVING)
        await talk.check()
        await check_rows(database_url)
        assert await roost.committed("create") == 1
        check_loops(2)
        await rows(
            database_url,
            "UPDATE sessions SET last_active_time = now() - interval '1 day', due_at = now(),"
            " warn_time = now() - interval '1 hour' RETURNING 1",
        )
        await roost.until_state(session.session_id, pb.Session.STATE_PAUSED)


async def test_a_listener_whose_connection_is_dead_notices(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It hears nothing either way, and must ask: silence is what it usually hears."""
    monkeypatch.setattr(connections, "SILENCE", 0.3)
    monkeypatch.setattr(connections.BoundedConnection, "limit", 0.5)
    async with database_front.fronted(database_url) as (fault, through):
        async with connections.listening(through, "birds") as payloads:
            heard = asyncio.ensure_future(anext(payloads))
            await asyncio.sleep(1)
            await rows(database_url, "SELECT pg_notify('birds', 'wren')")
            assert await asyncio.wait_for(heard, DEADLINE) == "wren"
            fault.half_open()
            with pytest.raises(psycopg.OperationalError):
                await asyncio.wait_for(anext(payloads), DEADLINE)
        fault.clear()


async def test_a_pool_whose_statements_all_wait_refuses_in_time(
    emulator: Emulator, database_url: str
) -> None:
    """Somebody holds the table, so that every statement waits for it, and the pool for them."""
    async with world(emulator, database_url) as roost:
        session = (await roost.one.start()).session
        calls = Calls()
        async with (
            await psycopg.AsyncConnection.connect(database_url) as rogue,
            AsyncExitStack() as stack,
        ):
            await rogue.execute("LOCK TABLE sessions IN ACCESS EXCLUSIVE MODE")
            for _ in range(4):  # half of the pool is slow for another reason
                slow = await stack.enter_async_context(
                    roost.one.running.database.connection(answer=PATIENT)
                )
                stack.push_async_callback(_finished, asyncio.create_task(_sleep(slow)))
            request = rpc_pb.StartSessionRequest(key=key())
            tried = await asyncio.gather(
                *(calls.once(roost.one.stub.StartSession(request, timeout=DEADLINE))
                  for _ in range(24))
            )  # fmt: skip
            assert tried == [None] * 24
            assert calls.longest < DEADLINE, calls
            await rogue.rollback()
        back = monotonic()
        answer = await calls.until_answered(lambda: roost.one.start())
        print(f"longest refusal {calls.longest:.2f} s, healed after {monotonic() - back:.2f} s")
        assert answer.session.session_id == session.session_id
        assert monotonic() - back < HEALED
        await check_rows(database_url)


async def _sleep(connection: connections.BoundedConnection) -> None:
    await connection.execute("SELECT pg_sleep(5)")


async def _finished(task: asyncio.Task[None]) -> None:
    await task


@pytest.fixture
async def poor_url(database_url: str) -> AsyncIterator[str]:
    """The database's address for a role that may have few connections: 53300 beyond."""
    parts = urlsplit(database_url)
    role = f"{parts.path[1:]}_poor"
    create = sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'poor' CONNECTION LIMIT 12 IN ROLE {}")
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as admin:
        owner = sql.Identifier(admin.info.user)
        await admin.execute(create.format(sql.Identifier(role), owner))
    yield parts._replace(netloc=f"{role}:poor@{parts.hostname}:{parts.port}").geturl()
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as admin:
        await admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


async def test_a_server_without_a_free_connection_is_waited_out(
    emulator: Emulator, database_url: str, poor_url: str
) -> None:
    """Others took all there are. What the pool has goes on; with none left, calls are refused."""
    async with world(emulator, poor_url, replicas=1) as roost, AsyncExitStack() as others:
        session = (await roost.one.start()).session
        calls = Calls()
        with pytest.raises(psycopg.OperationalError, match="too many connections"):
            while True:
                await others.enter_async_context(
                    await psycopg.AsyncConnection.connect(poor_url, autocommit=True)
                )
        found = await asyncio.gather(*(roost.one.start() for _ in range(20)))
        assert {each.session.session_id for each in found} == {session.session_id}
        async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as admin:
            # Ours are ended, and others are there before us.
            role = urlsplit(poor_url).username or ""
            few = sql.SQL("ALTER ROLE {} CONNECTION LIMIT 1").format(sql.Identifier(role))
            await admin.execute(few)
            await admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'roost' AND usename = %s",
                [role],
            )
            request = rpc_pb.StartSessionRequest(key=key())
            await asyncio.gather(
                *(
                    calls.once(roost.one.stub.StartSession(request, timeout=DEADLINE))
                    for _ in range(20)
                )
            )
            assert calls.refused == 20
            assert calls.longest < DEADLINE
            await admin.execute(
                sql.SQL("ALTER ROLE {} CONNECTION LIMIT 12").format(sql.Identifier(role))
            )
        await others.aclose()
        back = monotonic()
        answer = await calls.until_answered(lambda: roost.one.start())
        print(f"longest refusal {calls.longest:.2f} s, healed after {monotonic() - back:.2f} s")
        assert answer.session.session_id == session.session_id
        assert monotonic() - back < HEALED
        await check_rows(database_url)


async def test_what_is_called_off_stays_so_where_the_server_is_not_told(database_url: str) -> None:
    """A transaction that is rolled back on a connection that just broke is rolled back."""

    async def call_off(database: Database, fault: NetFault) -> None:
        async with database.transaction() as connection:
            await connection.execute("CREATE TABLE called_off ()")
            fault.reset()
            raise psycopg.Rollback

    async with fronted(database_url) as (fault, url), Database(url) as database:
        await call_off(database, fault)
        async with database.connection() as connection:
            cursor = await connection.execute("SELECT to_regclass('called_off')")
            assert await cursor.fetchone() == (None,)
