"""Pause, stop, end and undelete: they answer with the observed state."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
import pytest

from roost.container.v1 import container_service_pb2 as container_pb
from roost.session.v1 import session_pb2 as pb
from tests.container.harness import failing
from tests.session.harness import request_id, spec
from tests.session.sweeping import act, fly

if TYPE_CHECKING:
    from tests.session.harness import World

pytestmark = pytest.mark.replicas(1)

ACTIVE = pb.Session.STATE_ACTIVE
PAUSED = pb.Session.STATE_PAUSED
ENDED = pb.Session.STATE_ENDED


@pytest.mark.replicas(2)
async def test_a_suspend_that_fails_is_reported_and_the_session_runs_on(roost: World) -> None:
    """Rule 10: observed started is ACTIVE with a condition, and the counter goes on."""
    session = (await roost.one.start()).session
    await roost.click_twice(session)
    await roost.admin.set_fault("suspend_fails")
    once = request_id()
    for replica in roost.replicas:
        failure = await failing(replica.stop(session.session_id, request_id=once))
        assert (failure.code, failure.reason) == (
            grpc.StatusCode.FAILED_PRECONDITION,
            "SUSPEND_FAILED_STILL_RUNNING",
        )
    shown = await roost.one.get(session.session_id)
    assert shown.state == ACTIVE
    kinds = [condition.type for condition in shown.conditions]
    assert kinds == [pb.CONDITION_TYPE_SUSPEND_FAILED_STILL_RUNNING]
    assert await roost.counter(session) == "2"
    answer = await roost.one.start()
    assert (answer.outcome, answer.continuity) == (
        pb.START_OUTCOME_REUSED,
        pb.CONTINUITY_MEMORY,
    )
    assert (await roost.one.stop(session.session_id)).state == PAUSED
    assert not (await roost.one.get(session.session_id)).conditions


async def test_a_suspend_that_ends_stopped_is_reported_as_memory_lost(roost: World) -> None:
    """Rule 10: observed stopped is PAUSED (stopped); the next start brings back files."""
    session = (await roost.one.start(spec=spec(env={"COUNTER_FILE": "count"}))).session
    await roost.click_twice(session)
    await roost.admin.set_fault("suspend_stops")
    stopped = await roost.one.stop(session.session_id)
    assert (stopped.state, stopped.pause_depth) == (PAUSED, pb.PAUSE_DEPTH_STOPPED)
    assert [c.type for c in stopped.conditions] == [pb.CONDITION_TYPE_MEMORY_LOST]
    assert stopped.container.state == container_pb.CONTAINER_STATE_STOPPED
    again = await roost.one.start()
    assert (again.outcome, again.continuity) == (
        pb.START_OUTCOME_RESTARTED,
        pb.CONTINUITY_FILESYSTEM,
    )
    assert await roost.counter(session) == "2"


@pytest.mark.replicas(2)
async def test_a_pause_that_cannot_be_observed_is_not_claimed(roost: World) -> None:
    """An unknown state stays PAUSING; the next call reads the state and goes on from there."""
    session = (await roost.one.start()).session
    await roost.click_twice(session)
    await roost.admin.set_fault("unavailable", times=None)
    failure = await failing(roost.one.stop(session.session_id))
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.UNAVAILABLE,
        "PROVIDER_UNAVAILABLE",
    )
    assert (await roost.one.get(session.session_id)).state == pb.Session.STATE_PAUSING
    await roost.admin.clear_faults()
    answer = await roost.two.start()
    assert answer.session.state == ACTIVE
    assert await roost.counter(session) == "2"


@pytest.mark.replicas(2)
async def test_a_suspend_whose_answers_were_lost_is_found_out(roost: World) -> None:
    """The suspend succeeded; its answer and all reads after it failed: the memory is kept."""
    session = (await roost.one.start()).session
    await roost.click_twice(session)
    await roost.admin.set_fault("answer_lost", action="suspend", answer="close")
    await roost.admin.set_fault("server_error", action="wait", times=None)
    await roost.admin.set_fault("server_error", action="get", times=None)
    failure = await failing(roost.one.stop(session.session_id))
    assert failure.reason == "PROVIDER_UNAVAILABLE"
    await roost.admin.clear_faults()
    answer = await roost.two.start()
    assert (answer.outcome, answer.continuity) == (
        pb.START_OUTCOME_RESUMED,
        pb.CONTINUITY_MEMORY,
    )
    assert await roost.counter(session) == "2"


async def test_a_repeated_pause_makes_no_call_and_a_deeper_one_does(roost: World) -> None:
    """Idempotent; SUSPENDED can become STOPPED, never the reverse."""
    session = (await roost.one.start()).session
    await roost.one.stop(session.session_id)
    await roost.calls()
    assert (await roost.one.stop(session.session_id)).state == PAUSED
    assert await roost.calls() == []
    deeper = await roost.one.pause(session.session_id, depth=pb.PAUSE_DEPTH_STOPPED)
    assert deeper.pause_depth == pb.PAUSE_DEPTH_STOPPED
    assert await roost.committed("stop") == 1
    same = await roost.one.pause(session.session_id, depth=pb.PAUSE_DEPTH_SUSPENDED)
    assert same.pause_depth == pb.PAUSE_DEPTH_STOPPED


@pytest.mark.replicas(2)
async def test_an_ended_session_is_cordoned_and_can_be_undeleted(roost: World) -> None:
    """An end can be undone: undelete restores the same memory, and then routing."""
    session = (await roost.one.start()).session
    await roost.click_twice(session)
    ended = await roost.one.end(session.session_id)
    assert (ended.state, ended.end_reason) == (ENDED, pb.END_REASON_REQUESTED)
    assert ended.HasField("purge_time")
    assert await roost.committed("cordon") == 1
    assert await roost.committed("suspend") == 1
    again = await roost.two.end(session.session_id)
    assert again.state == ENDED
    back = await roost.one.undelete(session.session_id)
    assert (back.state, back.pause_depth) == (PAUSED, pb.PAUSE_DEPTH_SUSPENDED)
    assert not back.HasField("end_time")
    assert (await roost.one.undelete(session.session_id)).state == PAUSED
    start = await roost.one.start()
    assert (start.outcome, start.session.session_id) == (
        pb.START_OUTCOME_RESUMED,
        session.session_id,
    )
    assert await roost.committed("uncordon") == 1
    assert await roost.counter(session) == "2"


async def test_a_cordoned_machine_that_cannot_be_suspended_is_uncordoned(roost: World) -> None:
    """After an end and an undelete the machine was started past Roost, so it is still cordoned, and
    its suspend fails. The session is ACTIVE again, so it must be uncordoned.
    """
    session = (await roost.one.start()).session
    await roost.click_twice(session)
    await roost.one.end(session.session_id)
    await roost.one.undelete(session.session_id)
    await fly(roost, "POST", f"/{session.container.container_id}/start")
    await roost.admin.set_fault("suspend_fails")
    await act(roost)
    shown = await roost.until_state(session.session_id, ACTIVE)
    kinds = [condition.type for condition in shown.conditions]
    assert (shown.state, kinds) == (
        ACTIVE,
        [pb.CONDITION_TYPE_SUSPEND_FAILED_STILL_RUNNING],
    )
    assert await roost.committed("uncordon") == 1
    assert (await roost.one.start()).outcome == pb.START_OUTCOME_REUSED
    assert await roost.counter(session) == "2"


async def test_end_now_destroys_and_cannot_be_undeleted(roost: World) -> None:
    """Legal for a running session, a paused one, and one that has ended."""
    for prepare in ("running", "paused", "ended"):
        session = (await roost.one.start(prepare)).session
        if prepare == "paused":
            await roost.one.stop(session.session_id)
        if prepare == "ended":
            await roost.one.end(session.session_id)
        over = await roost.one.end(session.session_id, now=True)
        assert over.state == ENDED
        assert await roost.committed("destroy", session.session_id) == 1
        failure = await failing(roost.one.undelete(session.session_id))
        assert (failure.code, failure.reason) == (
            grpc.StatusCode.FAILED_PRECONDITION,
            "SESSION_STATE_CONFLICT",
        )
        assert (await roost.one.end(session.session_id, now=True)).state == ENDED


async def test_an_ended_session_cannot_be_paused_or_resumed(roost: World) -> None:
    """SESSION_STATE_CONFLICT; the message says which call to use."""
    session = (await roost.one.start()).session
    await roost.one.end(session.session_id)
    for call in (roost.one.stop(session.session_id), roost.one.resume(session.session_id)):
        failure = await failing(call)
        assert failure.reason == "SESSION_STATE_CONFLICT"


@pytest.mark.replicas(2)
async def test_resume_by_id_is_start_without_creating_sessions(roost: World) -> None:
    """A running one is only checked, a paused one is resumed, and the decision names the call."""
    session = (await roost.one.start()).session
    running = await roost.one.resume(session.session_id)
    assert running.outcome == pb.START_OUTCOME_REUSED
    await roost.one.stop(session.session_id)
    once = request_id()
    back = await roost.one.resume(session.session_id, request_id=once)
    assert (back.outcome, back.continuity) == (
        pb.START_OUTCOME_RESUMED,
        pb.CONTINUITY_MEMORY,
    )
    replay = await roost.two.resume(session.session_id, request_id=once)
    assert replay.decision_id == back.decision_id
    assert (await roost.one.decisions(session.session_id))[0].method == "ResumeSession"


async def test_an_old_etag_fails_the_call(roost: World) -> None:
    """ETAG_MISMATCH after any change but activity, with the current etag."""
    session = (await roost.one.start()).session
    reused = (await roost.one.start()).session
    assert reused.etag == session.etag, "activity is no change"
    await roost.one.stop(session.session_id)
    failure = await failing(roost.one.end(session.session_id, etag=session.etag))
    assert (failure.code, failure.reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
    current = await roost.one.get(session.session_id)
    assert failure.metadata["etag"] == current.etag
    assert (await roost.one.end(session.session_id, etag=current.etag)).state == ENDED


async def test_a_session_whose_container_vanished_can_be_ended(roost: World) -> None:
    """A session whose container is lost still ends."""
    session = (await roost.one.start()).session
    await roost.admin.set_fault("machine_vanished", machine=session.container.container_id)
    ended = await roost.one.end(session.session_id)
    assert ended.state == ENDED


async def test_touch_moves_activity_of_a_running_session_only(roost: World) -> None:
    """It changes nothing of a paused session and starts no machine."""
    from roost.session.v1 import session_service_pb2 as rpc_pb

    session = (await roost.one.start()).session
    request = rpc_pb.TouchSessionRequest(session_id=session.session_id, activity="typing")
    touched = (await roost.one.stub.TouchSession(request, timeout=30)).session
    assert touched.last_active_time.ToNanoseconds() > session.last_active_time.ToNanoseconds()
    await roost.one.stop(session.session_id)
    await roost.calls()
    again = (await roost.one.stub.TouchSession(request, timeout=30)).session
    assert again.last_active_time == touched.last_active_time
    assert again.state == PAUSED
    assert await roost.calls() == []
