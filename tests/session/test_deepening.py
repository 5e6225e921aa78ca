"""A rest that is deepened down to saved and gone: nothing is lost by it, and who comes wins."""

from __future__ import annotations

from datetime import timedelta
from time import monotonic
from typing import TYPE_CHECKING

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from roost.session.v1 import policy_service_pb2 as policy_pb
from roost.session.v1 import session_pb2 as pb
from roost.session.v1.policy_service_pb2_grpc import PolicyServiceStub
from session_service.domain import keeping
from session_service.domain.keeping import Action, Habits
from session_service.lifecycle import own_steps
from session_service.storage import commits
from session_service.storage import sessions as rows
from tests.eventually import eventually
from tests.session.ageing import IDLE, due, id_of, kept, quiet, sql, touch
from tests.session.harness import World, world
from tests.session.saving import Checkpoint, client, counting, flip, hooked, large

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from local.fly.emulator import Emulator
    from roost.container.v1 import container_service_pb2 as container_pb

ACTIVE = pb.Session.STATE_ACTIVE
PAUSED = pb.Session.STATE_PAUSED
STOPPED = timedelta(hours=1)
GONE = timedelta(hours=2)


@pytest.fixture
async def roost(emulator: Emulator, database_url: str) -> AsyncIterator[World]:
    """Sessions are stopped after an hour of rest, and saved and gone after two more."""
    async with world(
        emulator, database_url, deepen_after=STOPPED, checkpoint_after=GONE
    ) as running:
        yield running


async def rested(roost: World, session: pb.Session, span: timedelta) -> None:
    """Let the session have rested for so long; the keeper looks at it in its next pass."""
    await sql(
        roost.one,
        "UPDATE sessions SET pause_time = now() - make_interval(secs => %s), due_at = now()"
        " WHERE session_id = %s",
        span.total_seconds(),
        session.session_id,
    )


async def at_rest(roost: World, spec: container_pb.ContainerSpec | None = None) -> pb.Session:
    """A session that rests suspended; without a spec it is a counter that has 2 in memory."""
    if spec is None:
        session = await counting(roost, 2)
    else:
        session = (await roost.one.start(spec=spec)).session
    return await roost.one.pause(session.session_id)


async def wakes(roost: World) -> int:
    """How often the provider brought a machine up that was there."""
    return await roost.committed("start") + await roost.committed("resume")


async def deepened(roost: World, session: pb.Session, span: timedelta = STOPPED) -> pb.Session:
    """The session once the keeper has put it deeper."""
    await rested(roost, session, span)
    assert (await kept(roost.one))[Action.DEEPEN] == 1
    return await roost.one.get(session.session_id)


def kinds(session: pb.Session) -> list[int]:
    """The types of its conditions."""
    return [each.type for each in session.conditions]


async def reasons(roost: World) -> list[tuple[int, int]]:
    """Why the key's checkpoints were taken, newest first, and how they stand."""
    return [(each.reason, each.state) for each in await client(roost.one).of()]


IDLE_READY = (Checkpoint.REASON_IDLE, Checkpoint.STATE_READY)


# --- down to the last ----------------------------------------------------------------------------


async def test_memory_is_saved_before_the_stop_and_the_container_goes_unwoken(
    roost: World,
) -> None:
    """Stopped with its count in a checkpoint; gone without being woken for it; back with it."""
    session = await at_rest(roost)
    stopped = await deepened(roost, session)
    assert (stopped.state, stopped.pause_depth) == (PAUSED, pb.PAUSE_DEPTH_STOPPED)
    assert not stopped.conditions
    assert stopped.next_action.action == pb.NextAction.ACTION_DEEPEN
    assert await reasons(roost) == [IDLE_READY]
    assert await roost.provider_state(session) == "stopped"
    before = await wakes(roost)
    gone = await deepened(roost, stopped, GONE)
    assert (gone.state, gone.pause_depth) == (PAUSED, pb.PAUSE_DEPTH_CHECKPOINT)
    assert not gone.conditions
    assert gone.expected_continuity == pb.CONTINUITY_CHECKPOINT
    assert gone.next_action.action == pb.NextAction.ACTION_END
    assert await wakes(roost) == before
    assert await roost.committed("destroy", session.session_id) == 1
    assert await reasons(roost) == [IDLE_READY]
    answer = await roost.two.start()
    assert answer.outcome == pb.START_OUTCOME_RESTORED
    assert (answer.continuity, answer.continuity_verified) == (pb.CONTINUITY_CHECKPOINT, True)
    assert await roost.counter(answer.session) == "2"


async def test_what_is_saved_before_it_would_be_stopped_goes_at_once(
    emulator: Emulator, database_url: str
) -> None:
    """Woken with its memory, saved, destroyed."""
    brief = {"deepen_after": GONE, "checkpoint_after": STOPPED}
    async with world(emulator, database_url, 1, **brief) as roost:
        gone = await deepened(roost, await at_rest(roost))
        assert gone.pause_depth == pb.PAUSE_DEPTH_CHECKPOINT
        assert not gone.conditions
        assert await roost.counter((await roost.one.start()).session) == "2"


async def test_what_a_stop_saved_is_stopped_without_being_woken(
    emulator: Emulator, database_url: str
) -> None:
    """A pause of idleness that saved has all of it, until somebody comes."""
    spans = {"deepen_after": STOPPED, "checkpoint_after": GONE, "idle_timeout": IDLE}
    async with world(emulator, database_url, 1, **spans) as roost:
        request = policy_pb.UpdateProjectPolicyRequest(
            project_id="nest",
            policy=pb.Policy(checkpoint_on_stop=True),
            update_mask=FieldMask(paths=["checkpoint_on_stop"]),
        )
        await PolicyServiceStub(roost.one.channel).UpdateProjectPolicy(request, timeout=9)
        session = (await roost.one.start(spec=hooked())).session
        await roost.click_twice(session)
        await quiet(roost, session)
        assert (await kept(roost.one))[Action.PAUSE] == 1
        assert await reasons(roost) == [IDLE_READY]
        before = await wakes(roost)
        stopped = await deepened(roost, session)
        assert stopped.pause_depth == pb.PAUSE_DEPTH_STOPPED
        assert await wakes(roost) == before
        await roost.one.start()
        await roost.one.pause(session.session_id)
        newer = (Checkpoint.REASON_STOP, Checkpoint.STATE_READY)
        assert await reasons(roost) == [newer, IDLE_READY]
        before = await wakes(roost)
        await deepened(roost, session)
        assert await reasons(roost) == [newer, IDLE_READY]
        assert await wakes(roost) == before


async def test_what_ran_since_it_was_saved_is_saved_once_more(roost: World) -> None:
    """Somebody was there by the preview, and it was put to rest again before anybody looked."""
    stopped = await deepened(roost, await at_rest(roost))
    await roost._fly("POST", stopped, "/start", None)
    await roost._fly("GET", stopped, "/wait?state=started&timeout=5", None)
    assert await roost.counter(stopped, "/click") == "1"
    await roost.suspend_behind_our_back(stopped)
    gone = await deepened(roost, stopped, GONE)
    assert gone.pause_depth == pb.PAUSE_DEPTH_CHECKPOINT
    assert await reasons(roost) == [IDLE_READY, IDLE_READY]
    assert kinds(gone) == [pb.CONDITION_TYPE_MEMORY_LOST], "what the stop lost before is not hidden"
    assert await roost.counter((await roost.one.start()).session) == "1"


async def test_what_was_saved_and_is_damaged_is_saved_once_more(
    roost: World, database_url: str
) -> None:
    """It is read before the container goes; the files that are there are what is left."""
    stopped = await deepened(roost, await at_rest(roost))
    (head,) = await client(roost.one).of()
    flip(database_url, head.checkpoint_id)
    gone = await deepened(roost, stopped, GONE)
    assert gone.pause_depth == pb.PAUSE_DEPTH_CHECKPOINT
    failed = (Checkpoint.REASON_IDLE, Checkpoint.STATE_FAILED)
    assert await reasons(roost) == [IDLE_READY, failed]
    assert kinds(gone) == [pb.CONDITION_TYPE_MEMORY_LOST]


async def test_memory_that_is_lost_by_then_is_told(roost: World) -> None:
    """The provider dropped it: what is saved is what is left, and it says so all the way down."""
    session = await at_rest(roost)
    await roost.admin.set_fault("snapshot_dropped", machine=session.container.container_id)
    stopped = await deepened(roost, session)
    assert stopped.pause_depth == pb.PAUSE_DEPTH_STOPPED
    assert kinds(stopped) == [pb.CONDITION_TYPE_MEMORY_LOST]
    gone = await deepened(roost, stopped, GONE)
    assert gone.pause_depth == pb.PAUSE_DEPTH_CHECKPOINT
    assert kinds(gone) == [pb.CONDITION_TYPE_MEMORY_LOST]


# --- where it cannot be saved --------------------------------------------------------------------


async def test_what_cannot_be_saved_rests_as_before_and_is_tried_again_rarely(
    roost: World,
) -> None:
    """Its memory is kept, and it is told why; nothing is tried until a time that is shown."""
    session = await at_rest(roost, broken())
    await rested(roost, session, STOPPED)
    since = (await roost.one.get(session.session_id)).pause_time
    assert (await kept(roost.one))[Action.DEEPEN] == 1
    shown = await roost.one.get(session.session_id)
    assert (shown.state, shown.pause_depth) == (PAUSED, pb.PAUSE_DEPTH_SUSPENDED)
    assert kinds(shown) == [pb.CONDITION_TYPE_CHECKPOINT_FAILED]
    assert shown.pause_time == since, "it rests since when it did"
    assert await roost.provider_state(session) == "suspended"
    assert await roost.committed("stop") == 0
    ((left,),) = await sql(
        roost.one, "SELECT extract(epoch FROM due_at - now())::int FROM sessions"
    )
    assert 50 <= left <= 61
    assert (await kept(roost.one))[Action.DEEPEN] == 0
    await due(roost, session)
    assert (await kept(roost.one))[Action.DEEPEN] == 1
    ((left,),) = await sql(
        roost.one, "SELECT extract(epoch FROM due_at - now())::int FROM sessions"
    )
    assert 110 <= left <= 121, "it is tried ever more rarely"
    answer = await roost.one.start()
    assert answer.outcome == pb.START_OUTCOME_RESUMED
    assert (answer.continuity, answer.continuity_verified) == (pb.CONTINUITY_MEMORY, True)


async def test_what_was_stopped_and_cannot_be_saved_stays_stopped(roost: World) -> None:
    """Its files are kept."""
    session = await at_rest(roost, broken())
    stopped = await roost.one.pause(session.session_id, depth=pb.PAUSE_DEPTH_STOPPED)
    kept_as = await deepened(roost, stopped, GONE)
    assert (kept_as.state, kept_as.pause_depth) == (PAUSED, pb.PAUSE_DEPTH_STOPPED)
    assert pb.CONDITION_TYPE_CHECKPOINT_FAILED in kinds(kept_as)
    assert await roost.provider_state(session) == "stopped"
    assert await roost.committed("destroy") == 0


async def test_what_can_never_be_saved_ends_in_the_end(roost: World) -> None:
    session = await at_rest(roost, broken())
    await deepened(roost, session)
    await rested(roost, session, timedelta(days=31))
    assert (await kept(roost.one))[Action.EXPIRE] == 1
    over = await roost.one.get(session.session_id)
    assert (over.state, over.end_reason) == (pb.Session.STATE_ENDED, pb.END_REASON_EXPIRED)


async def test_an_application_that_hangs_is_not_left_running(
    emulator: Emulator, database_url: str
) -> None:
    """There is time left to put it to rest when saving has had its share."""
    spans = {"deepen_after": STOPPED, "checkpoint_after": GONE}
    budget = timedelta(seconds=4)
    async with world(emulator, database_url, 1, start_budget=budget, **spans) as roost:
        session = (await roost.one.start(spec=large(1000))).session
        await roost.counter(session, "/hang")
        await roost.one.pause(session.session_id)
        shown = await deepened(roost, session)
        assert shown.pause_depth == pb.PAUSE_DEPTH_SUSPENDED
        assert kinds(shown) == [pb.CONDITION_TYPE_CHECKPOINT_FAILED]
        assert await roost.provider_state(session) == "suspended"


def broken() -> container_pb.ContainerSpec:
    """An application that says it hands its state out, and does not."""
    spec = hooked()
    spec.state_hook.http_path = "/nowhere"
    return spec


# --- somebody comes ------------------------------------------------------------------------------


async def _saving(roost: World, *, activity: bool = False) -> pb.Session:
    """A session whose rest is being deepened: its state is on its way out."""
    wanted = large(2_000_000, SLOW_MS="60")
    if activity:
        wanted.activity.http_path = "/busy"
    session = await at_rest(roost, wanted)
    await rested(roost, session, STOPPED)

    async def writing() -> bool:
        await roost.one.running.background.keeper.shot()
        return bool(await client(roost.one).of())

    assert await eventually(writing)
    return session


async def test_a_start_in_the_middle_has_the_container_with_its_memory(roost: World) -> None:
    """It is neither stopped nor destroyed; the checkpoint that was taken stays."""
    session = await _saving(roost)
    answer = await roost.two.start()
    assert answer.session.session_id == session.session_id
    assert answer.outcome == pb.START_OUTCOME_REUSED
    assert (answer.continuity, answer.continuity_verified) == (pb.CONTINUITY_MEMORY, True)
    assert await roost.committed("stop") == 0
    assert await roost.committed("destroy") == 0
    assert await reasons(roost) == [IDLE_READY]


@pytest.mark.parametrize("gone", [GONE, timedelta(0)], ids=["saved", "not saved"])
async def test_who_comes_before_the_provider_is_asked_has_it_as_it_was(
    emulator: Emulator, database_url: str, gone: timedelta
) -> None:
    """Neither woken nor stopped: the start that waits for it resumes it."""
    spans = {"deepen_after": STOPPED, "checkpoint_after": gone}
    async with world(emulator, database_url, 1, **spans) as roost:
        session = await at_rest(roost)
        await rested(roost, session, STOPPED)
        database, work = roost.one.running.database, roost.one.running.work
        record = await rows.find(database, id_of(session))
        assert record is not None
        step = keeping.next_step(record, Habits())
        assert step.action is Action.DEEPEN
        deepening = await commits.begin(database, own_steps.intent(record, step, work.terms), None)
        assert deepening is not None
        await touch(roost.one, session)
        before = await wakes(roost)
        await work.begin(deepening, monotonic())
        shown = await roost.one.get(session.session_id)
        assert (shown.state, shown.pause_depth) == (PAUSED, pb.PAUSE_DEPTH_SUSPENDED)
        assert await wakes(roost) == before
        assert await roost.committed("stop") == 0


async def test_traffic_in_the_middle_has_the_container_too(roost: World) -> None:
    """By what the application says of itself."""
    session = await _saving(roost, activity=True)
    await roost.counter(session, "/come")
    await roost.until_state(session.session_id, ACTIVE)
    assert await roost.provider_state(session) == "started"
    assert await roost.committed("stop") == 0


@pytest.mark.parametrize("saved", [True, False], ids=["saved", "not saved"])
async def test_what_traffic_woke_before_is_not_put_deeper(
    emulator: Emulator, database_url: str, saved: bool
) -> None:
    """It is followed, as by the sweeper: the next start proves its memory."""
    gone = GONE if saved else timedelta(0)
    async with world(
        emulator, database_url, 1, deepen_after=STOPPED, checkpoint_after=gone
    ) as roost:
        session = await at_rest(roost)
        await roost._fly("POST", session, "/start", None)
        await roost._fly("GET", session, "/wait?state=started&timeout=5", None)
        shown = await deepened(roost, session)
        assert shown.state == ACTIVE
        assert await roost.provider_state(session) == "started"
        answer = await roost.one.start()
        assert (answer.outcome, answer.continuity) == (
            pb.START_OUTCOME_REUSED,
            pb.CONTINUITY_MEMORY,
        )
        assert await roost.counter(answer.session) == "2"


async def test_what_saves_nothing_is_stopped_as_ever(emulator: Emulator, database_url: str) -> None:
    """Where nobody asked for it: no checkpoint, no wake."""
    async with world(emulator, database_url, 1, deepen_after=STOPPED) as roost:
        session = await at_rest(roost)
        before = await wakes(roost)
        stopped = await deepened(roost, session)
        assert stopped.pause_depth == pb.PAUSE_DEPTH_STOPPED
        assert stopped.next_action.action == pb.NextAction.ACTION_END
        assert await wakes(roost) == before
        assert not await reasons(roost)
