"""PostgreSQL restarts, fails over, is slow, hangs or is full: calls fail in time and recover."""

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
import psutil
import psycopg
import pytest
from grpc_health.v1 import health_pb2
from psycopg import sql

from local.postgres.server import EmbeddedPostgres
from roost.session.v1 import session_pb2 as pb
from roost.session.v1 import session_service_pb2 as rpc_pb
from session_service.storage.database import BATCH_TIMEOUT, BoundedConnection, Database
from session_service.storage.listening import listening
from session_service.storage.migrate import upgrade
from tests.database import scratch
from tests.eventually import eventually
from tests.session import database_faults
from tests.session.database_faults import (
    DEADLINE,
    HEALED,
    Calls,
    Stopwatch,
    begin_talk,
    behind,
    check_loops,
    check_rows,
    fronted,
    rows,
    running_tasks,
)
from tests.session.harness import TIMEOUT, key, request_id, world

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from local.fly.emulator import Emulator
    from local.netfault import NetFault
    from tests.session.harness import Replica

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


#: As many connections as four calls use at once.
SOME = 6
#: Health checks of the database are frequent. The timeout of one check is the default.
CHECK_EVERY = timedelta(seconds=0.2)


async def until_health(replica: Replica, status: int, timeout: float = 20.0) -> None:
    async def as_expected() -> bool:
        return await database_faults.health(replica) == status

    await eventually(as_expected, timeout=timeout, interval=0.1)


async def start_once(replica: Replica, calls: Calls, user_id: str, once: str) -> pb.Session:
    """StartSession, repeated with this request id until it is answered."""
    request = rpc_pb.StartSessionRequest(key=key(user_id), request_id=once)
    call = partial(replica.stub.StartSession, request, timeout=TIMEOUT)
    answer, again = await calls.until_answered(call), await calls.until_answered(call)
    assert (again.outcome, again.decision_id) == (answer.outcome, answer.decision_id)
    return answer.session


@asynccontextmanager
async def own_server() -> AsyncGenerator[EmbeddedPostgres]:
    """A PostgreSQL server of the test's own that it may crash, with durable commits."""
    with tempfile.TemporaryDirectory(dir=scratch(), prefix="roost-tests-") as folder:
        async with EmbeddedPostgres(Path(folder)) as server:
            await server.ensure_database("roost")
            await asyncio.to_thread(upgrade, server.url("roost"))
            yield server


def _failed_more_than(count: int, calls: Calls) -> bool:
    return calls.failed > count


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_a_restart_of_the_server_loses_nothing_that_was_acknowledged(
    emulator: Emulator,
) -> None:
    """The server crashes twice during starts and appends at both replicas."""
    async with (
        own_server() as server,
        world(emulator, server.url("roost"), health_interval=CHECK_EVERY) as roost,
    ):
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
            before = calls.failed
            await server.crash()
            # Wait for a failed call: on a busy machine the next call may be after the recovery.
            await eventually(partial(_failed_more_than, before, calls))
            await server.recover()
            back = Stopwatch()
            fresh = Calls()
            await asyncio.gather(
                *(start_once(each, fresh, "new", request_id()) for each in roost.replicas)
            )
            healed = await back.stop()
            print(f"healed {healed:.2f} s after the server was back")
            assert healed < HEALED
        done.set()
        await asyncio.gather(*jobs)
        print(f"{calls.failed} failed, the longest {calls.longest:.2f} s; said "
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
    """No call fails once the server is back."""
    async with world(emulator, database_url, replicas=1, health_interval=CHECK_EVERY) as roost:
        await asyncio.gather(*(roost.one.start(f"user-{n}") for n in range(8)))
        await rows(
            database_url,
            # With a timeout it returns when the backends have ended, not when they were signalled.
            "SELECT pg_terminate_backend(pid, 30000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )
        for number in range(8):
            answer = await roost.one.start(f"user-{number}")
            assert answer.outcome == pb.START_OUTCOME_REUSED


async def test_a_failover_is_waited_out_and_the_old_primary_left(
    emulator: Emulator, database_url: str
) -> None:
    """A standby answers: reads succeed, writes are UNAVAILABLE; connections to it are closed."""
    name = sql.Identifier(urlsplit(database_url).path[1:])
    read_only = sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(name)
    writable = sql.SQL("ALTER DATABASE {} RESET default_transaction_read_only").format(name)
    async with (
        world(emulator, database_url, health_interval=CHECK_EVERY) as roost,
        await psycopg.AsyncConnection.connect(database_url, autocommit=True) as admin,
    ):
        session = (await roost.one.start()).session
        talk = await begin_talk(roost.one, "talk")
        calls = Calls()
        await talk.say(calls)
        await admin.execute(read_only)
        await admin.execute(
            "SELECT pg_terminate_backend(pid, 30000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        once = request_id()
        again = rpc_pb.StartSessionRequest(key=key(), request_id=once)
        assert await calls.once(roost.one.stub.StartSession(again, timeout=TIMEOUT)) is None
        assert calls.longest < DEADLINE
        # A connection that ends while a call uses it fails that call.
        assert await eventually(lambda: _reads(roost.two, session.session_id))
        await until_health(roost.one, NOT_SERVING)
        speaking = asyncio.create_task(talk.say(calls))
        await asyncio.sleep(0.3)
        # Connections opened meanwhile stay read-only, like those to a demoted server.
        await admin.execute(writable)
        back = Stopwatch()
        found = await start_once(roost.one, calls, "wren", once)
        assert found.session_id == session.session_id
        await speaking
        healed = await back.stop()
        print(f"healed after {healed:.2f} s, {calls.failed} failed")
        assert healed < HEALED
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


async def test_a_slow_database_fails_no_call(emulator: Emulator, database_url: str) -> None:
    """300 ms for each round trip: every call is answered, and no lease is lost."""
    usual = {"lease": timedelta(seconds=10), "replicas": 1}
    async with behind(emulator, database_url, health_interval=CHECK_EVERY, **usual) as (
        roost,
        fault,
    ):
        session = (await roost.one.start()).session
        talk = await begin_talk(roost.one, "talk")
        async with AsyncExitStack() as all_connections:
            # Open them now: a new one takes five round trips, and a busy machine its time.
            for _ in range(SOME):
                await all_connections.enter_async_context(roost.one.running.database.connection())
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
        assert not calls.failed
        fault.clear()
        await talk.check()
        await check_rows(database_url)
        assert await roost.committed("create") == 2


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_calls_to_a_database_that_hangs_fail_in_time_and_recover(
    emulator: Emulator, database_url: str
) -> None:
    """The network drops all bytes. Calls fail before their deadline; tasks do not pile up."""
    quick = {"reconcile_interval": timedelta(seconds=0.5)}
    async with behind(emulator, database_url, health_interval=CHECK_EVERY, **quick) as (
        roost,
        fault,
    ):
        session = (await roost.one.start()).session
        talk = await begin_talk(roost.one, "talk")
        calls = Calls()
        await talk.say(calls)
        tasks = running_tasks()
        fault.half_open()
        once = request_id()
        hangs = rpc_pb.StartSessionRequest(key=key(), request_id=once)
        speaking = asyncio.create_task(talk.say(calls))
        for _ in range(2):
            tried = await asyncio.gather(
                *(calls.once(roost.one.stub.StartSession(hangs, timeout=TIMEOUT))
                  for _ in range(20)),
                *(calls.once(roost.two.stub.GetSession(
                    rpc_pb.GetSessionRequest(session_id=session.session_id), timeout=TIMEOUT))
                  for _ in range(20)),
            )  # fmt: skip
            assert tried == [None] * 40
        assert calls.longest < DEADLINE, calls
        await until_health(roost.one, NOT_SERVING)
        await eventually(lambda: running_tasks() <= tasks + 8, timeout=3 * DEADLINE)
        fault.clear()
        back = Stopwatch()
        found = await start_once(roost.one, calls, "wren", once)
        assert found.session_id == session.session_id
        await speaking
        healed = await back.stop()
        print(f"slowest failed call {calls.longest:.2f} s, healed after {healed:.2f} s")
        assert healed < HEALED
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
    database_url: str,
) -> None:
    """A dead connection is as silent as an idle one, so the listener must send a query."""
    async with database_faults.fronted(database_url) as (fault, through):
        async with listening(through, "birds", silence=0.3, answer=4.0) as payloads:
            heard = asyncio.ensure_future(anext(payloads))
            await asyncio.sleep(1)
            await rows(database_url, "SELECT pg_notify('birds', 'wren')")
            assert await asyncio.wait_for(heard, 30) == "wren"
            fault.half_open()
            with pytest.raises(psycopg.OperationalError):
                await asyncio.wait_for(anext(payloads), 30)
        fault.clear()


async def test_calls_fail_in_time_when_every_connection_waits_for_a_lock(
    emulator: Emulator, database_url: str
) -> None:
    """Another client locks the table: every statement waits for it, and calls for a connection."""
    async with world(emulator, database_url, health_interval=CHECK_EVERY) as roost:
        session = (await roost.one.start()).session
        calls = Calls()
        async with (
            await psycopg.AsyncConnection.connect(database_url) as rogue,
            AsyncExitStack() as stack,
        ):
            await rogue.execute("LOCK TABLE sessions IN ACCESS EXCLUSIVE MODE")
            for _ in range(4):  # half of the pool runs a slow statement
                slow = await stack.enter_async_context(
                    roost.one.running.database.connection(answer=BATCH_TIMEOUT)
                )
                stack.push_async_callback(_await, asyncio.create_task(_sleep(slow)))
            request = rpc_pb.StartSessionRequest(key=key())
            tried = await asyncio.gather(
                *(calls.once(roost.one.stub.StartSession(request, timeout=TIMEOUT))
                  for _ in range(24))
            )  # fmt: skip
            assert tried == [None] * 24
            assert calls.longest < DEADLINE, calls
            await rogue.rollback()
        back = Stopwatch()
        answer = await calls.until_answered(lambda: roost.one.start())
        healed = await back.stop()
        print(f"slowest failed call {calls.longest:.2f} s, healed after {healed:.2f} s")
        assert answer.session.session_id == session.session_id
        assert healed < HEALED
        await check_rows(database_url)


async def _sleep(connection: BoundedConnection) -> None:
    await connection.execute("SELECT pg_sleep(5)")


async def _await(task: asyncio.Task[None]) -> None:
    await task


@pytest.fixture
async def poor_url(database_url: str) -> AsyncIterator[str]:
    """The database's address for a role with a limit of 12 connections; more fail with 53300."""
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
    """Others have the rest. The pool's own connections work; without any, calls are UNAVAILABLE."""
    async with (
        world(emulator, poor_url, replicas=1, health_interval=CHECK_EVERY) as roost,
        AsyncExitStack() as others,
    ):
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
            # End the replica's connections, and let other clients keep the role's limit used up.
            role = urlsplit(poor_url).username or ""
            few = sql.SQL("ALTER ROLE {} CONNECTION LIMIT 1").format(sql.Identifier(role))
            await admin.execute(few)
            await admin.execute(
                "SELECT pg_terminate_backend(pid, 30000) FROM pg_stat_activity"
                " WHERE application_name = 'roost' AND usename = %s",
                [role],
            )
            request = rpc_pb.StartSessionRequest(key=key())
            await asyncio.gather(
                *(
                    calls.once(roost.one.stub.StartSession(request, timeout=TIMEOUT))
                    for _ in range(20)
                )
            )
            assert calls.failed == 20
            assert calls.longest < DEADLINE
            await admin.execute(
                sql.SQL("ALTER ROLE {} CONNECTION LIMIT 12").format(sql.Identifier(role))
            )
        await others.aclose()
        back = Stopwatch()
        answer = await calls.until_answered(lambda: roost.one.start())
        healed = await back.stop()
        print(f"slowest failed call {calls.longest:.2f} s, healed after {healed:.2f} s")
        assert answer.session.session_id == session.session_id
        assert healed < HEALED
        await check_rows(database_url)


async def test_a_rollback_on_a_broken_connection_is_no_error(database_url: str) -> None:
    """The server rolls the transaction back by itself when the connection ends."""

    async def roll_back(database: Database, fault: NetFault) -> None:
        async with database.transaction() as connection:
            await connection.execute("CREATE TABLE rolled_back ()")
            fault.reset()
            raise psycopg.Rollback

    async with fronted(database_url) as (fault, url), Database(url) as database:
        await roll_back(database, fault)
        async with database.connection() as connection:
            cursor = await connection.execute("SELECT to_regclass('rolled_back')")
            assert await cursor.fetchone() == (None,)


#: What the server says when no disk is left: class 53, as for too many connections.
DISK_FULL = """
CREATE FUNCTION no_space() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN RAISE 'could not extend file: No space left on device' USING ERRCODE = 'disk_full'; END
$$;
CREATE TRIGGER no_space BEFORE INSERT ON session_events EXECUTE FUNCTION no_space();
CREATE TRIGGER no_space BEFORE INSERT ON llm_turns EXECUTE FUNCTION no_space();
"""


async def test_a_server_whose_disk_is_full_leaves_nothing_half_done(
    emulator: Emulator, database_url: str
) -> None:
    """It refuses the last statement of a commit; the others are undone, and reads go on."""
    async with world(emulator, database_url, health_interval=CHECK_EVERY) as roost:
        session = (await roost.one.start()).session
        talk = await begin_talk(roost.one, "talk")
        calls = Calls()
        await talk.say(calls)
        await rows(database_url, DISK_FULL)
        once = request_id()
        again = rpc_pb.StartSessionRequest(key=key("robin"), request_id=once)
        speaking = asyncio.create_task(talk.say(calls))
        assert await calls.once(roost.one.stub.StartSession(again, timeout=DEADLINE)) is None
        assert (await roost.two.get(session.session_id)).state == pb.Session.STATE_ACTIVE
        assert await eventually(partial(_failed_more_than, 1, calls))
        await rows(database_url, "DROP FUNCTION no_space CASCADE")
        found = await start_once(roost.one, calls, "robin", once)
        assert found.session_id != session.session_id
        await speaking
        await talk.check()
        await check_rows(database_url)
        assert await roost.committed("create") == 2


def _processes(server: EmbeddedPostgres) -> list[psutil.Process]:
    parent = psutil.Process(server.child.pid)
    return [parent, *parent.children(recursive=True)]


@pytest.mark.proof
@pytest.mark.timeout(300)
async def test_a_server_that_is_stopped_for_20_s_is_waited_out(emulator: Emulator) -> None:
    """SIGSTOP: the kernel takes connections and bytes, and nobody answers."""
    async with (
        own_server() as server,
        world(emulator, server.url("roost"), health_interval=CHECK_EVERY) as roost,
    ):
        calls, done = Calls(), asyncio.Event()
        talks = [await begin_talk(each, f"talk-{n}") for n, each in enumerate(roost.replicas)]

        async def talk(number: int) -> None:
            while not done.is_set():
                await talks[number].say(calls)

        async def visit(number: int) -> None:
            while not done.is_set():
                replica = roost.replicas[number % 2]
                await start_once(replica, calls, f"user-{number}", request_id())

        jobs = [asyncio.create_task(work(n)) for n in range(2) for work in (talk, visit)]
        assert await eventually(lambda: min(each.said for each in talks) > 5, timeout=60)
        stopped = _processes(server)
        for process in stopped:
            process.suspend()
        try:
            # The time that the server is away, not a wait for something.
            await asyncio.sleep(20)
            await until_health(roost.one, NOT_SERVING)
        finally:
            for process in stopped:
                process.resume()
        back = monotonic()
        fresh = Calls()
        await asyncio.gather(
            *(start_once(each, fresh, "new", request_id()) for each in roost.replicas)
        )
        print(f"{calls.failed} failed, the longest {calls.longest:.2f} s; healed "
              f"{monotonic() - back:.2f} s after it went on")  # fmt: skip
        assert monotonic() - back < HEALED
        assert calls.failed
        assert calls.longest < DEADLINE
        done.set()
        await asyncio.gather(*jobs)
        for each in talks:
            await each.check()
        await check_rows(server.url("roost"))
        assert await roost.committed("create") == 3
        check_loops(2)
