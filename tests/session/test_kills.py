"""Replicas, as real processes, killed with SIGKILL during transitions: rules 1, 4, 5 and 6."""

from __future__ import annotations

import asyncio
import random
import signal
from contextlib import AsyncExitStack
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING, Any

import grpc.aio
import pytest

from local.stack.stack import Stack
from local.stack.stack_settings import StackSettings
from roost.session.v1 import session_pb2 as pb
from roost.session.v1 import session_service_pb2 as rpc_pb
from roost.session.v1.session_service_pb2_grpc import SessionServiceStub
from tests.eventually import eventually
from tests.session.harness import key, request_id

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from roost.session.v1.session_service_pb2 import StartSessionResponse

#: Five processes start, and the replicas again.
pytestmark = pytest.mark.timeout(180)

ONE, TWO = "session_service", "session_service_2"
#: Short timings: a dead owner's transition is taken over after a second.
QUICK = {
    "ROOST_LEASE": "1",
    "ROOST_LAG_WINDOW": "0.3",
    "ROOST_START_BUDGET": "15",
    "ROOST_DEFAULT_IMAGE": "roost/counter",
}
PATIENCE = 40.0


class Two:
    """Two replicas as processes, and calls that are retried as the contract says."""

    def __init__(self, stack: Stack, stubs: list[SessionServiceStub]) -> None:
        self.stack = stack
        self.stubs = stubs

    async def start(self, first: int = 0, **fields: Any) -> StartSessionResponse:
        """StartSession with a request id, repeated at the other replica while UNAVAILABLE."""
        request = rpc_pb.StartSessionRequest(key=key(), request_id=request_id(), **fields)
        until = monotonic() + PATIENCE
        turn = first
        while True:
            try:
                return await self.stubs[turn % 2].StartSession(request, timeout=PATIENCE)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE or monotonic() > until:
                    raise
            turn += 1
            await asyncio.sleep(0.05)

    async def committed(self, action: str) -> int:
        """How often the provider carried the action out."""
        return sum(done.action == action for done in await self.stack.admin.actions())


@pytest.fixture
async def two(tmp_path: Path, database_url: str) -> AsyncIterator[Two]:
    """A stack of processes on free ports, with the test's database."""
    settings = replace(
        StackSettings.on_free_ports(tmp_path / "roost", replicas=2),
        database_url=database_url,
        environment=QUICK,
        emulator_options=("--no-limits",),
    )
    async with Stack(settings) as stack, AsyncExitStack() as channels:
        stubs = [
            SessionServiceStub(
                await channels.enter_async_context(grpc.aio.insecure_channel(target))
            )
            for target in stack.session_targets
        ]
        yield Two(stack, stubs)


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment",
    [
        "during",
        pytest.param("before", marks=pytest.mark.proof),
        pytest.param("after", marks=pytest.mark.proof),
    ],
)
async def test_the_leader_killed_around_its_create_leaves_one_machine(
    two: Two, moment: str
) -> None:
    """The leading replica of 50 calls dies; each call is answered, and one machine was created."""
    if moment == "before":
        # The intent is committed, but container_service does not process the call.
        two.stack.send("container_service", signal.SIGSTOP)
    elif moment == "during":
        await two.stack.admin.set_fault("slow_before", action="create", delay_ms=2000)
    else:
        await two.stack.admin.set_fault("slow_after", action="create", delay_ms=2000)
    leader = asyncio.create_task(two.start())
    await _until_led(two, moment)
    rest = [asyncio.create_task(two.start(first=number % 2)) for number in range(49)]
    await two.stack.kill(ONE)
    if moment == "before":
        two.stack.send("container_service", signal.SIGCONT)
    await two.stack.start(ONE)
    answers = await asyncio.gather(leader, *rest)
    assert await two.committed("create") == 1
    assert len({answer.session.session_id for answer in answers}) == 1
    own = [a for a in answers if a.outcome == pb.START_OUTCOME_CREATED and not a.joined]
    assert len(own) == 1, "one caller created it, the others joined or reused it"
    others = {a.outcome for a in answers if not a.joined}
    assert others <= {pb.START_OUTCOME_CREATED, pb.START_OUTCOME_REUSED}


@pytest.mark.slow
async def test_a_start_whose_owner_died_is_replayed_at_the_other_replica(two: Two) -> None:
    """Rule 3 after a crash: the same outcome, attempts and decision."""
    await two.stack.admin.set_fault("slow_before", action="create", delay_ms=6000)
    once = request_id()
    request = rpc_pb.StartSessionRequest(key=key(), request_id=once)
    lost = asyncio.create_task(_answer(two.stubs[0], request))
    await _until_led(two, "during")
    await two.stack.kill(ONE)
    assert await lost is None
    first = await two.stubs[1].StartSession(request, timeout=PATIENCE)
    await two.stack.start(ONE)
    again = await two.stubs[0].StartSession(request, timeout=PATIENCE)
    assert first.outcome == again.outcome == pb.START_OUTCOME_CREATED
    assert not first.joined
    assert (first.decision_id, list(first.attempts)) == (again.decision_id, list(again.attempts))
    assert await two.committed("create") == 1


@pytest.mark.slow
async def test_a_late_suspend_of_a_dead_owner_is_refused_by_the_lease(two: Two) -> None:
    """Rule 5: the successor holds the machine lease, so the suspend fails; the machine stays up."""
    session = (await two.start()).session
    # Longer than the owner's lease and the machine lease together.
    await two.stack.admin.set_fault("slow_before", action="suspend", delay_ms=10_000)
    request = rpc_pb.StopSessionRequest(session_id=session.session_id)
    asyncio.create_task(_answer(two.stubs[0], request))  # noqa: RUF006  # its replica dies
    await _until_led(two, "during")
    await two.stack.kill(ONE)
    answer = await two.start(first=1)
    assert answer.session.session_id == session.session_id
    assert answer.session.state == pb.Session.STATE_ACTIVE
    assert answer.outcome == pb.START_OUTCOME_REUSED

    async def rejected() -> bool:
        seen = await two.stack.admin.requests()
        late = [r for r in seen if r.action == "suspend"]
        return bool(late) and all(r.status == 409 for r in late)

    await eventually(rejected)
    assert await two.committed("suspend") == 0
    assert (await two.start(first=1)).outcome == pb.START_OUTCOME_REUSED


@pytest.mark.proof
@pytest.mark.slow
async def test_random_kills_neither_duplicate_nor_lose_a_session(two: Two) -> None:
    """Starts and stops of one key while replicas die at random moments; the seed is printed."""
    seed = random.randrange(1_000_000)
    print(f"seed {seed}")
    dice = random.Random(seed)
    session_id = (await two.start()).session.session_id
    for _ in range(4):
        work = asyncio.create_task(_stop_and_start(two, session_id))
        await asyncio.sleep(dice.uniform(0, 0.4))
        victim = dice.choice([ONE, TWO])
        await two.stack.kill(victim)
        await two.stack.start(victim)
        answer = await work
        assert answer.session.session_id == session_id
        assert answer.continuity == pb.CONTINUITY_MEMORY
    assert await two.committed("create") == 1


async def _stop_and_start(two: Two, session_id: str) -> StartSessionResponse:
    request = rpc_pb.StopSessionRequest(session_id=session_id, request_id=request_id())
    until, turn = monotonic() + PATIENCE, 0
    while monotonic() < until:
        try:
            await two.stubs[turn % 2].StopSession(request, timeout=PATIENCE)
            break
        except grpc.aio.AioRpcError as error:
            # The replica that takes a pause over may undo it; the call then fails so.
            if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                break
            assert error.code() is grpc.StatusCode.UNAVAILABLE, error
        turn += 1
        await asyncio.sleep(0.05)
    return await two.start()


async def _answer(stub: SessionServiceStub, request: Any) -> object:
    """The answer, or None if the call failed. Any: requests of two methods."""
    call = (
        stub.StartSession if isinstance(request, rpc_pb.StartSessionRequest) else stub.StopSession
    )
    try:
        return await call(request, timeout=PATIENCE)
    except grpc.aio.AioRpcError:
        return None


async def _until_led(two: Two, moment: str) -> None:
    """Wait until the leader has committed its intent and, unless `before`, called the provider."""

    async def led() -> bool:
        if moment != "before":
            return any(fault.fired for fault in await two.stack.admin.faults())
        request = rpc_pb.FindLiveSessionRequest(key=key())
        try:
            await two.stubs[1].FindLiveSession(request, timeout=5)
        except grpc.aio.AioRpcError:
            return False
        return True

    await eventually(led)
