"""Containers that Roost woke to save them, of sessions that a caller wants meanwhile.

No row says that such a container is paused while it runs, it is in routing, and an answer tells a
loss of memory once.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from roost.session.v1 import session_pb2 as pb
from session_service.storage.session import reads
from tests.chaos import wakes
from tests.chaos.provider_log import ProviderLog
from tests.container.harness import failing
from tests.eventually import eventually
from tests.session.ageing import id_of, run_due_pass, touch
from tests.session.harness import World, world
from tests.session.saving import counting
from tests.session.test_deepening import (
    GONE,
    IDLE_READY,
    STOPPED,
    deepened,
    pause_began,
    paused_session,
    reasons_and_states,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from local.fly.emulator import Emulator

ACTIVE = pb.Session.STATE_ACTIVE


@pytest.fixture
async def roost(emulator: Emulator, database_url: str) -> AsyncIterator[World]:
    """Paused sessions are stopped after an hour, and saved and destroyed after two more."""
    async with world(
        emulator, database_url, deepen_after=STOPPED, checkpoint_after=GONE
    ) as running:
        yield running


async def undeleted_session(roost: World) -> pb.Session:
    """A paused session whose container is out of routing."""
    session = await counting(roost, 2)
    await roost.one.end(session.session_id)
    return await roost.one.undelete(session.session_id)


async def used_while_it_is_woken(roost: World, session: pb.Session) -> pb.Session:
    """The session after a due pass that woke it to save it, and during which it was touched."""
    slow = await roost.admin.set_fault("slow_after", action="start", delay_ms=30_000)
    await pause_began(roost, session, GONE)
    before = await roost.committed("start")
    due_pass = asyncio.create_task(run_due_pass(roost.one))

    async def waking() -> bool:
        return await roost.committed("start") > before

    assert await eventually(waking)
    await touch(roost.two, session)
    await roost.admin.end_fault(slow)
    await due_pass
    return await roost.one.get(session.session_id)


async def test_a_start_of_a_stopped_session_that_is_being_saved_reports_the_lost_memory(
    emulator: Emulator, database_url: str
) -> None:
    """It was stopped by a caller: the boot to save it is another one. The loss is told once."""
    async with world(emulator, database_url, deepen_after=GONE, checkpoint_after=STOPPED) as roost:
        session = await counting(roost, 2)
        await roost.one.pause(session.session_id, depth=pb.PAUSE_DEPTH_STOPPED)
        shown = await used_while_it_is_woken(roost, session)
        assert shown.state == ACTIVE
        log = ProviderLog(await roost.admin.actions(), [])
        woken = log.wakes(await wakes.collect(database_url)).runs[session.session_id]
        assert [wake.cold for wake in woken] == [True], "the chaos tests see why it was started"
        strict = await failing(roost.two.start(min_continuity=pb.CONTINUITY_MEMORY))
        assert strict.reason == "CONTINUITY_UNAVAILABLE"
        answer = await roost.two.start()
        assert answer.outcome == pb.START_OUTCOME_REUSED
        assert (answer.continuity, answer.continuity_verified) == (pb.CONTINUITY_FILESYSTEM, True)
        assert await roost.counter(answer.session) == "0"
        again = await roost.one.start()
        assert (again.continuity, again.continuity_verified) == (pb.CONTINUITY_MEMORY, True)
        assert await roost.committed("destroy") == 0


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "lost"])
async def test_a_start_after_the_owner_died_finds_the_container_that_it_woke_as_running(
    roost: World, *, kept: bool
) -> None:
    """The owner died after the save and before the stop. The start takes the transition over."""
    session = await paused_session(roost)
    if not kept:
        await roost.admin.set_fault("snapshot_dropped")
    await roost.admin.set_fault("server_error", action="lease", times=None)
    await pause_began(roost, session, STOPPED)
    await run_due_pass(roost.one)
    await roost.admin.clear_faults()
    assert await reasons_and_states(roost) == [IDLE_READY]
    assert await roost.provider_state(session) == "started"
    record = await reads.find(roost.two.running.database, id_of(session))
    assert record is not None
    assert record.lapsed
    work = await roost.two.running.work.take_over(record, wanted=True)
    assert work is not None
    await work
    assert (await roost.two.get(session.session_id)).state == ACTIVE
    answer = await roost.two.start()
    left = pb.CONTINUITY_MEMORY if kept else pb.CONTINUITY_FILESYSTEM
    assert answer.outcome == pb.START_OUTCOME_REUSED
    assert (answer.continuity, answer.continuity_verified) == (left, True)
    assert await roost.counter(answer.session) == ("2" if kept else "0")
    assert await roost.committed("stop") == 0


async def test_an_undeleted_session_that_is_used_while_it_is_saved_is_back_in_routing(
    roost: World,
) -> None:
    """The provider refused that once, so that the state was not saved."""
    session = await undeleted_session(roost)
    await roost.admin.set_fault("server_error", action="uncordon", status=422)
    shown = await used_while_it_is_woken(roost, session)
    assert shown.state == ACTIVE
    assert await reasons_and_states(roost) == []
    assert await roost.counter((await roost.one.start()).session) == "2"


async def test_an_undeleted_session_that_cannot_be_stopped_again_is_back_in_routing(
    roost: World,
) -> None:
    """The provider refused to put it into routing once, and then to pause it."""
    session = await undeleted_session(roost)
    await roost.admin.set_fault("server_error", action="uncordon", status=422)
    for action in ("stop", "suspend"):
        await roost.admin.set_fault("server_error", action=action, status=422, times=None)
    shown = await deepened(roost, session)
    assert shown.state == ACTIVE
    assert await roost.counter((await roost.one.start()).session) == "2"
