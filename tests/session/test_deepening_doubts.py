"""Deeper pauses with a checkpoint that is not current: the container is not destroyed unsaved."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from time import monotonic
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask

from roost.session.v1 import policy_service_pb2 as policy_pb
from roost.session.v1 import session_pb2 as pb
from roost.session.v1.policy_service_pb2_grpc import PolicyServiceStub
from session_service.domain import next_action
from session_service.domain.next_action import Action, Timings
from session_service.reconcile import due
from session_service.storage.session import reads
from session_service.storage.session.commit import Committed, commit
from tests.container.harness import failing
from tests.eventually import eventually
from tests.session.ageing import id_of, run_due_pass, sql, touch
from tests.session.harness import TIMEOUT, World, world
from tests.session.saving import counting, hooked, large
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

pytestmark = pytest.mark.replicas(1)

PAUSED = pb.Session.STATE_PAUSED


@pytest.fixture
async def roost(emulator: Emulator, database_url: str, replicas: int) -> AsyncIterator[World]:
    """Paused sessions are stopped after an hour, and saved and destroyed after two more."""
    async with world(
        emulator, database_url, replicas, deepen_after=STOPPED, checkpoint_after=GONE
    ) as running:
        yield running


async def saves_at_stops(roost: World, *, on: bool) -> None:
    """Switch checkpoints at stops on or off in the project's policy."""
    request = policy_pb.UpdateProjectPolicyRequest(
        project_id="nest",
        policy=pb.Policy(checkpoint_on_stop=on),
        update_mask=FieldMask(paths=["checkpoint_on_stop"]),
    )
    await PolicyServiceStub(roost.one.channel).UpdateProjectPolicy(request, timeout=TIMEOUT)


async def test_a_session_whose_stop_failed_after_its_checkpoint_is_saved_again(
    roost: World,
) -> None:
    """It ran on under the same boot id, and its state changed without Roost knowing."""
    await saves_at_stops(roost, on=True)
    session = await counting(roost, 2)
    await roost.admin.set_fault("suspend_fails")
    assert (await failing(roost.one.stop(session.session_id))).reason == (
        "SUSPEND_FAILED_STILL_RUNNING"
    )
    assert await roost.counter(session, "/click") == "3"
    await saves_at_stops(roost, on=False)
    await roost.one.stop(session.session_id)
    assert len(await reasons_and_states(roost)) == 1
    await deepened(roost, session)
    gone = await deepened(roost, session, GONE)
    assert gone.pause_depth == pb.PAUSE_DEPTH_CHECKPOINT
    assert await roost.counter((await roost.one.start()).session) == "3"


@pytest.mark.replicas(2)
@pytest.mark.usefixtures("patient_database")
async def test_a_session_that_wakes_while_its_checkpoint_is_verified_is_saved_again(
    roost: World, database_url: str
) -> None:
    """Verifying takes a while, and a request to the preview can wake the container meanwhile."""
    stopped = await deepened(roost, await paused_session(roost, hooked(COUNTER_FILE="count")))
    assert await reasons_and_states(roost) == [IDLE_READY]
    await pause_began(roost, stopped, GONE)
    async with await psycopg.AsyncConnection.connect(database_url) as busy:
        await busy.execute("LOCK TABLE checkpoint_chunks IN ACCESS EXCLUSIVE MODE")
        deepening = asyncio.create_task(run_due_pass(roost.one))

        async def reading() -> bool:
            found = await sql(
                roost.two,
                "SELECT FROM pg_stat_activity WHERE datname = current_database()"
                " AND wait_event_type = 'Lock' AND query ILIKE '%%checkpoint_chunks%%'",
            )
            return bool(found)

        assert await eventually(reading)
        await roost._fly("POST", stopped, "/start", None)
        await roost._fly("GET", stopped, "/wait?state=started&timeout=30", None)
        assert await roost.counter(stopped, "/click") == "1"
        await busy.rollback()
    assert (await deepening)[Action.DEEPEN] == 1
    assert await roost.counter((await roost.one.start()).session) == "1"


async def test_an_undeleted_session_is_saved_too(roost: World) -> None:
    """Its container is cordoned until then."""
    session = await counting(roost, 2)
    await roost.one.end(session.session_id)
    await roost.one.undelete(session.session_id)
    shown = await deepened(roost, session)
    assert not shown.conditions
    assert shown.pause_depth == pb.PAUSE_DEPTH_STOPPED
    assert await reasons_and_states(roost) == [IDLE_READY]
    assert await roost.counter((await roost.one.start()).session) == "0"


async def test_a_container_that_was_woken_to_be_saved_and_cannot_be_stopped_is_not_shown_as_paused(
    roost: World,
) -> None:
    """The provider rejects the stop: the container runs, and so the session is ACTIVE."""
    session = await paused_session(roost)
    await roost.admin.set_fault("server_error", action="stop", status=422, times=None)
    shown = await deepened(roost, session)
    assert await reasons_and_states(roost) == [IDLE_READY]
    assert shown.state == pb.Session.STATE_ACTIVE
    assert await roost.counter(shown) == "2"


async def test_a_running_container_that_is_cordoned_is_deepened(roost: World) -> None:
    """No traffic woke it: no caller could reach the address that the start returns."""
    session = await counting(roost, 2)
    await roost.one.end(session.session_id)
    await roost.one.undelete(session.session_id)
    await roost._fly("POST", session, "/start", None)
    await roost._fly("GET", session, "/wait?state=started&timeout=30", None)
    shown = await deepened(roost, session)
    assert (shown.state, shown.pause_depth) == (PAUSED, pb.PAUSE_DEPTH_STOPPED)
    gone = await deepened(roost, session, GONE)
    assert gone.pause_depth == pb.PAUSE_DEPTH_CHECKPOINT
    assert await roost.counter((await roost.one.start()).session) == "2"


async def test_a_session_that_was_used_and_paused_again_is_deepened_when_due(
    emulator: Emulator, database_url: str
) -> None:
    """It is not delayed by the 30 days after which a session without a container expires."""
    spans = {"deepen_after": GONE, "checkpoint_after": STOPPED}
    async with world(emulator, database_url, 1, **spans) as roost:
        session = await paused_session(roost)
        await pause_began(roost, session, STOPPED)
        database, work = roost.one.running.database, roost.one.running.work
        record = await reads.find(database, id_of(session))
        assert record is not None
        step = next_action.next_step(record, Timings())
        done = await commit(database, due.bring_down(record, step, work.terms))
        assert isinstance(done, Committed)
        deepening = done.session(record.session.session_id)
        assert deepening.pause_depth == "CHECKPOINT"
        await touch(roost.one, session)
        await work.begin(deepening, monotonic())
        shown = await roost.one.get(session.session_id)
        assert (shown.state, shown.pause_depth) == (PAUSED, pb.PAUSE_DEPTH_SUSPENDED)
        ((left,),) = await sql(
            roost.one, "SELECT extract(epoch FROM due_at - now())::int FROM sessions"
        )
        assert left <= STOPPED.total_seconds()


async def test_a_policy_change_does_not_lose_memory_that_it_says_to_keep(
    emulator: Emulator, database_url: str
) -> None:
    """New time spans apply to paused sessions at once, and so must the new minimum continuity."""
    async with world(emulator, database_url, 1) as roost:
        session = await paused_session(roost)
        hour = Duration(seconds=3600)
        request = policy_pb.UpdateProjectPolicyRequest(
            project_id="nest",
            policy=pb.Policy(min_continuity=pb.CONTINUITY_FILESYSTEM, checkpoint_after=hour),
        )
        await PolicyServiceStub(roost.one.channel).UpdateProjectPolicy(request, timeout=TIMEOUT)
        await pause_began(roost, session, STOPPED)
        await run_due_pass(roost.one)
        assert await roost.committed("destroy") == 0
        assert (await roost.one.start()).continuity == pb.CONTINUITY_MEMORY


async def test_applications_that_hang_do_not_block_the_due_pass(
    emulator: Emulator, database_url: str
) -> None:
    """Half of its slots are reserved for work that takes no checkpoint."""
    spans = {"deepen_after": GONE, "checkpoint_after": STOPPED}
    # The applications hang for as long as that.
    hang: dict[str, Any] = {"start_budget": timedelta(seconds=15), "reconcile_slots": 2}
    async with world(emulator, database_url, 1, **spans, **hang) as roost:
        hanging = []
        for user in ("wren", "robin"):
            session = (await roost.one.start(user, spec=large(1000))).session
            hanging.append(session)
            await roost.counter(session, "/hang")
            await roost.one.pause(session.session_id)
            await pause_began(roost, session, STOPPED)
        other = (await roost.one.start("finch", spec=hooked())).session
        due_pass = roost.one.running.background.due_pass
        await due_pass.shot()
        await roost.one.end(other.session_id)
        await sql(
            roost.one,
            "UPDATE sessions SET purge_time = now(), due_at = now() WHERE session_id = %s",
            other.session_id,
        )

        async def purged() -> bool:
            await due_pass.shot()
            return await roost.committed("destroy", other.session_id) == 1

        assert await eventually(purged)
        states = {(await roost.one.get(each.session_id)).state for each in hanging}
        assert pb.Session.STATE_PAUSING in states, "it was purged while an application hung"
        await due_pass.settle()


@pytest.mark.parametrize("gone", [GONE, timedelta(0)], ids=["saved", "not saved"])
async def test_a_start_after_the_owner_died_gets_the_container(
    emulator: Emulator, database_url: str, gone: timedelta
) -> None:
    """The start takes the transition over, and counts as the activity that cancels it."""
    spans = {"deepen_after": STOPPED, "checkpoint_after": gone}
    async with world(emulator, database_url, 1, **spans) as roost:
        session = await paused_session(roost)
        await pause_began(roost, session, STOPPED)
        database, work = roost.one.running.database, roost.one.running.work
        record = await reads.find(database, id_of(session))
        assert record is not None
        step = next_action.next_step(record, Timings())
        done = await commit(database, due.bring_down(record, step, work.terms))
        assert isinstance(done, Committed)
        await sql(roost.one, "UPDATE sessions SET lease_until = now()")
        answer = await roost.one.start(min_continuity=pb.CONTINUITY_MEMORY)
        assert (answer.continuity, answer.continuity_verified) == (pb.CONTINUITY_MEMORY, True)
        assert await roost.counter(answer.session) == "2"
        assert await roost.committed("stop") == 0


async def test_a_start_while_the_machine_lease_is_awaited_gets_the_container(
    emulator: Emulator, database_url: str
) -> None:
    """Another owner, for example one that died, still has the lease; the wait can be long."""
    spans = {"deepen_after": STOPPED, "checkpoint_after": timedelta(0)}
    async with world(emulator, database_url, 1, **spans) as roost:
        session = await paused_session(roost)
        await roost._fly("POST", session, "/lease", {"ttl": 60})
        await pause_began(roost, session, STOPPED)
        await roost.calls()
        deepening = asyncio.create_task(run_due_pass(roost.one))

        async def waiting() -> bool:
            return any("lease" in call for call in await roost.calls())

        assert await eventually(waiting)
        await touch(roost.one, session)
        await roost.free_lease(session)
        await deepening
        shown = await roost.one.get(session.session_id)
        assert (shown.state, shown.pause_depth) == (PAUSED, pb.PAUSE_DEPTH_SUSPENDED)
        assert await roost.provider_state(session) == "suspended"
