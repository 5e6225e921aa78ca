"""Deeper pauses: suspended, stopped, then checkpoint only. Nothing is lost; a user's start wins."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from time import monotonic
from typing import TYPE_CHECKING

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from roost.session.v1 import policy_service_pb2 as policy_pb
from roost.session.v1 import session_pb2 as pb
from roost.session.v1.policy_service_pb2_grpc import PolicyServiceStub
from session_service.domain import next_action
from session_service.domain.next_action import Action, Timings
from session_service.reconcile import due as reconcile_due
from session_service.storage.session import reads
from session_service.storage.session.commit import Committed, commit
from tests.eventually import eventually
from tests.session.ageing import IDLE, id_of, make_due, make_idle, run_due_pass, sql, touch
from tests.session.harness import TIMEOUT, World, world
from tests.session.saving import Checkpoint, client, counting, flip, hooked, large

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from local.fly.emulator import Emulator
    from roost.container.v1 import container_service_pb2 as container_pb

pytestmark = pytest.mark.replicas(1)

ACTIVE = pb.Session.STATE_ACTIVE
PAUSED = pb.Session.STATE_PAUSED
STOPPED = timedelta(hours=1)
GONE = timedelta(hours=2)


@pytest.fixture
async def roost(emulator: Emulator, database_url: str, replicas: int) -> AsyncIterator[World]:
    """Paused sessions are stopped after an hour, and saved and destroyed after two more."""
    async with world(
        emulator, database_url, replicas, deepen_after=STOPPED, checkpoint_after=GONE
    ) as running:
        yield running


async def pause_began(roost: World, session: pb.Session, span: timedelta) -> None:
    """Date the session's pause back by `span` and make it due, for the next due pass."""
    await sql(
        roost.one,
        "UPDATE sessions SET pause_time = now() - make_interval(secs => %s), due_at = now()"
        " WHERE session_id = %s",
        span.total_seconds(),
        session.session_id,
    )


async def paused_session(
    roost: World, spec: container_pb.ContainerSpec | None = None
) -> pb.Session:
    """A suspended session; without a spec it is a counter that has 2 in memory."""
    if spec is None:
        session = await counting(roost, 2)
    else:
        session = (await roost.one.start(spec=spec)).session
    return await roost.one.pause(session.session_id)


async def provider_starts(roost: World) -> int:
    """The number of starts and resumes of existing machines that the provider has done."""
    return await roost.committed("start") + await roost.committed("resume")


async def deepened(roost: World, session: pb.Session, span: timedelta = STOPPED) -> pb.Session:
    """The session after a due pass that deepened its pause."""
    await pause_began(roost, session, span)
    assert (await run_due_pass(roost.one))[Action.DEEPEN] == 1
    return await roost.one.get(session.session_id)


def condition_types(session: pb.Session) -> list[int]:
    """The types of the session's conditions."""
    return [each.type for each in session.conditions]


async def reasons_and_states(roost: World) -> list[tuple[int, int]]:
    """Reason and state of each of the key's checkpoints, newest first."""
    return [(each.reason, each.state) for each in await client(roost.one).of()]


IDLE_READY = (Checkpoint.REASON_IDLE, Checkpoint.STATE_READY)


# --- from suspended to checkpoint only -----------------------------------------------------------


@pytest.mark.replicas(2)
async def test_memory_is_saved_before_the_stop_and_the_destroy_needs_no_start(
    roost: World,
) -> None:
    """The checkpoint of the stop holds the count; the destroy uses it; a start restores it."""
    session = await paused_session(roost)
    stopped = await deepened(roost, session)
    assert (stopped.state, stopped.pause_depth) == (PAUSED, pb.PAUSE_DEPTH_STOPPED)
    assert not stopped.conditions
    assert stopped.next_action.action == pb.NextAction.ACTION_DEEPEN
    assert await reasons_and_states(roost) == [IDLE_READY]
    assert await roost.provider_state(session) == "stopped"
    before = await provider_starts(roost)
    gone = await deepened(roost, stopped, GONE)
    assert (gone.state, gone.pause_depth) == (PAUSED, pb.PAUSE_DEPTH_CHECKPOINT)
    assert not gone.conditions
    assert gone.expected_continuity == pb.CONTINUITY_CHECKPOINT
    assert gone.next_action.action == pb.NextAction.ACTION_END
    assert await provider_starts(roost) == before
    assert await roost.committed("destroy", session.session_id) == 1
    assert await reasons_and_states(roost) == [IDLE_READY]
    answer = await roost.two.start()
    assert answer.outcome == pb.START_OUTCOME_RESTORED
    assert (answer.continuity, answer.continuity_verified) == (pb.CONTINUITY_CHECKPOINT, True)
    assert await roost.counter(answer.session) == "2"


async def test_a_session_due_to_be_saved_before_it_is_due_to_stop_is_destroyed_at_once(
    emulator: Emulator, database_url: str
) -> None:
    """It is resumed with its memory, saved and destroyed."""
    brief = {"deepen_after": GONE, "checkpoint_after": STOPPED}
    async with world(emulator, database_url, 1, **brief) as roost:
        gone = await deepened(roost, await paused_session(roost))
        assert gone.pause_depth == pb.PAUSE_DEPTH_CHECKPOINT
        assert not gone.conditions
        assert await roost.counter((await roost.one.start()).session) == "2"


async def test_a_session_that_an_idle_pause_saved_is_stopped_without_a_start(
    emulator: Emulator, database_url: str
) -> None:
    """The checkpoint of an idle pause is complete until the container runs again."""
    spans = {"deepen_after": STOPPED, "checkpoint_after": GONE, "idle_timeout": IDLE}
    async with world(emulator, database_url, 1, **spans) as roost:
        request = policy_pb.UpdateProjectPolicyRequest(
            project_id="nest",
            policy=pb.Policy(checkpoint_on_stop=True),
            update_mask=FieldMask(paths=["checkpoint_on_stop"]),
        )
        await PolicyServiceStub(roost.one.channel).UpdateProjectPolicy(request, timeout=TIMEOUT)
        session = (await roost.one.start(spec=hooked())).session
        await roost.click_twice(session)
        await make_idle(roost, session)
        assert (await run_due_pass(roost.one))[Action.PAUSE] == 1
        assert await reasons_and_states(roost) == [IDLE_READY]
        before = await provider_starts(roost)
        stopped = await deepened(roost, session)
        assert stopped.pause_depth == pb.PAUSE_DEPTH_STOPPED
        assert await provider_starts(roost) == before
        await roost.one.start()
        await roost.one.pause(session.session_id)
        newer = (Checkpoint.REASON_STOP, Checkpoint.STATE_READY)
        assert await reasons_and_states(roost) == [newer, IDLE_READY]
        before = await provider_starts(roost)
        await deepened(roost, session)
        assert await reasons_and_states(roost) == [newer, IDLE_READY]
        assert await provider_starts(roost) == before


async def test_a_session_that_ran_after_its_checkpoint_is_saved_again(roost: World) -> None:
    """A request to the preview woke it, and it was suspended again before the next probe."""
    stopped = await deepened(roost, await paused_session(roost))
    await roost._fly("POST", stopped, "/start", None)
    await roost._fly("GET", stopped, "/wait?state=started&timeout=30", None)
    assert await roost.counter(stopped, "/click") == "1"
    await roost.suspend_behind_our_back(stopped)
    gone = await deepened(roost, stopped, GONE)
    assert gone.pause_depth == pb.PAUSE_DEPTH_CHECKPOINT
    assert await reasons_and_states(roost) == [IDLE_READY, IDLE_READY]
    assert condition_types(gone) == [pb.CONDITION_TYPE_MEMORY_LOST], (
        "the earlier stop's loss is still shown"
    )
    assert await roost.counter((await roost.one.start()).session) == "1"


async def test_a_session_whose_checkpoint_is_damaged_is_saved_again(
    roost: World, database_url: str
) -> None:
    """The checkpoint is verified before the destroy, when only the container's files are left."""
    stopped = await deepened(roost, await paused_session(roost))
    (head,) = await client(roost.one).of()
    flip(database_url, head.checkpoint_id)
    gone = await deepened(roost, stopped, GONE)
    assert gone.pause_depth == pb.PAUSE_DEPTH_CHECKPOINT
    failed = (Checkpoint.REASON_IDLE, Checkpoint.STATE_FAILED)
    assert await reasons_and_states(roost) == [IDLE_READY, failed]
    assert condition_types(gone) == [pb.CONDITION_TYPE_MEMORY_LOST]


async def test_memory_that_the_provider_dropped_is_reported_as_lost(roost: World) -> None:
    """The files are saved, and MEMORY_LOST is shown at every later depth."""
    session = await paused_session(roost)
    await roost.admin.set_fault("snapshot_dropped", machine=session.container.container_id)
    stopped = await deepened(roost, session)
    assert stopped.pause_depth == pb.PAUSE_DEPTH_STOPPED
    assert condition_types(stopped) == [pb.CONDITION_TYPE_MEMORY_LOST]
    gone = await deepened(roost, stopped, GONE)
    assert gone.pause_depth == pb.PAUSE_DEPTH_CHECKPOINT
    assert condition_types(gone) == [pb.CONDITION_TYPE_MEMORY_LOST]


# --- a checkpoint that fails ---------------------------------------------------------------------


async def test_a_session_that_cannot_be_saved_stays_paused_and_is_retried_rarely(
    roost: World,
) -> None:
    """Its memory is kept and a condition shows why; the time of the next attempt is shown."""
    session = await paused_session(roost, with_broken_hook())
    await pause_began(roost, session, STOPPED)
    since = (await roost.one.get(session.session_id)).pause_time
    assert (await run_due_pass(roost.one))[Action.DEEPEN] == 1
    shown = await roost.one.get(session.session_id)
    assert (shown.state, shown.pause_depth) == (PAUSED, pb.PAUSE_DEPTH_SUSPENDED)
    assert condition_types(shown) == [pb.CONDITION_TYPE_CHECKPOINT_FAILED]
    assert shown.pause_time == since, "the failed attempt does not move the pause time"
    assert await roost.provider_state(session) == "suspended"
    assert await roost.committed("stop") == 0
    ((left,),) = await sql(roost.one, "SELECT due_at - change_time FROM sessions")
    assert left == timedelta(seconds=60)
    assert (await run_due_pass(roost.one))[Action.DEEPEN] == 0
    await make_due(roost, session)
    assert (await run_due_pass(roost.one))[Action.DEEPEN] == 1
    ((left,),) = await sql(roost.one, "SELECT due_at - change_time FROM sessions")
    assert left == timedelta(seconds=120), "the delay between attempts grows"
    answer = await roost.one.start()
    assert answer.outcome == pb.START_OUTCOME_RESUMED
    assert (answer.continuity, answer.continuity_verified) == (pb.CONTINUITY_MEMORY, True)


async def test_a_stopped_session_that_cannot_be_saved_stays_stopped(roost: World) -> None:
    """Its container and files are kept."""
    session = await paused_session(roost, with_broken_hook())
    stopped = await roost.one.pause(session.session_id, depth=pb.PAUSE_DEPTH_STOPPED)
    kept_as = await deepened(roost, stopped, GONE)
    assert (kept_as.state, kept_as.pause_depth) == (PAUSED, pb.PAUSE_DEPTH_STOPPED)
    assert pb.CONDITION_TYPE_CHECKPOINT_FAILED in condition_types(kept_as)
    assert await roost.provider_state(session) == "stopped"
    assert await roost.committed("destroy") == 0


async def test_a_session_that_can_never_be_saved_expires(roost: World) -> None:
    session = await paused_session(roost, with_broken_hook())
    await deepened(roost, session)
    await pause_began(roost, session, timedelta(days=31))
    assert (await run_due_pass(roost.one))[Action.EXPIRE] == 1
    over = await roost.one.get(session.session_id)
    assert (over.state, over.end_reason) == (pb.Session.STATE_ENDED, pb.END_REASON_EXPIRED)


async def test_an_application_that_hangs_is_not_left_running(
    emulator: Emulator, database_url: str
) -> None:
    """The budget leaves time for the suspend after a checkpoint that timed out."""
    spans = {"deepen_after": STOPPED, "checkpoint_after": GONE}
    budget = timedelta(seconds=9)
    async with world(emulator, database_url, 1, start_budget=budget, **spans) as roost:
        session = (await roost.one.start(spec=large(1000))).session
        await roost.counter(session, "/hang")
        await roost.one.pause(session.session_id)
        shown = await deepened(roost, session)
        assert shown.pause_depth == pb.PAUSE_DEPTH_SUSPENDED
        assert condition_types(shown) == [pb.CONDITION_TYPE_CHECKPOINT_FAILED]
        assert await roost.provider_state(session) == "suspended"


def with_broken_hook() -> container_pb.ContainerSpec:
    """A spec whose state hook does not work."""
    spec = hooked()
    spec.state_hook.http_path = "/nowhere"
    return spec


# --- activity in the middle ----------------------------------------------------------------------


async def _saving(roost: World, *, activity: bool = False) -> pb.Session:
    """A session whose pause is being deepened: its checkpoint is written until a `GET /go`."""
    wanted = large(2_000_000, HELD="1")
    if activity:
        wanted.activity.http_path = "/busy"
    session = await paused_session(roost, wanted)
    await pause_began(roost, session, STOPPED)

    async def writing() -> bool:
        await roost.one.running.background.due_pass.shot()
        return bool(await client(roost.one).of())

    assert await eventually(writing)
    return session


@pytest.mark.replicas(2)
async def test_a_start_during_the_checkpoint_gets_the_container_with_its_memory(
    roost: World,
) -> None:
    """The container is neither stopped nor destroyed; the checkpoint is kept."""
    session = await _saving(roost)
    starting = asyncio.create_task(roost.two.start())

    async def comes() -> bool:
        """Whether the start has been noted as the user's activity."""
        found = await sql(roost.one, "SELECT last_active_time > pause_time FROM sessions")
        return found == [(True,)]

    assert await eventually(comes)
    await roost.counter(session, "/go")
    answer = await starting
    assert answer.session.session_id == session.session_id
    assert answer.outcome == pb.START_OUTCOME_REUSED
    assert (answer.continuity, answer.continuity_verified) == (pb.CONTINUITY_MEMORY, True)
    assert await roost.committed("stop") == 0
    assert await roost.committed("destroy") == 0
    assert await reasons_and_states(roost) == [IDLE_READY]


@pytest.mark.parametrize("gone", [GONE, timedelta(0)], ids=["saved", "not saved"])
async def test_a_start_before_the_first_provider_call_finds_the_session_unchanged(
    emulator: Emulator, database_url: str, gone: timedelta
) -> None:
    """The deepening neither starts nor stops it: the waiting start resumes it."""
    spans = {"deepen_after": STOPPED, "checkpoint_after": gone}
    async with world(emulator, database_url, 1, **spans) as roost:
        session = await paused_session(roost)
        await pause_began(roost, session, STOPPED)
        database, work = roost.one.running.database, roost.one.running.work
        record = await reads.find(database, id_of(session))
        assert record is not None
        step = next_action.next_step(record, Timings())
        assert step.action is Action.DEEPEN
        done = await commit(database, reconcile_due.bring_down(record, step, work.terms))
        assert isinstance(done, Committed)
        await touch(roost.one, session)
        before = await provider_starts(roost)
        await work.begin(done.session(record.session.session_id), monotonic())
        shown = await roost.one.get(session.session_id)
        assert (shown.state, shown.pause_depth) == (PAUSED, pb.PAUSE_DEPTH_SUSPENDED)
        assert await provider_starts(roost) == before
        assert await roost.committed("stop") == 0


async def test_traffic_during_the_checkpoint_keeps_the_container(roost: World) -> None:
    """The application's activity hook reports the traffic."""
    session = await _saving(roost, activity=True)
    await roost.counter(session, "/come")
    await roost.counter(session, "/go")
    await roost.until_state(session.session_id, ACTIVE)
    assert await roost.provider_state(session) == "started"
    assert await roost.committed("stop") == 0


@pytest.mark.parametrize("saved", [True, False], ids=["saved", "not saved"])
async def test_a_session_that_traffic_woke_is_not_deepened(
    emulator: Emulator, database_url: str, saved: bool
) -> None:
    """Its row follows the provider, as in an inventory pass; the next start proves its memory."""
    gone = GONE if saved else timedelta(0)
    async with world(
        emulator, database_url, 1, deepen_after=STOPPED, checkpoint_after=gone
    ) as roost:
        session = await paused_session(roost)
        await roost._fly("POST", session, "/start", None)
        await roost._fly("GET", session, "/wait?state=started&timeout=30", None)
        shown = await deepened(roost, session)
        assert shown.state == ACTIVE
        assert await roost.provider_state(session) == "started"
        answer = await roost.one.start()
        assert (answer.outcome, answer.continuity) == (
            pb.START_OUTCOME_REUSED,
            pb.CONTINUITY_MEMORY,
        )
        assert await roost.counter(answer.session) == "2"


async def test_without_a_checkpoint_policy_a_session_is_stopped_unsaved(
    emulator: Emulator, database_url: str
) -> None:
    """No checkpoint is taken and the container is not started."""
    async with world(emulator, database_url, 1, deepen_after=STOPPED) as roost:
        session = await paused_session(roost)
        before = await provider_starts(roost)
        stopped = await deepened(roost, session)
        assert stopped.pause_depth == pb.PAUSE_DEPTH_STOPPED
        assert stopped.next_action.action == pb.NextAction.ACTION_END
        assert await provider_starts(roost) == before
        assert not await reasons_and_states(roost)
