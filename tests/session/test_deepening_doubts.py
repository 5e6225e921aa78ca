"""What looks saved and is not, as a rest is deepened: none of it goes with its container."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from time import monotonic
from typing import TYPE_CHECKING

import psycopg
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask

from roost.session.v1 import policy_service_pb2 as policy_pb
from roost.session.v1 import session_pb2 as pb
from roost.session.v1.policy_service_pb2_grpc import PolicyServiceStub
from session_service.domain import keeping
from session_service.domain.keeping import Action, Habits
from session_service.lifecycle import own_steps
from session_service.storage import commits
from session_service.storage import sessions as rows
from tests.container.harness import failing
from tests.eventually import eventually
from tests.session.ageing import id_of, kept, sql, touch
from tests.session.harness import World, world
from tests.session.saving import counting, hooked, large
from tests.session.test_deepening import (
    GONE,
    IDLE_READY,
    STOPPED,
    at_rest,
    deepened,
    reasons,
    rested,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from local.fly.emulator import Emulator

PAUSED = pb.Session.STATE_PAUSED


@pytest.fixture
async def roost(emulator: Emulator, database_url: str) -> AsyncIterator[World]:
    """Sessions are stopped after an hour of rest, and saved and gone after two more."""
    async with world(
        emulator, database_url, deepen_after=STOPPED, checkpoint_after=GONE
    ) as running:
        yield running


async def saves_at_stops(roost: World, *, on: bool) -> None:
    """Have stops save, or not."""
    request = policy_pb.UpdateProjectPolicyRequest(
        project_id="nest",
        policy=pb.Policy(checkpoint_on_stop=on),
        update_mask=FieldMask(paths=["checkpoint_on_stop"]),
    )
    await PolicyServiceStub(roost.one.channel).UpdateProjectPolicy(request, timeout=9)


async def test_what_a_stop_saved_that_then_failed_is_saved_once_more(roost: World) -> None:
    """It ran on, on the same boot, and nobody told Roost what was done in it."""
    await saves_at_stops(roost, on=True)
    session = await counting(roost, 2)
    await roost.admin.set_fault("suspend_fails")
    assert (await failing(roost.one.stop(session.session_id))).reason == (
        "SUSPEND_FAILED_STILL_RUNNING"
    )
    assert await roost.counter(session, "/click") == "3"
    await saves_at_stops(roost, on=False)
    await roost.one.stop(session.session_id)
    assert len(await reasons(roost)) == 1
    await deepened(roost, session)
    gone = await deepened(roost, session, GONE)
    assert gone.pause_depth == pb.PAUSE_DEPTH_CHECKPOINT
    assert await roost.counter((await roost.one.start()).session) == "3"


async def test_what_is_woken_while_its_checkpoint_is_read_is_saved_once_more(
    roost: World, database_url: str
) -> None:
    """Reading takes its time, and the preview does not wait for it."""
    stopped = await deepened(roost, await at_rest(roost, hooked(COUNTER_FILE="count")))
    assert await reasons(roost) == [IDLE_READY]
    await rested(roost, stopped, GONE)
    async with await psycopg.AsyncConnection.connect(database_url) as busy:
        await busy.execute("LOCK TABLE checkpoint_chunks IN ACCESS EXCLUSIVE MODE")
        deepening = asyncio.create_task(kept(roost.one))

        async def reading() -> bool:
            found = await sql(
                roost.two,
                "SELECT FROM pg_stat_activity WHERE datname = current_database()"
                " AND wait_event_type = 'Lock' AND query ILIKE '%%checkpoint_chunks%%'",
            )
            return bool(found)

        assert await eventually(reading)
        await roost._fly("POST", stopped, "/start", None)
        await roost._fly("GET", stopped, "/wait?state=started&timeout=5", None)
        assert await roost.counter(stopped, "/click") == "1"
        await busy.rollback()
    assert (await deepening)[Action.DEEPEN] == 1
    assert await roost.counter((await roost.one.start()).session) == "1"


async def test_what_was_undeleted_is_saved_too(roost: World) -> None:
    """It rests out of routing until then."""
    session = await counting(roost, 2)
    await roost.one.end(session.session_id)
    await roost.one.undelete(session.session_id)
    shown = await deepened(roost, session)
    assert not shown.conditions
    assert shown.pause_depth == pb.PAUSE_DEPTH_STOPPED
    assert await reasons(roost) == [IDLE_READY]
    assert await roost.counter((await roost.one.start()).session) == "0"


async def test_what_runs_out_of_routing_is_put_deeper_all_the_same(roost: World) -> None:
    """No traffic woke it: nobody could reach what is handed out."""
    session = await counting(roost, 2)
    await roost.one.end(session.session_id)
    await roost.one.undelete(session.session_id)
    await roost._fly("POST", session, "/start", None)
    await roost._fly("GET", session, "/wait?state=started&timeout=5", None)
    shown = await deepened(roost, session)
    assert (shown.state, shown.pause_depth) == (PAUSED, pb.PAUSE_DEPTH_STOPPED)
    gone = await deepened(roost, session, GONE)
    assert gone.pause_depth == pb.PAUSE_DEPTH_CHECKPOINT
    assert await roost.counter((await roost.one.start()).session) == "2"


async def test_what_somebody_came_to_and_left_goes_deeper_when_that_is_due_again(
    emulator: Emulator, database_url: str
) -> None:
    """Not in the 30 days after which what rests without a container ends."""
    spans = {"deepen_after": GONE, "checkpoint_after": STOPPED}
    async with world(emulator, database_url, 1, **spans) as roost:
        session = await at_rest(roost)
        await rested(roost, session, STOPPED)
        database, work = roost.one.running.database, roost.one.running.work
        record = await rows.find(database, id_of(session))
        assert record is not None
        step = keeping.next_step(record, Habits())
        deepening = await commits.begin(database, own_steps.intent(record, step, work.terms), None)
        assert deepening is not None
        assert deepening.pause_depth == "CHECKPOINT"
        await touch(roost.one, session)
        await work.begin(deepening, monotonic())
        shown = await roost.one.get(session.session_id)
        assert (shown.state, shown.pause_depth) == (PAUSED, pb.PAUSE_DEPTH_SUSPENDED)
        ((left,),) = await sql(
            roost.one, "SELECT extract(epoch FROM due_at - now())::int FROM sessions"
        )
        assert left <= STOPPED.total_seconds()


async def test_one_change_of_the_policy_does_not_lose_what_it_says_is_to_be_kept(
    emulator: Emulator, database_url: str
) -> None:
    """Spans hold for what rests at once; what no start may lose holds no later."""
    async with world(emulator, database_url, 1) as roost:
        session = await at_rest(roost)
        hour = Duration(seconds=3600)
        request = policy_pb.UpdateProjectPolicyRequest(
            project_id="nest",
            policy=pb.Policy(min_continuity=pb.CONTINUITY_FILESYSTEM, checkpoint_after=hour),
        )
        await PolicyServiceStub(roost.one.channel).UpdateProjectPolicy(request, timeout=9)
        await rested(roost, session, STOPPED)
        await kept(roost.one)
        assert await roost.committed("destroy") == 0
        assert (await roost.one.start()).continuity == pb.CONTINUITY_MEMORY


async def test_applications_that_hang_leave_the_keeper_room(
    emulator: Emulator, database_url: str
) -> None:
    """Half of its slots are for what is not to be saved."""
    spans = {"deepen_after": GONE, "checkpoint_after": STOPPED, "keeper_slots": 2}
    async with world(emulator, database_url, 1, **spans) as roost:
        for user in ("wren", "robin"):
            session = (await roost.one.start(user, spec=large(1000))).session
            await roost.counter(session, "/hang")
            await roost.one.pause(session.session_id)
            await rested(roost, session, STOPPED)
        other = (await roost.one.start("finch", spec=hooked())).session
        keeper = roost.one.running.background.keeper
        await keeper.shot()
        await roost.one.end(other.session_id)
        await sql(
            roost.one,
            "UPDATE sessions SET purge_time = now(), due_at = now() WHERE session_id = %s",
            other.session_id,
        )

        async def purged() -> bool:
            await keeper.shot()
            return await roost.committed("destroy", other.session_id) == 1

        assert await eventually(purged, timeout=6)
        await keeper.settle()


@pytest.mark.parametrize("gone", [GONE, timedelta(0)], ids=["saved", "not saved"])
async def test_who_comes_after_its_owner_died_has_the_container(
    emulator: Emulator, database_url: str, gone: timedelta
) -> None:
    """The start takes the transition over, and is itself the one who came."""
    spans = {"deepen_after": STOPPED, "checkpoint_after": gone}
    async with world(emulator, database_url, 1, **spans) as roost:
        session = await at_rest(roost)
        await rested(roost, session, STOPPED)
        database, work = roost.one.running.database, roost.one.running.work
        record = await rows.find(database, id_of(session))
        assert record is not None
        step = keeping.next_step(record, Habits())
        assert await commits.begin(database, own_steps.intent(record, step, work.terms), None)
        await sql(roost.one, "UPDATE sessions SET lease_until = now()")
        answer = await roost.one.start(min_continuity=pb.CONTINUITY_MEMORY)
        assert (answer.continuity, answer.continuity_verified) == (pb.CONTINUITY_MEMORY, True)
        assert await roost.counter(answer.session) == "2"
        assert await roost.committed("stop") == 0


async def test_who_comes_while_the_machines_lease_is_waited_for_has_the_container(
    emulator: Emulator, database_url: str
) -> None:
    """Another has it, an owner who died say: that can take a while."""
    spans = {"deepen_after": STOPPED, "checkpoint_after": timedelta(0)}
    async with world(emulator, database_url, 1, **spans) as roost:
        session = await at_rest(roost)
        await roost._fly("POST", session, "/lease", {"ttl": 3})
        await rested(roost, session, STOPPED)
        await roost.calls()
        deepening = asyncio.create_task(kept(roost.one))

        async def waiting() -> bool:
            return any("lease" in call for call in await roost.calls())

        assert await eventually(waiting)
        await touch(roost.one, session)
        await deepening
        shown = await roost.one.get(session.session_id)
        assert (shown.state, shown.pause_depth) == (PAUSED, pb.PAUSE_DEPTH_SUSPENDED)
        assert await roost.provider_state(session) == "suspended"
