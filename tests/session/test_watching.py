"""WatchSession: every event once, in order, after a given number; deleted events are reported."""

from __future__ import annotations

import asyncio
import gc
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration

from roost.session.v1 import session_pb2 as pb
from roost.session.v1 import session_service_pb2 as rpc_pb
from roost.session.v1.session_service_pb2_grpc import SessionServiceStub
from session_service.reconcile import retention
from session_service.sessions.watch import Watch as SessionWatch
from session_service.sessions.watch import WatchedEvent
from session_service.storage.database import Database
from session_service.storage.notifications import Notices
from session_service.storage.session import change as changes
from session_service.storage.session import events
from session_service.storage.session.change import Change
from tests.container.harness import failing, read_failure
from tests.eventually import eventually
from tests.session.ageing import events_of, hold, id_of, release, run_due_pass, sql, touch
from tests.session.harness import Replica, World, replica, session_config, world

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

    from local.fly.emulator import Emulator
    from session_service.storage.database import BoundedConnection

#: The time for all messages that a stream should give, in s.
PATIENCE = 40


@pytest.fixture
async def roost(emulator: Emulator, database_url: str) -> AsyncIterator[World]:
    """Two replicas."""
    async with world(emulator, database_url) as running:
        yield running


@asynccontextmanager
async def watched(where: Replica, session: pb.Session, after: int = 0) -> AsyncGenerator[Watch]:
    """A stream of the session's events."""
    request = rpc_pb.WatchSessionRequest(session_id=session.session_id, after_sequence=after)
    call = where.stub.WatchSession(request, timeout=PATIENCE)
    try:
        yield Watch(call)
    finally:
        call.cancel()


class Watch:
    """A stream's messages, one by one. Any: grpc's call has no public type to name here."""

    def __init__(self, call: Any) -> None:
        self._messages = call.__aiter__()
        self.call = call

    async def next(self) -> rpc_pb.WatchSessionResponse:
        """The next message."""
        message: rpc_pb.WatchSessionResponse = await self._messages.__anext__()
        return message

    async def until(self, sequence: int) -> list[rpc_pb.WatchSessionResponse]:
        """The messages up to the one with this number."""
        found = [await self.next()]
        while found[-1].sequence < sequence:
            found.append(await self.next())
        return found


async def newest(roost: World, session: pb.Session) -> int:
    """The number of the session's newest event."""
    rows = await sql(
        roost.one,
        "SELECT event_sequence FROM sessions WHERE session_id = %s",
        session.session_id,
    )
    return int(rows[0][0])


async def busy(roost: World, session: pb.Session, rounds: int) -> None:
    """Change the session twice per round, alternating between the replicas."""
    for number in range(rounds):
        await hold(roost.replicas[number % 2], session.session_id, f"hold-{number % 5}")
        await release(roost.replicas[number % 2], session.session_id, f"hold-{number % 5}")


def watchers() -> int:
    """How many watchers the replicas of this process have; those of an earlier test may be left."""
    listening = [each for each in gc.get_objects() if type(each) is Notices]
    return sum(len(each) for notices in listening for each in notices._watchers.values())


# --- every event once ----------------------------------------------------------------------------


async def test_all_events_after_any_number_arrive_once_and_in_order(roost: World) -> None:
    session = (await roost.one.start()).session
    await busy(roost, session, 5)
    await roost.two.pause(session.session_id)
    last = await newest(roost, session)
    for after in range(last):
        async with watched(roost.replicas[after % 2], session, after) as watch:
            found = await watch.until(last)
        assert [message.sequence for message in found] == list(range(after + 1, last + 1))
        assert not any(message.past_is_gone for message in found)
    assert [e.sequence for e in await events_of(roost, session)] == list(range(1, last + 1))


async def test_events_during_a_watch_arrive_once_and_in_order(roost: World) -> None:
    session = (await roost.one.start()).session
    async with watched(roost.two, session) as watch:
        work = asyncio.create_task(busy(roost, session, 60))
        found = await watch.until(2 + 120)
        await work
    assert [message.sequence for message in found] == list(range(1, 123))


async def test_the_events_of_a_pause_carry_the_current_session(roost: World) -> None:
    session = (await roost.one.start()).session
    async with watched(roost.two, session, await newest(roost, session)) as watch:
        await roost.one.pause(session.session_id)
        pausing, paused = await watch.next(), await watch.next()
    assert (pausing.type, paused.type) == ("PAUSING", "PAUSED")
    assert paused.session.state == pb.Session.STATE_PAUSED
    assert paused.state == pb.Session.STATE_PAUSED


class EventfulDatabase(Database):
    """A database on which `after_read` runs after each use of a connection."""

    after_read: Callable[[], Awaitable[None]]

    @asynccontextmanager
    async def connection(
        self, answer: float | None = None
    ) -> AsyncGenerator[BoundedConnection, None]:
        async with super().connection(answer) as connection:
            yield connection
        await self.after_read()


async def test_no_event_is_sent_with_a_session_read_before_it(
    roost: World, database_url: str
) -> None:
    """A hold is put between any two of the watcher's reads."""
    session = (await roost.one.start()).session
    left = 20

    async def put_hold() -> None:
        nonlocal left
        if left:
            left -= 1
            await hold(roost.one, session.session_id, f"hold-{left}")

    last = await newest(roost, session) + left
    listening = Notices(database_url)
    seen = 0
    database = EventfulDatabase(database_url)
    database.after_read = put_hold
    async with asyncio.timeout(PATIENCE), database, listening.listening():
        watch = SessionWatch(database, listening).watch("default", id_of(session), 0)
        async for happened in watch:
            assert isinstance(happened, WatchedEvent)
            assert happened.event is not None
            assert happened.event.sequence == seen + 1
            assert not happened.past_is_gone
            assert happened.record.session.event_sequence >= happened.event.sequence
            seen = happened.event.sequence
            if seen == last:
                break
        await watch.aclose()
    assert left == 0


async def test_an_event_is_committed_with_its_change_or_not_at_all(roost: World) -> None:
    session = (await roost.one.start()).session
    before = await newest(roost, session)
    database = roost.one.running.database
    ((epoch,),) = await sql(roost.one, "SELECT epoch FROM sessions")
    change = Change(id_of(session), epoch, {"activity": "never"}, event="HOLD_PUT")
    with pytest.raises(LookupError):
        async with database.transaction() as connection:
            assert await changes.apply(connection, change) is not None
            raise LookupError
    assert await newest(roost, session) == before
    assert len(await events_of(roost, session)) == before
    ((activity,),) = await sql(roost.one, "SELECT activity FROM sessions")
    assert activity == ""


async def test_many_concurrent_changes_leave_no_gap(roost: World) -> None:
    session = (await roost.one.start()).session
    puts = [hold(roost.replicas[n % 2], session.session_id, f"hold-{n}") for n in range(30)]
    await asyncio.gather(*puts)
    last = await newest(roost, session)
    assert [e.sequence for e in await events_of(roost, session)] == list(range(1, last + 1))


# --- silence --------------------------------------------------------------------------------------


async def test_headers_come_before_the_first_event_and_heartbeats_in_silence(roost: World) -> None:
    """Heartbeats only to who asks, and the first one at once."""
    session = (await roost.one.start()).session
    last = await newest(roost, session)
    request = rpc_pb.WatchSessionRequest(session_id=session.session_id, after_sequence=last)
    silent = roost.two.stub.WatchSession(request, timeout=PATIENCE)
    await silent.initial_metadata()
    request.heartbeat_interval.seconds = 1
    call = roost.two.stub.WatchSession(request, timeout=PATIENCE)
    watch = Watch(call)
    beat = rpc_pb.WatchSessionResponse(sequence=last, heartbeat=rpc_pb.Heartbeat())
    assert [await watch.next(), await watch.next()] == [beat, beat]
    await hold(roost.one, session.session_id)
    # Beside it nothing was sent on the stream without heartbeats.
    assert (await Watch(silent).next()).type == "HOLD_PUT"
    while (message := await watch.next()).HasField("heartbeat"):
        assert message == beat
    assert message.sequence == last + 1
    assert (await watch.next()).sequence == last + 1
    for each in (call, silent):
        each.cancel()
    for wrong in ({"nanos": 1}, {"seconds": 3601}, {"seconds": -1}):
        refused = rpc_pb.WatchSessionRequest(
            session_id=session.session_id, heartbeat_interval=Duration(**wrong)
        )
        refusal = await failing(Watch(roost.one.stub.WatchSession(refused, timeout=9)).next())
        assert (refusal.reason, refusal.fields) == ("INVALID_FIELD", ("heartbeat_interval",))


# --- deleted events ------------------------------------------------------------------------------


async def test_a_gap_is_reported_in_the_first_message_after_it(roost: World) -> None:
    session = (await roost.one.start()).session
    await busy(roost, session, 3)
    last = await newest(roost, session)
    await sql(roost.one, "DELETE FROM session_events WHERE sequence <= 4")
    async with watched(roost.two, session, 2) as watch:
        found = await watch.until(last)
    assert [message.sequence for message in found] == list(range(5, last + 1))
    assert [message.past_is_gone for message in found] == [True] + [False] * (last - 5)
    # A caller that has seen the deleted events misses none.
    async with watched(roost.one, session, 4) as watch:
        assert not (await watch.next()).past_is_gone


async def test_if_all_events_are_deleted_the_newest_number_and_the_session_are_sent(
    roost: World,
) -> None:
    session = (await roost.one.start()).session
    await busy(roost, session, 3)
    last = await newest(roost, session)
    tidied = await retention.run_pass(roost.one.running.database, timedelta(0), timedelta(days=90))
    assert tidied.events == last
    async with watched(roost.two, session) as watch:
        gone = await watch.next()
        assert (gone.sequence, gone.type, gone.past_is_gone) == (last, "", True)
        assert gone.session.state == pb.Session.STATE_ACTIVE
        # Later events follow as usual.
        await hold(roost.one, session.session_id)
        after = await watch.next()
    assert (after.sequence, after.type, after.past_is_gone) == (last + 1, "HOLD_PUT", False)


async def test_a_number_above_the_newest_is_rejected(roost: World) -> None:
    session = (await roost.one.start()).session
    last = await newest(roost, session)
    async with watched(roost.one, session, last + 1) as watch:
        refusal = await failing(watch.next())
    assert (refusal.reason, refusal.fields) == ("INVALID_FIELD", ("after_sequence",))
    async with watched(roost.one, session, -1) as watch:
        assert (await failing(watch.next())).reason == "INVALID_FIELD"


@pytest.mark.parametrize("case", ["unknown", "another tenant's"])
async def test_a_session_of_another_tenant_is_not_found(roost: World, case: str) -> None:
    session = (await roost.one.start()).session
    if case == "unknown":
        session.session_id = "00000000-0000-4000-8000-000000000000"
    else:
        await sql(roost.one, "UPDATE sessions SET tenant = 'another'")
    async with watched(roost.one, session) as watch:
        assert (await failing(watch.next())).reason == "SESSION_NOT_FOUND"


# --- ends ----------------------------------------------------------------------------------------


async def test_a_watch_ends_once_the_sessions_rows_are_deleted(roost: World) -> None:
    """It ended and was destroyed long ago: the due pass deletes its rows, and the stream fails."""
    session = (await roost.one.start()).session
    await roost.one.end(session.session_id, now=True)
    async with watched(roost.two, session, await newest(roost, session)) as watch:
        waiting = asyncio.create_task(failing(watch.next()))
        await sql(
            roost.one, "UPDATE sessions SET end_time = now() - interval '31 days', due_at = now()"
        )
        await run_due_pass(roost.one)
        async with asyncio.timeout(PATIENCE):
            assert (await waiting).reason == "SESSION_NOT_FOUND"


async def test_a_watch_ends_with_its_replica_and_continues_at_another(
    roost: World, database_url: str
) -> None:
    session = (await roost.one.start()).session
    elsewhere = session_config(database_url, "127.0.0.1:9", roost.emulator.proxy_url)
    async with AsyncExitStack() as stack:
        async with replica(elsewhere) as leaving:
            # The channel is the test's own: it stays open after the replica has stopped.
            channel = grpc.aio.insecure_channel(leaving.running.target)
            await stack.enter_async_context(channel)
            request = rpc_pb.WatchSessionRequest(session_id=session.session_id)
            call = SessionServiceStub(channel).WatchSession(request, timeout=PATIENCE)
            watch = Watch(call)
            seen = (await watch.until(await newest(roost, session)))[-1].sequence
            failing_next = asyncio.create_task(_failure(watch))
        failure = await failing_next
    assert failure.code() is grpc.StatusCode.UNAVAILABLE
    assert read_failure(failure).reason == "SERVICE_STOPPING"
    await hold(roost.one, session.session_id)
    async with watched(roost.two, session, seen) as watch:
        assert (await watch.next()).sequence == seen + 1


async def _failure(watch: Watch) -> grpc.aio.AioRpcError:
    """The error that ends the stream."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await watch.next()
    return raised.value


async def test_a_cancelled_watch_leaves_nothing_behind(roost: World) -> None:
    session = (await roost.one.start()).session
    before, calls = watchers(), []
    for _ in range(20):
        request = rpc_pb.WatchSessionRequest(session_id=session.session_id)
        call = roost.two.stub.WatchSession(request, timeout=PATIENCE)
        await Watch(call).next()
        calls.append(call)
    assert watchers() == before + 20
    for call in calls:
        call.cancel()
    assert await eventually(lambda: watchers() == before)


# --- many, and slow ------------------------------------------------------------------------------


@pytest.mark.proof
async def test_two_hundred_watchers_of_a_session_all_receive_a_change(roost: World) -> None:
    session = (await roost.one.start()).session
    last = await newest(roost, session)

    async def next_type(where: Replica) -> str:
        async with watched(where, session, last - 1) as watch:
            await watch.next()
            return (await watch.next()).type

    before = watchers()
    tasks = [asyncio.create_task(next_type(roost.replicas[n % 2])) for n in range(200)]

    assert await eventually(lambda: watchers() == before + 200, timeout=PATIENCE)
    await hold(roost.one, session.session_id)
    assert await asyncio.gather(*tasks) == ["HOLD_PUT"] * 200


@pytest.mark.proof
async def test_for_a_slow_reader_the_server_buffers_only_a_window(
    roost: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 MB of events are in the database; the reader takes one of them."""
    session = (await roost.one.start()).session
    last = await newest(roost, session)
    await sql(
        roost.one,
        "INSERT INTO session_events (session_id, sequence, type, state, generation, details)"
        " SELECT %s, n, 'HOLD_PUT', 'ACTIVE', 1, jsonb_build_object('name', repeat('x', 2000))"
        " FROM generate_series(%s::bigint, %s) AS n",
        session.session_id,
        last + 1,
        last + 10_000,
    )
    await sql(roost.one, "UPDATE sessions SET event_sequence = %s", last + 10_000)
    read = 0
    reads = asyncio.Event()

    async def counting(*values: Any) -> Any:
        nonlocal read
        found = await after(*values)
        read += len(found)
        reads.set()
        return found

    after = events.after
    monkeypatch.setattr(events, "after", counting)
    async with watched(roost.two, session) as watch:
        await watch.next()
        # Wait until the server reads no more: for a while nothing is read.
        while True:
            reads.clear()
            try:
                async with asyncio.timeout(1):
                    await reads.wait()
            except TimeoutError:
                break
        assert read < 5_000, f"{read} events were read for one that the reader took"
        others = await watch.until(last + 10_000)
        assert others[-1].sequence == last + 10_000


async def test_a_touch_is_no_event(roost: World) -> None:
    """Activity is too frequent for an event each."""
    session = (await roost.one.start()).session
    before = await newest(roost, session)
    await touch(roost.two, session)
    assert await newest(roost, session) == before
