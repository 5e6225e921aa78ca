"""No session is lost and no machine is leaked: one test for each known cause."""

from __future__ import annotations

import asyncio
import re
import signal
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import UUID

import grpc
import grpc.aio
import pytest

from container_service.main import serve as serve_containers
from local.fly.admin import Admin
from roost.session.v1 import session_pb2 as pb
from roost.session.v1 import session_service_pb2 as rpc_pb
from roost.session.v1.session_service_pb2_grpc import SessionServiceStub
from session_service.domain import next_action
from session_service.domain.next_action import Action, Timings
from session_service.reconcile import due
from session_service.storage.session import change as changes
from session_service.storage.session import reads
from session_service.storage.session.change import Change
from session_service.storage.session.commit import Conflict, commit
from tests.container.harness import config_for, failing
from tests.eventually import eventually
from tests.session.front import Front, fronted
from tests.session.harness import (
    TIMEOUT,
    World,
    key,
    replica,
    request_id,
    session_config,
    spec,
    world,
)
from tests.session.sweeping import QUICK, every_pass, fly, machines, sql
from tests.session.test_process import launch

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

    from local.fly.emulator import Emulator
    from tests.service_processes import Forked
    from tests.session.front import Asked

ACTIVE = pb.Session.STATE_ACTIVE
PAUSING = pb.Session.STATE_PAUSING
PAUSED = pb.Session.STATE_PAUSED
ENDED = pb.Session.STATE_ENDED
#: The delay, in ms, of a request that a test holds until it removes the fault, and of one that is
#: only late. The lease is longer, so that no other replica takes the transition over.
HELD_MS = 30_000
DELAY_MS = 3000
LEASE = timedelta(seconds=40)


@pytest.fixture
async def roost(emulator: Emulator, database_url: str) -> AsyncIterator[World]:
    """Two replicas that destroy an orphan in its second pass."""
    async with world(emulator, database_url, **QUICK, lease=LEASE) as running:
        yield running


@pytest.fixture
async def short_leases(emulator: Emulator, database_url: str) -> AsyncIterator[World]:
    """With leases of 2 s, and of 3 s at the provider: those of a dead owner expire soon."""
    async with world(emulator, database_url, **QUICK, lease=timedelta(seconds=2)) as running:
        yield running


async def until_fault(roost: World) -> None:
    """Wait until a fault was applied."""

    async def struck() -> bool:
        return any(fault.fired for fault in await roost.admin.faults())

    assert await eventually(struck, timeout=TIMEOUT)


async def make_all_idle(roost: World) -> None:
    """Make every session idle for a day, with its warning sent, and due."""
    await sql(
        roost.one,
        "UPDATE sessions SET last_active_time = now() - interval '1 day', due_at = now(),"
        " warn_time = now() - interval '10 minutes' WHERE state = 'ACTIVE'",
    )


async def touch(roost: World, session: pb.Session) -> None:
    """Report activity of the session's user."""
    request = rpc_pb.TouchSessionRequest(session_id=session.session_id)
    await roost.two.stub.TouchSession(request, timeout=TIMEOUT)


# --- create -----------------------------------------------------------------------------------


@asynccontextmanager
async def process(
    database_url: str, container_target: str
) -> AsyncGenerator[tuple[Forked, SessionServiceStub]]:
    """A replica in a process of its own, which the test can kill."""
    child = await launch(
        ROOST_DATABASE_URL=database_url,
        ROOST_SESSION_LISTEN="127.0.0.1:0",
        ROOST_CONTAINER_TARGET=container_target,
        ROOST_LEASE="1",
    )
    try:
        line = ""
        while not (found := re.search(r"serving on (\S+)", line)):
            line = (await asyncio.wait_for(child.stderr.readline(), 40)).decode()
            assert line, "it ended"
        async with grpc.aio.insecure_channel(found.group(1)) as channel:
            yield child, SessionServiceStub(channel)
    finally:
        if child.returncode is None:
            child.kill()
        await child.communicate()


async def test_create_succeeds_its_answer_is_lost_the_process_dies_and_a_retry_is_one_machine(
    emulator: Emulator, database_url: str
) -> None:
    """The machine exists and its id was never recorded: the retry adopts it."""
    async with (
        serve_containers(config_for(emulator)) as containers,
        Admin(emulator.api_url) as admin,
        process(database_url, containers.target) as (child, stub),
    ):
        await admin.set_fault("slow_after", action="create", delay_ms=15_000)
        request = rpc_pb.StartSessionRequest(key=key(), request_id=request_id())
        call = asyncio.ensure_future(failing(stub.StartSession(request, timeout=TIMEOUT)))

        async def created() -> bool:
            return any(done.action == "create" for done in await admin.actions())

        assert await eventually(created, timeout=TIMEOUT)
        child.kill()
        assert await child.wait() == -signal.SIGKILL
        assert (await call).code is grpc.StatusCode.UNAVAILABLE
        config = session_config(database_url, containers.target, emulator.proxy_url)
        async with replica(config) as survivor:

            async def answered() -> rpc_pb.StartSessionResponse | None:
                try:
                    return await survivor.stub.StartSession(request, timeout=TIMEOUT)
                except grpc.aio.AioRpcError as error:
                    assert error.code() is grpc.StatusCode.UNAVAILABLE, error
                    return None

            answer: rpc_pb.StartSessionResponse | None = await eventually(answered, timeout=40)
            assert answer is not None
            assert (answer.outcome, answer.session.generation) == (pb.START_OUTCOME_CREATED, 1)
            again = await survivor.stub.StartSession(request, timeout=TIMEOUT)
            assert again.decision_id == answer.decision_id
        assert [done.action for done in await admin.actions()].count("create") == 1


# --- resume -----------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["destroying", "replacing", "a-word-of-tomorrow"])
async def test_an_odd_state_while_resuming_keeps_the_mapping(
    emulator: Emulator, database_url: str, word: str
) -> None:
    """UNAVAILABLE, and no row changes its container. A later start resumes it with its memory."""
    budget = timedelta(seconds=8)
    async with (
        fronted(emulator) as front,
        world(front.emulator, database_url, start_budget=budget) as roost,
    ):
        session = (await roost.one.start()).session
        await roost.click_twice(session)
        await roost.one.stop(session.session_id)
        front.answer = await _odd(roost, front, session, word)
        failure = await failing(roost.one.start())
        assert failure.code is grpc.StatusCode.UNAVAILABLE
        front.answer = None
        kept = await roost.two.get(session.session_id)
        assert kept.container.container_id == session.container.container_id

        async def back() -> rpc_pb.StartSessionResponse | None:
            try:
                return await roost.two.start()
            except grpc.aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.UNAVAILABLE, error
                return None

        again: rpc_pb.StartSessionResponse | None = await eventually(back, timeout=30)
        assert again is not None
        assert (again.outcome, again.continuity) == (
            pb.START_OUTCOME_RESUMED,
            pb.CONTINUITY_MEMORY,
        )
        assert await roost.counter(again.session) == "2"
        assert await roost.committed("create") == 1
        assert await roost.committed("destroy") == 0


async def _odd(
    roost: World, front: Front, session: pb.Session, word: str
) -> Callable[[Asked], tuple[int, object] | None]:
    """An answer that fails each start of the machine and shows it in the given state."""
    machine_id = session.container.container_id
    seen = await fly(roost, "GET", f"/{machine_id}", truth=front.truth)

    def answer(asked: Asked) -> tuple[int, object] | None:
        if asked.path.endswith(f"/{machine_id}/start"):
            return 412, {"error": f"failed_precondition: machine is {word}"}
        if asked.method == "GET" and asked.path.endswith(f"/{machine_id}"):
            return 200, {**seen, "state": word}
        return None

    return answer


async def test_a_resume_that_fails_under_min_continuity_creates_nothing(roost: World) -> None:
    """It creates no fresh container after any failure. The old state is kept and resumed later."""
    session = (await roost.one.start()).session
    await roost.click_twice(session)
    await roost.one.stop(session.session_id)
    await roost.admin.set_fault("capacity", action="start", times=None)
    failure = await failing(roost.one.start(min_continuity=pb.CONTINUITY_MEMORY))
    assert failure.retry_seconds is not None
    await roost.admin.clear_faults()
    kept = await roost.two.get(session.session_id)
    assert kept.state == PAUSED
    assert kept.container.container_id == session.container.container_id
    again = await roost.two.start(min_continuity=pb.CONTINUITY_MEMORY)
    assert again.continuity == pb.CONTINUITY_MEMORY
    assert await roost.counter(again.session) == "2"
    assert await roost.committed("create") == 1


async def test_memory_lost_under_min_continuity_keeps_the_files(roost: World) -> None:
    """The machine booted cold: the start fails, its files are kept, and nothing was created."""
    session = (await roost.one.start(spec=spec(env={"COUNTER_FILE": "count"}))).session
    await roost.click_twice(session)
    await roost.one.stop(session.session_id)
    await roost.admin.set_fault("snapshot_dropped")
    failure = await failing(roost.one.start(min_continuity=pb.CONTINUITY_MEMORY))
    assert failure.reason == "CONTINUITY_UNAVAILABLE"
    again = await roost.two.start(min_continuity=pb.CONTINUITY_FILESYSTEM)
    assert again.continuity == pb.CONTINUITY_FILESYSTEM
    assert await roost.counter(again.session) == "2"
    assert await roost.committed("create") == 1


async def test_a_lost_machine_under_min_continuity_is_not_replaced(roost: World) -> None:
    """Each start fails until one asks for less continuity."""
    session = (await roost.one.start()).session
    await roost.one.stop(session.session_id)
    await roost.admin.set_fault("machine_vanished", machine=session.container.container_id)
    for one in roost.replicas:
        failure = await failing(one.start(min_continuity=pb.CONTINUITY_FILESYSTEM))
        assert failure.reason == "CONTINUITY_UNAVAILABLE"
    await every_pass(roost)
    assert await roost.committed("create") == 1
    assert (await roost.one.get(session.session_id)).state == PAUSED
    again = await roost.two.start()
    assert (again.outcome, again.session.session_id) == (
        pb.START_OUTCOME_CREATED,
        session.session_id,
    )


# --- suspend ----------------------------------------------------------------------------------


@pytest.mark.parametrize("cause", ["idle", "caller"])
async def test_a_suspend_that_fails_after_the_freeze_is_reported(roost: World, cause: str) -> None:
    """Accepted, frozen, and running again: ACTIVE with its condition, and nothing is lost."""
    session = (await roost.one.start()).session
    await roost.click_twice(session)
    await roost.admin.set_fault("suspend_fails")
    if cause == "caller":
        failure = await failing(roost.one.stop(session.session_id))
        assert failure.reason == "SUSPEND_FAILED_STILL_RUNNING"
    else:
        await make_all_idle(roost)
        counts = await roost.one.running.background.due_pass.settle()
        assert counts.actions[Action.PAUSE] == 1
    shown = await roost.two.get(session.session_id)
    kinds = [condition.type for condition in shown.conditions]
    assert (shown.state, kinds) == (
        ACTIVE,
        [pb.CONDITION_TYPE_SUSPEND_FAILED_STILL_RUNNING],
    )
    assert await roost.provider_state(session) == "started"
    again = await roost.two.start()
    assert (again.outcome, again.continuity) == (pb.START_OUTCOME_REUSED, pb.CONTINUITY_MEMORY)
    assert await roost.counter(again.session) == "2"


async def test_a_suspend_that_loses_memory_after_the_freeze_is_reported(roost: World) -> None:
    """The machine ends stopped: depth STOPPED, MEMORY_LOST; the next start claims files only."""
    session = (await roost.one.start(spec=spec(env={"COUNTER_FILE": "count"}))).session
    await roost.click_twice(session)
    await roost.admin.set_fault("suspend_stops")
    await make_all_idle(roost)
    await roost.one.running.background.due_pass.settle()
    shown = await roost.two.get(session.session_id)
    assert (shown.state, shown.pause_depth) == (PAUSED, pb.PAUSE_DEPTH_STOPPED)
    assert [condition.type for condition in shown.conditions] == [pb.CONDITION_TYPE_MEMORY_LOST]
    again = await roost.two.start()
    assert again.continuity == pb.CONTINUITY_FILESYSTEM
    assert await roost.counter(again.session) == "2"


async def test_activity_after_the_idle_decision_and_before_its_commit_wins(roost: World) -> None:
    """The session was idle when the pass read it, and has activity before the pass commits."""
    session = (await roost.one.start()).session
    await make_all_idle(roost)
    database, work = roost.one.running.database, roost.one.running.work
    record = await reads.find(database, UUID(session.session_id))
    assert record is not None
    step = next_action.next_step(record, Timings())
    assert step.action is Action.PAUSE
    assert step.due(record.now)
    await touch(roost, session)
    done = await commit(database, due.bring_down(record, step, work.terms))
    assert done is Conflict.CHANGED
    assert (await roost.one.get(session.session_id)).state == ACTIVE
    assert await roost.committed("suspend") == 0


async def test_activity_between_the_idle_decision_and_the_suspend_is_not_lost(
    emulator: Emulator, database_url: str
) -> None:
    """One of two idle sessions is being suspended while the other waits for a slot, and both users
    are active then: the first is resumed with its memory, the second is never suspended.
    """
    async with world(emulator, database_url, lease=LEASE, concurrent_background=1) as roost:
        both = [(await roost.one.start(user)).session for user in ("wren", "finch")]
        for session in both:
            await roost.click_twice(session)
        await make_all_idle(roost)
        await roost.admin.set_fault("slow_before", action="suspend", delay_ms=HELD_MS)
        pausing_both = asyncio.create_task(roost.one.running.background.due_pass.settle())
        await until_fault(roost)
        for session in both:
            await roost.until_state(session.session_id, PAUSING)
            await touch(roost, session)
        await roost.admin.clear_faults()
        await pausing_both
        states = [(await roost.one.get(session.session_id)).state for session in both]
        assert sorted(states) == sorted([ACTIVE, PAUSED])
        assert await roost.committed("suspend") == 1
        for user, state in zip(("wren", "finch"), states, strict=True):
            again = await roost.two.start(user)
            resumed = state == PAUSED
            assert (again.outcome == pb.START_OUTCOME_RESUMED) is resumed
            assert again.continuity == pb.CONTINUITY_MEMORY
            assert await roost.counter(again.session) == "2"


async def test_a_late_owner_changes_nothing_in_the_row_nor_at_the_provider(
    short_leases: World,
) -> None:
    """Its lease expired and another replica took over: Fly and the row's epoch reject its calls."""
    session = (await short_leases.one.start()).session
    await short_leases.click_twice(session)
    # Longer than the machine lease, which the replica that takes over waits for.
    await short_leases.admin.set_fault("slow_before", action="suspend", delay_ms=7000)
    stop = asyncio.create_task(failing(short_leases.one.stop(session.session_id)))
    await until_fault(short_leases)
    late = await reads.find(short_leases.one.running.database, UUID(session.session_id))
    assert late is not None
    await sql(short_leases.one, "UPDATE sessions SET lease_until = now() - interval '1 s'")
    again = await short_leases.two.start()
    assert (again.session.state, again.outcome) == (ACTIVE, pb.START_OUTCOME_REUSED)
    after = await sql(short_leases.one, "SELECT to_jsonb(s)::text FROM sessions s")

    async def rejected() -> bool:
        seen = await short_leases.admin.requests()
        return [asked.status for asked in seen if asked.action == "suspend"] == [409]

    assert await eventually(rejected, timeout=TIMEOUT)
    write = Change(late.session.session_id, late.session.epoch, session={"state": "PAUSED"})
    assert await changes.write(short_leases.one.running.database, write) is None
    assert (await stop).code is not grpc.StatusCode.OK
    assert await sql(short_leases.one, "SELECT to_jsonb(s)::text FROM sessions s") == after
    assert await short_leases.committed("suspend") == 0
    assert await short_leases.counter(session) == "2"


# --- end --------------------------------------------------------------------------------------


async def test_an_undelete_one_second_before_the_grace_ends_brings_it_back(roost: World) -> None:
    """With its memory. `purge_time` is set by the database's clock, and again if it was missed."""
    session = (await roost.one.start()).session
    await roost.click_twice(session)
    await roost.one.end(session.session_id)

    async def undeleted() -> bool:
        await sql(roost.one, "UPDATE sessions SET purge_time = now() + interval '1 s'")
        try:
            back = await roost.two.undelete(session.session_id)
        except grpc.aio.AioRpcError:
            # Only if the machine is so busy that the second has passed may the call fail.
            ((late,),) = await sql(roost.one, "SELECT purge_time <= now() FROM sessions")
            assert late
            return False
        return back.state == PAUSED

    assert await eventually(undeleted, timeout=TIMEOUT)
    again = await roost.one.start()
    assert (again.outcome, again.continuity) == (pb.START_OUTCOME_RESUMED, pb.CONTINUITY_MEMORY)
    assert await roost.counter(again.session) == "2"
    await every_pass(roost)
    assert (await roost.one.get(session.session_id)).state == ACTIVE


async def test_an_undelete_one_second_after_the_grace_ended_is_rejected(roost: World) -> None:
    """Also while its container still exists; the next due pass destroys it."""
    session = (await roost.one.start()).session
    await roost.one.end(session.session_id)
    await sql(roost.one, "UPDATE sessions SET purge_time = now() - interval '1 s', due_at = now()")
    failure = await failing(roost.two.undelete(session.session_id))
    assert failure.reason == "SESSION_STATE_CONFLICT"
    assert await roost.provider_state(session) == "suspended"
    counts = await roost.one.running.background.due_pass.settle()
    assert counts.actions[Action.PURGE] == 1
    assert await machines(roost) == {}
    assert (await failing(roost.two.undelete(session.session_id))).reason == (
        "SESSION_STATE_CONFLICT"
    )


Flight = tuple[pb.Session, "Awaitable[object] | None"]


async def _create(roost: World) -> Flight:
    await roost.admin.set_fault("slow_before", action="create", delay_ms=HELD_MS)
    start = asyncio.create_task(failing(roost.one.start()))
    session = await roost.until_live("wren")
    await until_fault(roost)
    return session, start


async def _resume(roost: World) -> Flight:
    session, _ = await _paused(roost)
    await roost.admin.set_fault("slow_before", action="start", delay_ms=HELD_MS)
    start = asyncio.create_task(failing(roost.one.start()))
    await until_fault(roost)
    return session, start


async def _active(roost: World) -> Flight:
    return (await roost.one.start()).session, None


async def _pausing(roost: World) -> Flight:
    session, _ = await _active(roost)
    await roost.admin.set_fault("slow_before", action="suspend", delay_ms=DELAY_MS)
    stop = asyncio.create_task(roost.one.stop(session.session_id))
    await until_fault(roost)
    return session, stop


async def _paused(roost: World) -> Flight:
    session, _ = await _active(roost)
    return await roost.one.stop(session.session_id), None


async def _ending(roost: World) -> Flight:
    session, _ = await _active(roost)
    await roost.admin.set_fault("slow_before", action="suspend", delay_ms=DELAY_MS)
    end = asyncio.create_task(roost.one.end(session.session_id))
    await until_fault(roost)
    return session, end


async def _ended(roost: World) -> Flight:
    session, _ = await _active(roost)
    return await roost.one.end(session.session_id), None


async def _replaced(roost: World) -> Flight:
    """The predecessor of a FRESH start, which is kept until its successor is up."""
    session, _ = await _active(roost)
    await roost.admin.set_fault("slow_before", action="create", delay_ms=500)
    fresh = asyncio.create_task(roost.one.start(mode=pb.START_MODE_FRESH))
    await until_fault(roost)
    return session, fresh


CUT_OFF = (_create, _resume)


@pytest.mark.parametrize(
    "reach",
    [_create, _resume, _active, _pausing, _paused, _ending, _ended, _replaced],
    ids=lambda reach: reach.__name__.strip("_"),
)
async def test_end_now_is_legal_from_every_state_and_leaves_no_machine(
    roost: World, reach: Callable[[World], Awaitable[Flight]]
) -> None:
    """The session ends once. A start that it cuts off fails, and its late machine is destroyed."""
    session, call = await reach(roost)
    ended = await roost.two.end(session.session_id, now=True)
    assert ended.state == ENDED
    result = None if call is None else await call
    if reach in CUT_OFF:
        assert getattr(result, "reason", "") == "SESSION_STATE_CONFLICT"
        await roost.admin.clear_faults()
    others: set[str] = set()
    if reach is _replaced:
        others = {(await roost.until_live("wren")).container.container_id}
    await _in_the_end_only(roost, others)
    shown = await roost.one.get(session.session_id)
    assert shown.state == ENDED
    failure = await failing(roost.one.undelete(session.session_id))
    assert failure.reason in ("SESSION_STATE_CONFLICT", "LIVE_SESSION_EXISTS")


async def test_end_now_of_a_fresh_start_in_flight_brings_its_predecessor_back(
    roost: World,
) -> None:
    """The predecessor is as before, with its memory. The new session's start fails, and its machine
    is destroyed.
    """
    old = (await roost.one.start()).session
    await roost.click_twice(old)
    await roost.admin.set_fault("slow_before", action="create", delay_ms=HELD_MS)
    fresh = asyncio.create_task(failing(roost.one.start(mode=pb.START_MODE_FRESH)))
    await until_fault(roost)
    new = await roost.until_live("wren")
    assert new.session_id != old.session_id
    assert (await roost.two.end(new.session_id, now=True)).state == ENDED
    assert (await fresh).reason == "SESSION_STATE_CONFLICT"
    await roost.admin.clear_faults()
    back = await roost.one.get(old.session_id)
    assert (back.state, back.generation) == (ACTIVE, 1)
    await _in_the_end_only(roost, {old.container.container_id})
    again = await roost.two.start()
    assert (again.session.session_id, again.outcome) == (old.session_id, pb.START_OUTCOME_REUSED)
    assert await roost.counter(again.session) == "2"


async def _in_the_end_only(roost: World, expected: set[str]) -> None:
    """After due, inventory and discard passes, and once every held request was served,
    the provider has these machines and no others.
    """
    asked = [one for one in await roost.admin.requests() if one.action == "create"]

    async def clean() -> bool:
        await every_pass(roost)
        return await roost.committed("create") >= len(asked) and (
            set(await machines(roost)) == expected
        )

    assert await eventually(clean, timeout=40, interval=0.2)
