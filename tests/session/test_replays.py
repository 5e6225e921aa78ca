"""Request ids: the same call twice is one call, at any replica."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc
import pytest

from roost.session.v1 import session_pb2 as pb
from roost.session.v1 import session_service_pb2 as rpc_pb
from tests.container.harness import failing
from tests.session.harness import key, request_id

if TYPE_CHECKING:
    from tests.session.harness import World


async def test_a_start_whose_answer_was_lost_is_answered_again(roost: World) -> None:
    """Same session, outcome, attempts and decision at another replica, whatever came since."""
    once = request_id()
    first = await roost.one.start(request_id=once)
    await roost.one.stop(first.session.session_id)
    again = await roost.two.start(request_id=once)
    assert again.session.session_id == first.session.session_id
    assert (again.outcome, again.decision_id) == (first.outcome, first.decision_id)
    assert (again.continuity, again.continuity_verified) == (
        first.continuity,
        first.continuity_verified,
    )
    assert list(again.attempts) == list(first.attempts)
    assert again.session.state == pb.Session.STATE_PAUSED, "the session is as it is now"


async def test_a_reuse_is_replayed_too(roost: World) -> None:
    """The hot path records its request id in its one statement."""
    session = (await roost.one.start()).session
    once = request_id()
    first = await roost.one.start(request_id=once)
    again = await roost.two.start(request_id=once)
    assert first.outcome == again.outcome == pb.START_OUTCOME_REUSED
    assert first.decision_id == again.decision_id
    assert again.session.start_count == first.session.start_count == session.start_count + 1


async def test_another_body_is_refused(roost: World) -> None:
    """Whatever differs; two spellings of the default slot do not."""
    once = request_id()
    await roost.one.start(request_id=once)
    failure = await failing(roost.two.start("robin", request_id=once))
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "REQUEST_ID_REUSED",
    )
    failure = await failing(roost.two.start(request_id=once, mode=pb.START_MODE_FRESH))
    assert failure.reason == "REQUEST_ID_REUSED"
    same = rpc_pb.StartSessionRequest(request_id=once, key=key(slot="default"))
    assert (await roost.two.stub.StartSession(same, timeout=9)).outcome == pb.START_OUTCOME_CREATED


async def test_a_repeat_of_a_start_in_flight_waits_for_it(roost: World) -> None:
    """Both are answered alike; one of them did the work."""
    once = request_id()
    await roost.admin.set_fault("slow_before", action="create", delay_ms=300)
    first, second = await asyncio.gather(
        roost.one.start(request_id=once), roost.two.start(request_id=once)
    )
    assert first.decision_id == second.decision_id
    assert not first.joined
    assert not second.joined
    assert len(await roost.one.decisions(first.session.session_id)) == 1


async def test_a_final_refusal_is_recorded_and_a_retryable_one_frees_the_id(roost: World) -> None:
    """FAIL_IF_LIVE refused stays refused; no room at the provider does not stay."""
    session = (await roost.one.start()).session
    once = request_id()
    for _ in range(2):
        fail = roost.one.start(request_id=once, mode=pb.START_MODE_FAIL_IF_LIVE)
        assert (await failing(fail)).reason == "LIVE_SESSION_EXISTS"
        await roost.one.end(session.session_id)
    again = request_id()
    await roost.admin.set_fault("capacity", action="create", times=1)
    assert (await failing(roost.one.start("robin", request_id=again))).retry_seconds
    answer = await roost.two.start("robin", request_id=again)
    assert answer.outcome == pb.START_OUTCOME_CREATED


@pytest.mark.parametrize("verb", ["stop", "end"])
async def test_other_calls_are_replayed_alike(roost: World, verb: str) -> None:
    """A second stop or end with the same id does nothing again, even after the session is back."""
    session = (await roost.one.start()).session
    once = request_id()
    if verb == "stop":
        await roost.one.stop(session.session_id, request_id=once)
    else:
        await roost.one.end(session.session_id, request_id=once)
        await roost.one.undelete(session.session_id)
    await roost.one.start()
    call = roost.two.stop if verb == "stop" else roost.two.end
    again = await call(session.session_id, request_id=once)
    assert again.state == pb.Session.STATE_ACTIVE
    suspends = await roost.committed("suspend")
    assert suspends == 1
