"""Many starts of one key at once: one does the work, the rest join, one machine is created."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from roost.session.v1 import session_pb2 as pb
from tests.container.harness import failing
from tests.eventually import eventually
from tests.session.harness import LAG_WINDOW, request_id, spec
from tests.session.tracing import Trace

if TYPE_CHECKING:
    from roost.session.v1.session_service_pb2 import StartSessionResponse
    from tests.session.harness import World
    from tests.session.tracing import Tracer


#: How long a held step takes, in ms: the others come meanwhile, also on a busy machine.
HELD_MS = 3000


async def many(roost: World, count: int, **fields: Any) -> list[StartSessionResponse]:
    """`count` starts at once, spread over the replicas. Any: fields of every type."""
    calls = [
        roost.replicas[number % len(roost.replicas)].start(request_id=request_id(), **fields)
        for number in range(count)
    ]
    return await asyncio.gather(*calls)


@pytest.mark.parametrize("fault", ["none", "answer_lost", "slow_after", "stale_read"])
async def test_fifty_starts_at_two_replicas_make_one_create(roost: World, fault: str) -> None:
    """Rules 1, 2 and 6; also if the create's answer is lost or late, or a read is stale."""
    if fault == "answer_lost":
        await roost.admin.set_fault("answer_lost", action="create", answer="close")
    elif fault != "none":
        # A read may be stale for as long as the lag window.
        delay = LAG_WINDOW if fault == "stale_read" else timedelta(seconds=0.3)
        milliseconds = delay // timedelta(milliseconds=1)
        await roost.admin.set_fault(fault, action="create", delay_ms=milliseconds)
    answers = await many(roost, 50)
    assert await roost.committed("create") == 1
    assert len({answer.session.session_id for answer in answers}) == 1
    own = [answer for answer in answers if not answer.joined]
    outcomes = Counter(answer.outcome for answer in own)
    assert outcomes[pb.START_OUTCOME_CREATED] == 1
    assert set(outcomes) <= {pb.START_OUTCOME_CREATED, pb.START_OUTCOME_REUSED}
    leader = next(a for a in own if a.outcome == pb.START_OUTCOME_CREATED)
    joined = [answer for answer in answers if answer.joined]
    assert joined, "of 50 starts at once none joined: the test shows nothing"
    assert all(answer.outcome == pb.START_OUTCOME_CREATED for answer in joined)
    decisions = await roost.one.decisions(leader.session.session_id)
    assert len(decisions) == 50
    leaders = {d.leader_decision_id for d in decisions if d.joined}
    assert leaders == {leader.decision_id}


async def test_many_starts_of_a_paused_session_resume_it_once(roost: World) -> None:
    """Joiners get the leader's continuity."""
    session = (await roost.one.start()).session
    await roost.click_twice(session)
    await roost.one.stop(session.session_id)
    answers = await many(roost, 20)
    assert await roost.committed("start") <= 2  # the create's own, and one resume
    assert {a.continuity for a in answers} == {pb.CONTINUITY_MEMORY}
    assert await roost.counter(session) == "2"


async def test_fresh_joins_a_fresh_of_an_equal_spec(roost: World) -> None:
    """Rule 2: concurrent callers with an equal spec get the same fresh session."""
    await roost.one.start()
    await roost.admin.set_fault("slow_before", action="create", delay_ms=HELD_MS)
    answers = await many(roost, 10, mode=pb.START_MODE_FRESH)
    assert len({answer.session.session_id for answer in answers}) == 1
    assert sum(not answer.joined for answer in answers) == 1
    assert await roost.committed("create") == 2


async def test_fresh_of_another_spec_waits_and_replaces_the_first(roost: World) -> None:
    """It does not join; it replaces the session that the first start created."""
    await roost.admin.set_fault("slow_before", action="create", delay_ms=300)
    first = asyncio.create_task(
        roost.one.start(mode=pb.START_MODE_FRESH, spec=spec(env={"A": "1"}))
    )
    await roost.until_live("wren")
    second = await roost.two.start(mode=pb.START_MODE_FRESH, spec=spec(env={"A": "2"}))
    made = await first
    assert second.session.session_id != made.session.session_id
    assert second.session.predecessor_session_id == made.session.session_id


async def test_fail_if_live_does_not_join_a_start_in_flight(roost: World) -> None:
    """It fails at once and does not wait for the other start."""
    await roost.admin.set_fault("slow_before", action="create", delay_ms=HELD_MS)
    first = asyncio.create_task(roost.one.start())
    await roost.until_live("wren")
    failure = await failing(roost.two.start(mode=pb.START_MODE_FAIL_IF_LIVE))
    assert failure.reason == "LIVE_SESSION_EXISTS"
    assert not first.done()
    assert (await first).outcome == pb.START_OUTCOME_CREATED


async def test_a_joiner_is_held_to_its_own_min_continuity(roost: World) -> None:
    """The leader accepts files; the joiner requires memory and gets CONTINUITY_UNAVAILABLE."""
    session = (await roost.one.start()).session
    await roost.one.pause(session.session_id, depth=pb.PAUSE_DEPTH_STOPPED)
    await roost.admin.set_fault("slow_before", action="start", delay_ms=HELD_MS)
    leader = asyncio.create_task(roost.one.start())
    await roost.until_state(session.session_id, pb.Session.STATE_STARTING)
    failure = await failing(roost.two.start(min_continuity=pb.CONTINUITY_MEMORY))
    assert failure.reason == "CONTINUITY_UNAVAILABLE"
    assert (await leader).continuity == pb.CONTINUITY_FILESYSTEM


async def test_a_joiner_is_held_to_its_min_continuity_if_a_lost_container_is_recreated(
    always_probing: World,
) -> None:
    """The container that replaces a lost one has none of its state."""
    session = (await always_probing.one.start()).session
    await always_probing.destroy_behind_our_back(session)
    await always_probing.admin.set_fault("slow_before", action="create", delay_ms=HELD_MS)
    leader = asyncio.create_task(always_probing.one.start())
    await always_probing.until_state(session.session_id, pb.Session.STATE_STARTING)
    failure = await failing(always_probing.two.start(min_continuity=pb.CONTINUITY_FILESYSTEM))
    assert failure.reason == "CONTINUITY_UNAVAILABLE"
    answer = await leader
    assert (answer.outcome, answer.session.generation) == (pb.START_OUTCOME_CREATED, 2)


async def test_a_joiner_of_a_new_session_is_not_held_to_its_min_continuity(roost: World) -> None:
    """A key without a session has no state that could be lost."""
    await roost.admin.set_fault("slow_before", action="create", delay_ms=HELD_MS)
    leader = asyncio.create_task(roost.one.start())
    await roost.until_live("wren")
    joiner = await roost.two.start(min_continuity=pb.CONTINUITY_MEMORY)
    assert (joiner.joined, joiner.outcome) == (True, pb.START_OUTCOME_CREATED)
    await leader


async def test_a_joiner_of_a_start_that_is_ended_starts_by_itself(
    traced: World, tracer: Tracer
) -> None:
    """It did not ask for the end. The start that was ended gets SESSION_STATE_CONFLICT."""
    await traced.admin.set_fault("slow_before", action="create", delay_ms=3 * HELD_MS)
    leader = asyncio.create_task(failing(traced.one.start()))
    ended = await traced.until_live("wren")
    once = request_id()
    with tracer.tracing_next(Trace()) as trace:
        joiner = asyncio.create_task(traced.two.start(request_id=once))
        # It waits for a notice about the leader's session.
        await eventually(lambda: any("asyncio.locks:wait" in place for place in trace.places))
    await traced.one.end(ended.session_id, now=True)
    assert (await leader).reason == "SESSION_STATE_CONFLICT"
    answer = await joiner
    assert (answer.outcome, answer.joined) == (pb.START_OUTCOME_CREATED, False)
    assert answer.session.state == pb.Session.STATE_ACTIVE
    assert answer.session.session_id != ended.session_id
    again = await traced.one.start(request_id=once)
    assert again.decision_id == answer.decision_id


async def test_joiners_share_a_failure_and_the_next_start_continues_the_session(
    roost: World,
) -> None:
    """Joiners do not retry by themselves; the next start continues generation 1."""
    await roost.admin.set_fault("capacity", action="create", times=None)
    calls = [failing(roost.replicas[n % 2].start(request_id=request_id())) for n in range(10)]
    failures = await asyncio.gather(*calls)
    assert {failure.reason for failure in failures} == {"PROVIDER_CAPACITY"}
    assert all(failure.retry_seconds for failure in failures)
    assert await roost.committed("create") == 0
    await roost.admin.clear_faults()
    answer = await roost.two.start()
    assert (answer.outcome, answer.joined) == (pb.START_OUTCOME_CREATED, False)
    assert answer.session.generation == 1
    assert await roost.committed("create") == 1


async def test_a_cancelled_call_does_not_undo_its_start(roost: World) -> None:
    """Rule 13: the next caller joins the transition, which continues."""
    await roost.admin.set_fault("slow_before", action="create", delay_ms=HELD_MS)
    gone = asyncio.create_task(roost.one.start())
    await roost.until_live("wren")
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    answer = await roost.two.start()
    assert (answer.outcome, answer.joined) == (pb.START_OUTCOME_CREATED, True)
    assert await roost.committed("create") == 1


async def test_a_start_waits_for_the_stop_in_flight_and_resumes(roost: World) -> None:
    """The stop has released the machine's lease by then: no error, no retry by the caller."""
    session = (await roost.one.start()).session
    await roost.click_twice(session)
    for _ in range(3):
        await roost.admin.set_fault("slow_before", action="suspend", delay_ms=HELD_MS // 2)
        stopping = asyncio.create_task(roost.one.stop(session.session_id))
        await roost.until_state(session.session_id, pb.Session.STATE_PAUSING)
        answer = await roost.two.start()
        assert (answer.outcome, answer.continuity) == (
            pb.START_OUTCOME_RESUMED,
            pb.CONTINUITY_MEMORY,
        )
        assert (await stopping).session_id == session.session_id
    assert await roost.counter(session) == "2"


async def test_a_stop_waits_for_the_start_in_flight(roost: World) -> None:
    """A session has one transition at a time."""
    await roost.admin.set_fault("slow_before", action="create", delay_ms=300)
    starting = asyncio.create_task(roost.one.start())
    session = await roost.until_live("wren")
    stopped = await roost.two.stop(session.session_id)
    assert stopped.state == pb.Session.STATE_PAUSED
    assert (await starting).outcome == pb.START_OUTCOME_CREATED
