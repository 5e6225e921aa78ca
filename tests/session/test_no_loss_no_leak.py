"""No session is lost and no machine is leaked: each way in which that could come to be, by name."""

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
from session_service.domain import keeping
from session_service.domain.keeping import Action, Habits
from session_service.lifecycle import own_steps
from session_service.storage import commits, sessions, transitions
from session_service.storage.transitions import Change
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
    from tests.launching import Forked
    from tests.session.front import Asked

ACTIVE = pb.Session.STATE_ACTIVE
PAUSING = pb.Session.STATE_PAUSING
PAUSED = pb.Session.STATE_PAUSED
ENDED = pb.Session.STATE_ENDED
#: Holds a request for longer than the steps that happen meanwhile take, in ms, and leases so that
#: nobody takes its transition over meanwhile.
HELD = 3000
LEASE = timedelta(seconds=20)


@pytest.fixture
async def roost(emulator: Emulator, database_url: str) -> AsyncIterator[World]:
    """Two replicas, whose sweepers need no more than two passes."""
    async with world(emulator, database_url, **QUICK, lease=LEASE) as running:
        yield running


@pytest.fixture
async def brisk(emulator: Emulator, database_url: str) -> AsyncIterator[World]:
    """The same with leases of 2 s, and of 3 s at the provider: a dead owner's are soon over."""
    async with world(emulator, database_url, **QUICK) as running:
        yield running


async def fired(roost: World) -> None:
    """Wait until a fault has struck."""

    async def struck() -> bool:
        return any(fault.fired for fault in await roost.admin.faults())

    assert await eventually(struck, timeout=TIMEOUT)


async def idle(roost: World) -> None:
    """Nobody was at any session for a day, and who watches was warned."""
    await sql(
        roost.one,
        "UPDATE sessions SET last_active_time = now() - interval '1 day', due_at = now(),"
        " warn_time = now() - interval '10 minutes' WHERE state = 'ACTIVE'",
    )


async def touch(roost: World, session: pb.Session) -> None:
    """Somebody is there."""
    request = rpc_pb.TouchSessionRequest(session_id=session.session_id)
    await roost.two.stub.TouchSession(request, timeout=TIMEOUT)


# --- create -----------------------------------------------------------------------------------


@asynccontextmanager
async def process(
    database_url: str, container_target: str
) -> AsyncGenerator[tuple[Forked, SessionServiceStub]]:
    """A replica that can be killed."""
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
    """The machine is there, and nobody who knows of it lives: the retry adopts it."""
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
    """UNAVAILABLE, and nothing is concluded from it; later it works, memory and all."""
    budget = timedelta(seconds=3)
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
    """The provider has the machine in hand: it is started by nobody, and shown in that state."""
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
    """No fresh container, whatever went wrong; the old state is kept, and comes back."""
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
    """The machine came back cold: refused, its files are there, nothing was created."""
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
    """Refused, time and again, until somebody asks for less."""
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


@pytest.mark.parametrize("who", ["keeper", "caller"])
async def test_a_suspend_that_fails_after_the_freeze_is_told(roost: World, who: str) -> None:
    """Accepted, frozen, and running again: ACTIVE, with its condition, and nothing lost."""
    session = (await roost.one.start()).session
    await roost.click_twice(session)
    await roost.admin.set_fault("suspend_fails")
    if who == "caller":
        failure = await failing(roost.one.stop(session.session_id))
        assert failure.reason == "SUSPEND_FAILED_STILL_RUNNING"
    else:
        await idle(roost)
        kept = await roost.one.running.background.keeper.settle()
        assert kept.actions[Action.PAUSE] == 1
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


async def test_a_suspend_that_loses_memory_after_the_freeze_is_told(roost: World) -> None:
    """It ended stopped: PAUSED that deep, MEMORY_LOST, and the next start claims files only."""
    session = (await roost.one.start(spec=spec(env={"COUNTER_FILE": "count"}))).session
    await roost.click_twice(session)
    await roost.admin.set_fault("suspend_stops")
    await idle(roost)
    await roost.one.running.background.keeper.settle()
    shown = await roost.two.get(session.session_id)
    assert (shown.state, shown.pause_depth) == (PAUSED, pb.PAUSE_DEPTH_STOPPED)
    assert [condition.type for condition in shown.conditions] == [pb.CONDITION_TYPE_MEMORY_LOST]
    again = await roost.two.start()
    assert again.continuity == pb.CONTINUITY_FILESYSTEM
    assert await roost.counter(again.session) == "2"


async def test_activity_after_the_idle_decision_and_before_its_commit_wins(roost: World) -> None:
    """The decision was right when it was made; by its commit somebody is there."""
    session = (await roost.one.start()).session
    await idle(roost)
    database, work = roost.one.running.database, roost.one.running.work
    record = await sessions.find(database, UUID(session.session_id))
    assert record is not None
    step = keeping.next_step(record, Habits())
    assert step.action is Action.PAUSE
    assert step.due(record.now)
    await touch(roost, session)
    change = own_steps.intent(record, step, work.terms)
    assert await commits.begin(database, change, None) is None
    assert (await roost.one.get(session.session_id)).state == ACTIVE
    assert await roost.committed("suspend") == 0


async def test_activity_between_the_idle_decision_and_the_suspend_is_not_lost(
    emulator: Emulator, database_url: str
) -> None:
    """Of two idle sessions one is being suspended while the other waits for its turn, and somebody
    comes to both: the one is resumed with its memory, the other never suspended.
    """
    async with world(emulator, database_url, lease=LEASE, concurrent_background=1) as roost:
        both = [(await roost.one.start(user)).session for user in ("wren", "finch")]
        for session in both:
            await roost.click_twice(session)
        await idle(roost)
        await roost.admin.set_fault("slow_before", action="suspend", delay_ms=HELD)
        keeping_both = asyncio.create_task(roost.one.running.background.keeper.settle())
        await fired(roost)
        for session in both:
            await roost.until_state(session.session_id, PAUSING)
            await touch(roost, session)
        await keeping_both
        states = [(await roost.one.get(session.session_id)).state for session in both]
        assert sorted(states) == sorted([ACTIVE, PAUSED])
        assert await roost.committed("suspend") == 1
        for user, state in zip(("wren", "finch"), states, strict=True):
            again = await roost.two.start(user)
            resumed = state == PAUSED
            assert (again.outcome == pb.START_OUTCOME_RESUMED) is resumed
            assert again.continuity == pb.CONTINUITY_MEMORY
            assert await roost.counter(again.session) == "2"


async def test_a_late_owner_changes_nothing_in_the_row_nor_at_the_provider(brisk: World) -> None:
    """Its lease ran out, another took over: its request is refused by Fly, its writes by epoch."""
    session = (await brisk.one.start()).session
    await brisk.click_twice(session)
    # For longer than its machine lease lasts, which whoever takes over waits out.
    await brisk.admin.set_fault("slow_before", action="suspend", delay_ms=7000)
    stop = asyncio.create_task(failing(brisk.one.stop(session.session_id)))
    await fired(brisk)
    late = await sessions.find(brisk.one.running.database, UUID(session.session_id))
    assert late is not None
    await sql(brisk.one, "UPDATE sessions SET lease_until = now() - interval '1 s'")
    again = await brisk.two.start()
    assert (again.session.state, again.outcome) == (ACTIVE, pb.START_OUTCOME_REUSED)
    after = await sql(brisk.one, "SELECT to_jsonb(s)::text FROM sessions s")

    async def refused() -> bool:
        seen = await brisk.admin.requests()
        return [asked.status for asked in seen if asked.action == "suspend"] == [409]

    assert await eventually(refused, timeout=TIMEOUT)
    write = Change(late.session.session_id, late.session.epoch, session={"state": "PAUSED"})
    assert await transitions.write(brisk.one.running.database, write) is None
    assert (await stop).code is not grpc.StatusCode.OK
    assert await sql(brisk.one, "SELECT to_jsonb(s)::text FROM sessions s") == after
    assert await brisk.committed("suspend") == 0
    assert await brisk.counter(session) == "2"


# --- end --------------------------------------------------------------------------------------


async def test_an_undelete_one_second_before_the_grace_ends_brings_it_back(roost: World) -> None:
    """With its memory. Set to that second by the database's time; again where it was missed."""
    session = (await roost.one.start()).session
    await roost.click_twice(session)
    await roost.one.end(session.session_id)

    async def undeleted() -> bool:
        await sql(roost.one, "UPDATE sessions SET purge_time = now() + interval '1 s'")
        try:
            back = await roost.two.undelete(session.session_id)
        except grpc.aio.AioRpcError:
            # Only a machine so busy that the second went by may refuse.
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


async def test_an_undelete_one_second_after_the_grace_ended_is_refused(roost: World) -> None:
    """Also while the container is still there; the keeper then destroys it."""
    session = (await roost.one.start()).session
    await roost.one.end(session.session_id)
    await sql(roost.one, "UPDATE sessions SET purge_time = now() - interval '1 s', due_at = now()")
    refused = await failing(roost.two.undelete(session.session_id))
    assert refused.reason == "SESSION_STATE_CONFLICT"
    assert await roost.provider_state(session) == "suspended"
    kept = await roost.one.running.background.keeper.settle()
    assert kept.actions[Action.PURGE] == 1
    assert await machines(roost) == {}
    assert (await failing(roost.two.undelete(session.session_id))).reason == (
        "SESSION_STATE_CONFLICT"
    )


Flight = tuple[pb.Session, "Awaitable[object] | None"]


async def _create(roost: World) -> Flight:
    await roost.admin.set_fault("slow_before", action="create", delay_ms=HELD)
    start = asyncio.create_task(failing(roost.one.start()))
    session = await roost.until_live("wren")
    await fired(roost)
    return session, start


async def _resume(roost: World) -> Flight:
    session, _ = await _paused(roost)
    await roost.admin.set_fault("slow_before", action="start", delay_ms=HELD)
    start = asyncio.create_task(failing(roost.one.start()))
    await fired(roost)
    return session, start


async def _active(roost: World) -> Flight:
    return (await roost.one.start()).session, None


async def _pausing(roost: World) -> Flight:
    session, _ = await _active(roost)
    await roost.admin.set_fault("slow_before", action="suspend", delay_ms=HELD)
    stop = asyncio.create_task(roost.one.stop(session.session_id))
    await fired(roost)
    return session, stop


async def _paused(roost: World) -> Flight:
    session, _ = await _active(roost)
    return await roost.one.stop(session.session_id), None


async def _ending(roost: World) -> Flight:
    session, _ = await _active(roost)
    await roost.admin.set_fault("slow_before", action="suspend", delay_ms=HELD)
    end = asyncio.create_task(roost.one.end(session.session_id))
    await fired(roost)
    return session, end


async def _ended(roost: World) -> Flight:
    session, _ = await _active(roost)
    return await roost.one.end(session.session_id), None


async def _replaced(roost: World) -> Flight:
    """The predecessor of a FRESH start, which waits for its successor to stand."""
    session, _ = await _active(roost)
    await roost.admin.set_fault("slow_before", action="create", delay_ms=500)
    fresh = asyncio.create_task(roost.one.start(mode=pb.START_MODE_FRESH))
    await fired(roost)
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
    """Over, once; a start that it cuts off is told; what the provider makes later goes as well."""
    session, call = await reach(roost)
    ended = await roost.two.end(session.session_id, now=True)
    assert ended.state == ENDED
    told = None if call is None else await call
    if reach in CUT_OFF:
        assert getattr(told, "reason", "") == "SESSION_STATE_CONFLICT"
    others: set[str] = set()
    if reach is _replaced:
        others = {(await roost.until_live("wren")).container.container_id}
    await _in_the_end_only(roost, others)
    shown = await roost.one.get(session.session_id)
    assert shown.state == ENDED
    refused = await failing(roost.one.undelete(session.session_id))
    assert refused.reason in ("SESSION_STATE_CONFLICT", "LIVE_SESSION_EXISTS")


async def test_end_now_of_a_fresh_start_in_flight_brings_its_predecessor_back(
    roost: World,
) -> None:
    """As it was, memory and all; the new one's caller is told, and its machine goes."""
    old = (await roost.one.start()).session
    await roost.click_twice(old)
    await roost.admin.set_fault("slow_before", action="create", delay_ms=HELD)
    fresh = asyncio.create_task(failing(roost.one.start(mode=pb.START_MODE_FRESH)))
    await fired(roost)
    new = await roost.until_live("wren")
    assert new.session_id != old.session_id
    assert (await roost.two.end(new.session_id, now=True)).state == ENDED
    assert (await fresh).reason == "SESSION_STATE_CONFLICT"
    back = await roost.one.get(old.session_id)
    assert (back.state, back.generation) == (ACTIVE, 1)
    await _in_the_end_only(roost, {old.container.container_id})
    again = await roost.two.start()
    assert (again.session.session_id, again.outcome) == (old.session_id, pb.START_OUTCOME_REUSED)
    assert await roost.counter(again.session) == "2"


async def _in_the_end_only(roost: World, expected: set[str]) -> None:
    """After passes of keeper, sweeper and discarder, when every held request has come through,
    the provider has these machines and no others.
    """
    asked = [one for one in await roost.admin.requests() if one.action == "create"]

    async def clean() -> bool:
        await every_pass(roost)
        return await roost.committed("create") >= len(asked) and (
            set(await machines(roost)) == expected
        )

    assert await eventually(clean, timeout=40, interval=0.2)
