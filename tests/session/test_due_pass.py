"""The due pass: due actions are done by the database's time, and activity in between wins."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from google.protobuf.duration_pb2 import Duration

from roost.session.v1 import session_pb2 as pb
from roost.session.v1 import session_service_pb2 as rpc_pb
from session_service.domain.next_action import Action
from tests.container.harness import failing
from tests.session.harness import TIMEOUT, World, world

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import AsyncIterator

    from local.fly.emulator import Emulator

MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
IDLE = 10 * MINUTE


@pytest.fixture
async def brief(emulator: Emulator, database_url: str) -> AsyncIterator[World]:
    """A Roost whose sessions pause after ten minutes, and then deepen, expire, are purged and, two
    hours after their end, forgotten. No test lasts as long: `passes` alone makes them due.
    """
    async with world(
        emulator,
        database_url,
        idle_timeout=IDLE,
        idle_warning=MINUTE,
        deepen_after=HOUR,
        expire_after=HOUR,
        grace_period=HOUR,
        session_retention=2 * HOUR,
    ) as running:
        yield running


#: The times of a session by which its next action is decided.
TIMES = (
    *("create_time", "change_time", "last_active_time", "warn_time", "pause_time", "end_time"),
    *("purge_time", "start_time", "due_at"),
)


async def passes(roost: World, span: timedelta) -> None:
    """Date every session back by a span, as if so much time had passed."""
    moved = ", ".join(f"{column} = {column} - %(span)s" for column in TIMES)
    async with roost.one.running.database.connection() as connection:
        await connection.execute(f"UPDATE sessions SET {moved}".encode(), {"span": span})


async def check_done(roost: World, action: Action, span: timedelta) -> None:
    """Assert that due passes do the action once the span has passed, and nothing before it."""
    assert not await _due_pass(roost)
    await passes(roost, span - MINUTE / 2)
    assert not await _due_pass(roost), f"{action} came too early"
    await passes(roost, MINUTE / 2)
    assert await _due_pass(roost) == {action: 1}


async def _due_pass(roost: World) -> Counter[Action]:
    return (await roost.one.running.background.due_pass.settle()).actions


async def put_hold(roost: World, session: pb.Session, span: timedelta, name: str = "build") -> None:
    """PutHold for this time."""
    ttl = Duration()
    ttl.FromTimedelta(span)
    request = rpc_pb.PutHoldRequest(session_id=session.session_id, name=name, ttl=ttl)
    await roost.one.stub.PutHold(request, timeout=TIMEOUT)


async def explain_idle(roost: World, session: pb.Session) -> rpc_pb.ExplainIdleResponse:
    """ExplainIdle."""
    request = rpc_pb.ExplainIdleRequest(session_id=session.session_id)
    return await roost.one.stub.ExplainIdle(request, timeout=TIMEOUT)


async def test_a_session_is_paused_deepened_expired_and_purged_each_after_its_own_time(
    brief: World,
) -> None:
    """WARN, suspend, stop, end, purge, then its rows are deleted; its decisions stay."""
    session = (await brief.one.start()).session
    await brief.click_twice(session)
    await check_done(brief, Action.WARN, IDLE - MINUTE)
    assert (await brief.one.get(session.session_id)).state == pb.Session.STATE_ACTIVE
    await check_done(brief, Action.PAUSE, MINUTE)
    idle = await brief.one.get(session.session_id)
    assert idle.state == pb.Session.STATE_PAUSED
    assert idle.pause_depth == pb.PAUSE_DEPTH_SUSPENDED
    assert idle.next_action.action == pb.NextAction.ACTION_DEEPEN
    await check_done(brief, Action.DEEPEN, HOUR)
    deep = await brief.one.get(session.session_id)
    assert deep.pause_depth == pb.PAUSE_DEPTH_STOPPED
    assert deep.next_action.action == pb.NextAction.ACTION_END
    await check_done(brief, Action.EXPIRE, HOUR)
    over = await brief.one.get(session.session_id)
    assert (over.state, over.end_reason) == (pb.Session.STATE_ENDED, pb.END_REASON_EXPIRED)
    await check_done(brief, Action.PURGE, HOUR)
    assert await brief.committed("destroy", session.session_id) == 1
    await check_done(brief, Action.FORGET, HOUR)
    assert (await failing(brief.one.get(session.session_id))).reason == "SESSION_NOT_FOUND"
    assert await brief.one.decisions(session.session_id)


async def test_an_idle_pause_keeps_memory(brief: World) -> None:
    """It suspends the machine, and the next start resumes it."""
    session = (await brief.one.start()).session
    await brief.click_twice(session)
    await check_done(brief, Action.WARN, IDLE - MINUTE)
    await check_done(brief, Action.PAUSE, MINUTE)
    again = await brief.two.start()
    assert again.outcome == pb.START_OUTCOME_RESUMED
    assert again.continuity == pb.CONTINUITY_MEMORY
    assert await brief.counter(again.session) == "2"


async def test_a_hold_keeps_a_session_active_until_it_is_released(brief: World) -> None:
    """It stays ACTIVE long past its idle time; once released, it is warned and paused."""
    session = (await brief.one.start()).session
    await put_hold(brief, session, 24 * HOUR)
    explanation = await explain_idle(brief, session)
    assert [hold.name for hold in explanation.holds] == ["build"]
    assert any("build" in reason for reason in explanation.reasons)
    await passes(brief, 2 * IDLE)
    assert not await _due_pass(brief)
    assert (await brief.one.get(session.session_id)).state == pb.Session.STATE_ACTIVE
    request = rpc_pb.ReleaseHoldRequest(session_id=session.session_id, name="build")
    await brief.one.stub.ReleaseHold(request, timeout=TIMEOUT)
    assert await _due_pass(brief) == {Action.WARN: 1}
    await check_done(brief, Action.PAUSE, MINUTE)
