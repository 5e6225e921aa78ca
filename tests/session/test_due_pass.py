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
from tests.eventually import eventually
from tests.session.harness import TIMEOUT, World, world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from local.fly.emulator import Emulator

IDLE = timedelta(seconds=0.6)


@pytest.fixture
async def brief(emulator: Emulator, database_url: str) -> AsyncIterator[World]:
    """A Roost whose sessions pause, deepen, expire and are purged within a second or two."""
    async with world(
        emulator,
        database_url,
        idle_timeout=IDLE,
        idle_warning=timedelta(seconds=0.2),
        deepen_after=timedelta(seconds=0.5),
        expire_after=timedelta(seconds=0.5),
        grace_period=timedelta(seconds=0.5),
        session_retention=timedelta(seconds=1),
        abandoned_after=timedelta(seconds=0.3),
    ) as running:
        yield running


async def until_done(roost: World, action: Action) -> None:
    """Run due passes until one has done the action."""

    async def done() -> bool:
        return (await roost.one.running.background.due_pass.settle()).actions[action] > 0

    assert await eventually(done), f"no due pass did {action}"


async def put_hold(roost: World, session: pb.Session, seconds: float, name: str = "build") -> None:
    """PutHold for so many seconds."""
    ttl = Duration()
    ttl.FromTimedelta(timedelta(seconds=seconds))
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
    await until_done(brief, Action.WARN)
    assert (await brief.one.get(session.session_id)).state == pb.Session.STATE_ACTIVE
    await until_done(brief, Action.PAUSE)
    idle = await brief.one.get(session.session_id)
    assert idle.state == pb.Session.STATE_PAUSED
    assert idle.pause_depth == pb.PAUSE_DEPTH_SUSPENDED
    assert idle.next_action.action == pb.NextAction.ACTION_DEEPEN
    await until_done(brief, Action.DEEPEN)
    deep = await brief.one.get(session.session_id)
    assert deep.pause_depth == pb.PAUSE_DEPTH_STOPPED
    assert deep.next_action.action == pb.NextAction.ACTION_END
    await until_done(brief, Action.EXPIRE)
    over = await brief.one.get(session.session_id)
    assert (over.state, over.end_reason) == (pb.Session.STATE_ENDED, pb.END_REASON_EXPIRED)
    await until_done(brief, Action.PURGE)
    assert await brief.committed("destroy", session.session_id) == 1
    await until_done(brief, Action.FORGET)
    assert (await failing(brief.one.get(session.session_id))).reason == "SESSION_NOT_FOUND"
    assert await brief.one.decisions(session.session_id)


async def test_an_idle_pause_keeps_memory(brief: World) -> None:
    """It suspends the machine, and the next start resumes it."""
    session = (await brief.one.start()).session
    await brief.click_twice(session)
    await until_done(brief, Action.PAUSE)
    again = await brief.two.start()
    assert again.outcome == pb.START_OUTCOME_RESUMED
    assert again.continuity == pb.CONTINUITY_MEMORY
    assert await brief.counter(again.session) == "2"


async def test_a_hold_keeps_a_session_active_until_it_is_released(brief: World) -> None:
    """It stays ACTIVE long past its idle time; once released, it is paused."""
    session = (await brief.one.start()).session
    await put_hold(brief, session, 60)
    explanation = await explain_idle(brief, session)
    assert [hold.name for hold in explanation.holds] == ["build"]
    assert any("build" in reason for reason in explanation.reasons)

    async def long_past_idle() -> bool:
        await brief.one.running.background.due_pass.settle()
        assert (await brief.one.get(session.session_id)).state == pb.Session.STATE_ACTIVE
        return await _past_idle_time(brief, session)

    assert await eventually(long_past_idle)
    request = rpc_pb.ReleaseHoldRequest(session_id=session.session_id, name="build")
    await brief.one.stub.ReleaseHold(request, timeout=TIMEOUT)
    await until_done(brief, Action.PAUSE)


async def _past_idle_time(roost: World, session: pb.Session) -> bool:
    """Whether the session would be idle by now without a hold, by the database's time."""
    async with roost.one.running.database.connection() as connection:
        cursor = await connection.execute(
            "SELECT now() > last_active_time + %s FROM sessions WHERE session_id = %s",
            [2 * IDLE, session.session_id],
        )
        row = await cursor.fetchone()
    return bool(row and row[0])
