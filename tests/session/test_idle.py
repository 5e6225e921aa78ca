"""Idle, and whoever comes in the middle of it: activity wins, and nothing is lost or done twice."""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import TYPE_CHECKING

import pytest

from roost.session.v1 import session_pb2 as pb
from session_service.domain import keeping
from session_service.domain.keeping import Action, Habits
from session_service.domain.session import Session
from session_service.lifecycle import own_steps
from session_service.storage import commits
from session_service.storage import due as queue
from session_service.storage import sessions as rows
from tests.container.harness import failing
from tests.eventually import eventually
from tests.session.ageing import (
    IDLE,
    WARNING,
    due,
    explained,
    hold,
    id_of,
    kept,
    quiet,
    release,
    sql,
    told,
    touch,
)
from tests.session.harness import World, world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from local.fly.emulator import Emulator
    from session_service.domain.session import Record

ACTIVE, PAUSED = pb.Session.STATE_ACTIVE, pb.Session.STATE_PAUSED


@pytest.fixture
async def roost(emulator: Emulator, database_url: str) -> AsyncIterator[World]:
    """Two replicas whose sessions have ten minutes, and a minute from the warning on."""
    async with world(emulator, database_url, idle_timeout=IDLE, idle_warning=WARNING) as running:
        yield running


async def types(roost: World, session: pb.Session) -> list[str]:
    """What happened to the session, in words."""
    return [event.type for event in await told(roost, session)]


# --- the warning ---------------------------------------------------------------------------------


async def test_a_warning_comes_first_and_tells_when(roost: World) -> None:
    session = (await roost.one.start()).session
    await quiet(roost, session, warned=False)
    assert await kept(roost.one) == {Action.WARN: 1}
    (warning,) = [e for e in await told(roost, session) if e.type == "IDLE_WARNING"]
    shown = (await explained(roost.one, session)).next_action
    assert shown.action == pb.NextAction.ACTION_PAUSE
    promised = datetime.fromisoformat(warning.details.split('"')[3])
    # The promise was made just before the row was written from which the pause follows.
    assert timedelta(0) <= shown.time.ToDatetime(UTC) - promised < timedelta(seconds=2)
    # The time that was told has not come, so that nothing is done about it.
    await due(roost, session)
    assert not await kept(roost.two)
    await sql(roost.one, "UPDATE sessions SET warn_time = warn_time - interval '61 s'")
    await due(roost, session)
    assert await kept(roost.two) == {Action.PAUSE: 1}
    assert (await types(roost, session))[-3:] == ["IDLE_WARNING", "PAUSING", "PAUSED"]


async def test_activity_after_a_warning_is_no_pause_and_a_new_warning_later(roost: World) -> None:
    session = (await roost.one.start()).session
    await quiet(roost, session, warned=False)
    await kept(roost.one)
    await touch(roost.two, session, "typing")
    # The minute is over, with somebody there.
    await sql(roost.one, "UPDATE sessions SET warn_time = warn_time - interval '2 minutes'")
    await due(roost, session)
    assert not await kept(roost.one)
    assert (await roost.one.get(session.session_id)).state == ACTIVE
    assert any("typing" in reason for reason in (await explained(roost.one, session)).reasons)
    # All quiet again: the old warning was of another pause.
    await sql(
        roost.one,
        "UPDATE sessions SET last_active_time = now() - interval '11 minutes',"
        " warn_time = now() - interval '12 minutes', due_at = now()",
    )
    assert await kept(roost.one) == {Action.WARN: 1}
    assert (await types(roost, session)).count("IDLE_WARNING") == 2


# --- coming in the middle ------------------------------------------------------------------------


async def test_whoever_comes_while_it_is_put_to_rest_never_finds_it_lost(roost: World) -> None:
    """A touch at any moment of an idle pause: it goes back, or rests with all it had."""
    session = (await roost.one.start()).session
    await roost.click_twice(session)
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    ends: set[int] = set()
    for _ in range(25):
        await quiet(roost, session)
        keeping_on = asyncio.create_task(kept(roost.one))
        await asyncio.sleep(dice.uniform(0, 0.06))
        await touch(roost.two, session)
        await keeping_on
        found = await roost.two.get(session.session_id)
        assert found.state in (ACTIVE, PAUSED)
        ends.add(found.state)
        expected = "started" if found.state == ACTIVE else "suspended"
        assert await roost.provider_state(session) == expected
        again = await roost.two.start()
        assert again.session.session_id == session.session_id
        assert again.continuity == pb.CONTINUITY_MEMORY
        assert await roost.counter(again.session) == "2"
    print(f"ended as {sorted(ends)}")


async def test_a_touch_before_the_provider_is_asked_lets_go_of_the_pause(roost: World) -> None:
    session = (await roost.one.start()).session
    await quiet(roost, session)
    pausing = await _begin_idle_pause(roost, session)
    assert pausing is not None
    await touch(roost.two, session)
    await roost.one.running.work.begin(pausing, monotonic())
    found = await roost.one.get(session.session_id)
    assert found.state == ACTIVE
    assert await roost.committed("suspend", session.session_id) == 0
    assert not await conditions_of(roost, session)


async def conditions_of(roost: World, session: pb.Session) -> list[pb.Condition]:
    """The session's conditions."""
    return list((await roost.one.get(session.session_id)).conditions)


async def test_a_start_in_the_middle_of_an_idle_pause_is_resumed_with_its_memory(
    roost: World,
) -> None:
    session = (await roost.one.start()).session
    await roost.click_twice(session)
    await quiet(roost, session)
    await roost.admin.set_fault("slow_after", action="suspend", delay_ms=400)
    keeping_on = asyncio.create_task(kept(roost.one))
    await roost.until_state(session.session_id, pb.Session.STATE_PAUSING)
    again = await roost.two.start()
    await keeping_on
    assert again.outcome == pb.START_OUTCOME_RESUMED
    assert again.continuity == pb.CONTINUITY_MEMORY
    assert again.continuity_verified
    assert await roost.counter(again.session) == "2"


async def _record(roost: World, session: pb.Session) -> Record:
    record = await rows.find(roost.one.running.database, id_of(session))
    assert record is not None
    return record


async def _begin_idle_pause(roost: World, session: pb.Session) -> Session | None:
    """Commit what the keeper would, and leave the work; None where it was not idle after all."""
    record = await _record(roost, session)
    step = keeping.next_step(record, Habits())
    assert step.action is Action.PAUSE
    assert step.due(record.now)
    change = own_steps.intent(record, step, roost.one.running.work.terms)
    return await commits.begin(roost.one.running.database, change, None)


async def _waiters(roost: World) -> int:
    """How many statements wait for a lock in this database."""
    (row,) = await sql(
        roost.two,
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'",
    )
    return int(row[0])


@pytest.mark.parametrize("first", ["hold", "pause"])
async def test_a_hold_in_the_very_moment_of_the_idle_commit(roost: World, first: str) -> None:
    """Both wait for the row, in this order: a hold that is there first keeps it awake; one that
    comes after the commit lets go of the pause, whose work has not asked the provider yet.
    """
    session = (await roost.one.start()).session
    await quiet(roost, session)

    async def holding() -> object:
        return await hold(roost.two, session.session_id)

    async def pausing() -> object:
        return await _begin_idle_pause(roost, session)

    order = (holding, pausing) if first == "hold" else (pausing, holding)
    tasks: list[asyncio.Task[object]] = []
    database = roost.one.running.database
    async with database.transaction() as connection:
        await connection.execute(
            "SELECT 1 FROM sessions WHERE session_id = %s FOR UPDATE", [session.session_id]
        )
        for number, call in enumerate(order, 1):
            tasks.append(asyncio.create_task(call()))

            async def waiting(number: int = number) -> bool:
                return await _waiters(roost) == number

            assert await eventually(waiting)
    done = await asyncio.gather(*tasks)
    begun = done[0] if first == "pause" else done[1]
    if first == "hold":
        assert begun is None
    else:
        assert begun is not None
        assert (await _record(roost, session)).session.state == "PAUSING"
        assert isinstance(begun, Session)
        await roost.one.running.work.begin(begun, monotonic())
    assert (await roost.one.get(session.session_id)).state == ACTIVE
    assert [each.name for each in (await explained(roost.one, session)).holds] == ["build"]
    assert await roost.committed("suspend", session.session_id) == 0
    await due(roost, session)
    assert Action.PAUSE not in await kept(roost.one)


# --- holds ---------------------------------------------------------------------------------------


async def test_a_session_has_32_holds_and_a_name_can_be_put_again(roost: World) -> None:
    session_id = (await roost.one.start()).session.session_id
    for number in range(32):
        await hold(roost.replicas[number % 2], session_id, f"hold-{number}")
    refusal = await failing(hold(roost.one, session_id, "one-more"))
    assert refusal.reason == "QUOTA_EXCEEDED"
    again = await hold(roost.two, session_id, "hold-7", timedelta(minutes=7))
    assert again.name == "hold-7"
    await release(roost.one, session_id, "hold-3")
    await hold(roost.one, session_id, "one-more")


async def test_a_hold_that_ran_out_takes_no_place(roost: World) -> None:
    session_id = (await roost.one.start()).session.session_id
    for number in range(32):
        await hold(roost.one, session_id, f"hold-{number}")
    await hold(roost.one, session_id, "hold-0", timedelta(microseconds=1))
    assert (await hold(roost.two, session_id, "one-more")).name == "one-more"


@pytest.mark.parametrize(
    ("ttl", "good"),
    [
        (timedelta(hours=24), True),
        (timedelta(hours=24, microseconds=1), False),
        (timedelta(0), False),
        (timedelta(seconds=-1), False),
        (timedelta(days=36_500), False),
    ],
)
async def test_a_hold_lasts_a_day_at_most(roost: World, ttl: timedelta, good: bool) -> None:
    session_id = (await roost.one.start()).session.session_id
    if good:
        assert (await hold(roost.one, session_id, ttl=ttl)).name == "build"
        return
    refusal = await failing(hold(roost.one, session_id, ttl=ttl))
    assert (refusal.reason, refusal.fields) == ("INVALID_FIELD", ("ttl",))


async def test_what_rests_or_is_over_cannot_be_held(roost: World) -> None:
    session_id = (await roost.one.start()).session.session_id
    await roost.one.pause(session_id)
    refusal = await failing(hold(roost.one, session_id))
    assert refusal.reason == "SESSION_STATE_CONFLICT"
    assert "resume" in refusal.message
    await roost.one.end(session_id)
    assert (await failing(hold(roost.two, session_id))).reason == "SESSION_STATE_CONFLICT"


async def test_giving_a_hold_back_twice_is_as_good_as_once(roost: World) -> None:
    session = (await roost.one.start()).session
    await release(roost.one, session.session_id, "never-put")
    await hold(roost.one, session.session_id)
    for replica in (roost.one, roost.two, roost.one):
        await release(replica, session.session_id)
    assert not (await explained(roost.one, session)).holds
    assert (await types(roost, session)).count("HOLD_RELEASED") == 1
    await roost.one.end(session.session_id)
    await release(roost.two, session.session_id)


async def test_a_session_of_nobody_or_of_somebody_else_has_no_holds_to_tell(roost: World) -> None:
    session = (await roost.one.start()).session
    unknown = "00000000-0000-4000-8000-000000000000"
    for session_id in (session.session_id, unknown):
        if session_id == session.session_id:
            await sql(roost.one, "UPDATE sessions SET tenant = 'another'")
        assert (await failing(hold(roost.one, session_id))).reason == "SESSION_NOT_FOUND"
        assert (await failing(release(roost.one, session_id))).reason == "SESSION_NOT_FOUND"
    assert (await failing(explained(roost.one, session))).reason == "SESSION_NOT_FOUND"
    assert (await failing(touch(roost.one, session))).reason == "SESSION_NOT_FOUND"


async def test_the_last_hold_and_no_other_says_until_when(roost: World) -> None:
    session = (await roost.one.start()).session
    for name, minutes in (("long", 60), ("short", 1), ("longer", 90)):
        await hold(roost.one, session.session_id, name, timedelta(minutes=minutes))
    await release(roost.one, session.session_id, "longer")
    (row,) = await sql(roost.one, "SELECT hold_until - now() FROM sessions")
    assert timedelta(minutes=59) < row[0] <= timedelta(minutes=60)
    await quiet(roost, session)
    assert Action.PAUSE not in await kept(roost.one)


# --- the provider --------------------------------------------------------------------------------


async def test_a_machine_that_cannot_be_suspended_goes_idle_as_stopped(roost: World) -> None:
    """Nobody is there to be asked: its files are kept, and the loss of its memory is told."""
    session = (await roost.one.start()).session
    await roost.admin.set_fault("server_error", action="suspend", status=412, times=9)
    await quiet(roost, session)
    await kept(roost.one)
    found = await roost.one.get(session.session_id)
    assert (found.state, found.pause_depth) == (PAUSED, pb.PAUSE_DEPTH_STOPPED)
    assert [each.type for each in found.conditions] == [pb.CONDITION_TYPE_MEMORY_LOST]
    assert found.expected_continuity == pb.CONTINUITY_FILESYSTEM
    again = await roost.two.start()
    assert again.outcome == pb.START_OUTCOME_RESTARTED
    assert again.continuity == pb.CONTINUITY_FILESYSTEM


async def test_a_caller_who_asks_for_the_same_is_refused_and_loses_nothing(roost: World) -> None:
    session = (await roost.one.start()).session
    await roost.click_twice(session)
    await roost.admin.set_fault("server_error", action="suspend", status=412, times=9)
    refusal = await failing(roost.one.pause(session.session_id))
    assert refusal.reason == "SUSPEND_UNSUPPORTED"
    assert await roost.counter(session) == "2"


async def test_while_the_provider_is_down_the_keeper_asks_ever_more_seldom(roost: World) -> None:
    session = (await roost.one.start()).session
    await roost.click_twice(session)
    await roost.admin.set_fault("unavailable")
    await quiet(roost, session)
    pauses = []
    for number in range(1, 5):
        await kept(roost.replicas[number % 2])
        ((failures, pause),) = await sql(
            roost.one, "SELECT failure_count, due_at - now() FROM sessions"
        )
        assert failures == number
        pauses.append(pause)
        # What is not due is left alone.
        assert not await kept(roost.replicas[number % 2])
        await due(roost, session)
    assert pauses == sorted(pauses)
    assert pauses[3] > 4 * pauses[0]
    assert (await roost.one.get(session.session_id)).state == pb.Session.STATE_PAUSING
    await roost.admin.clear_faults()

    async def at_rest() -> bool:
        await due(roost, session)
        await kept(roost.two)
        return (await roost.one.get(session.session_id)).state in (PAUSED, ACTIVE)

    assert await eventually(at_rest, timeout=30)
    ((failures,),) = await sql(roost.one, "SELECT failure_count FROM sessions")
    assert failures == 0
    again = await roost.two.start()
    assert again.continuity == pb.CONTINUITY_MEMORY
    assert await roost.counter(again.session) == "2"


# --- more than one keeper ------------------------------------------------------------------------


async def test_two_keepers_on_thirty_due_sessions_do_each_once(roost: World) -> None:
    starts = [roost.replicas[n % 2].start(f"user-{n}") for n in range(30)]
    sessions = [reply.session for reply in await asyncio.gather(*starts)]
    await roost.calls()
    await quiet(roost, *sessions)
    one, two = await asyncio.gather(kept(roost.one), kept(roost.two))
    assert one[Action.PAUSE] + two[Action.PAUSE] == 30
    assert (await roost.calls()).count("suspend") == 30
    assert await roost.committed("suspend") == 30
    for session in sessions:
        assert (await types(roost, session)).count("PAUSED") == 1


async def test_what_a_keeper_claimed_and_left_is_anothers_after_a_while(roost: World) -> None:
    """It died between the claim and the intent: nothing is written but when to look again."""
    session = (await roost.one.start()).session
    await quiet(roost, session)
    claimed = await queue.claim(roost.one.running.database, 16, timedelta(seconds=0.3))
    assert [record.session.session_id for record in claimed] == [id_of(session)]
    assert not await kept(roost.two)

    async def taken() -> bool:
        return (await kept(roost.two))[Action.PAUSE] == 1

    assert await eventually(taken)
    assert (await roost.one.get(session.session_id)).state == PAUSED


async def test_what_a_keeper_began_and_left_is_taken_over(roost: World) -> None:
    """It died between the intent and the provider: found running, it is paused in a later pass."""
    session = (await roost.one.start()).session
    await roost.click_twice(session)
    await quiet(roost, session)
    assert await _begin_idle_pause(roost, session) is not None
    await sql(roost.one, "UPDATE sessions SET lease_until = now(), due_at = now()")
    assert await kept(roost.two) == {Action.TAKE_OVER: 1}
    assert (await roost.one.get(session.session_id)).state in (ACTIVE, PAUSED)
    await due(roost, session)
    await kept(roost.two)
    again = await roost.one.start()
    assert again.continuity == pb.CONTINUITY_MEMORY
    assert await roost.counter(again.session) == "2"
    assert "TAKEN_OVER" in await types(roost, session)


# --- what is lost, and what never stood ----------------------------------------------------------


async def lose(roost: World, session: pb.Session, *, at_once: bool) -> None:
    """Its machine is destroyed behind our back, and the sweeper finds out."""
    await sql(
        roost.one,
        "UPDATE sessions SET policy = policy || jsonb_build_object('recover_at_once', %s)",
        at_once,
    )
    await roost.destroy_behind_our_back(session)
    sweeper = roost.one.running.background.sweeper

    async def found() -> bool:
        # The next pass is each time at once: its interval is over.
        await sql(roost.one, "UPDATE sweeps SET due_at = now()")
        await sweeper.shot(session.container.app, timedelta(0), act=True)
        return "CONTAINER_LOST" in await types(roost, session)

    assert await eventually(found, timeout=10)


async def test_a_lost_machine_is_replaced_at_once_and_nobody_is_told_that_all_is_well(
    roost: World,
) -> None:
    session = (await roost.one.start()).session
    await roost.click_twice(session)
    await lose(roost, session, at_once=True)
    assert await kept(roost.two) == {Action.RECOVER: 1}
    back = await roost.one.get(session.session_id)
    assert (back.state, back.generation) == (ACTIVE, 2)
    assert [each.type for each in back.conditions] == [pb.CONDITION_TYPE_CONTAINER_LOST]
    assert (await types(roost, session))[-3:] == ["CONTAINER_LOST", "STARTING", "ACTIVE"]
    (decision, *_) = await roost.one.decisions(session.session_id)
    assert (decision.method, decision.outcome) == ("Keeper", pb.START_OUTCOME_CREATED)
    # Nobody was there to hear it: the next start says what it costs the user, and only that one.
    again = await roost.two.start()
    assert again.outcome == pb.START_OUTCOME_REUSED
    assert again.continuity == pb.CONTINUITY_NONE
    assert await roost.counter(again.session) == "0"
    assert (await roost.one.start()).continuity == pb.CONTINUITY_MEMORY


async def test_the_loss_is_told_also_after_the_new_container_rested(roost: World) -> None:
    session = (await roost.one.start()).session
    await lose(roost, session, at_once=True)
    await kept(roost.two)
    await quiet(roost, session)
    assert await kept(roost.one) == {Action.PAUSE: 1}
    resting = await roost.one.get(session.session_id)
    assert resting.expected_continuity == pb.CONTINUITY_NONE
    again = await roost.two.start()
    assert again.outcome == pb.START_OUTCOME_RESUMED
    assert again.continuity == pb.CONTINUITY_NONE
    assert (await roost.one.start()).continuity == pb.CONTINUITY_MEMORY


async def test_who_joins_the_keepers_start_hears_of_the_loss_and_the_next_does_not(
    roost: World,
) -> None:
    session = (await roost.one.start()).session
    await lose(roost, session, at_once=True)
    await roost.admin.set_fault("slow_before", action="create", delay_ms=500)
    recovering = asyncio.create_task(kept(roost.one))
    await roost.until_state(session.session_id, pb.Session.STATE_STARTING)
    joiner = await roost.two.start()
    await recovering
    assert joiner.joined
    assert joiner.continuity == pb.CONTINUITY_NONE
    assert (await roost.two.start()).continuity == pb.CONTINUITY_MEMORY


async def test_without_the_policy_a_lost_machine_waits_for_its_user(roost: World) -> None:
    session = (await roost.one.start()).session
    await lose(roost, session, at_once=False)
    assert not await kept(roost.one)
    again = await roost.two.start()
    assert again.outcome == pb.START_OUTCOME_CREATED
    assert again.continuity == pb.CONTINUITY_NONE
    assert again.session.session_id == session.session_id


async def test_a_recovery_that_fails_is_tried_again_after_a_pause_that_grows(roost: World) -> None:
    session = (await roost.one.start()).session
    await lose(roost, session, at_once=True)
    await roost.admin.set_fault("capacity", action="create", times=3)
    pauses = []
    for _ in range(3):
        await due(roost, session)
        assert await kept(roost.one) == {Action.RECOVER: 1}
        ((state, pause),) = await sql(roost.one, "SELECT state, due_at - now() FROM sessions")
        assert state == "PAUSED"
        pauses.append(pause)
        assert not await kept(roost.two)
    assert timedelta(0) < pauses[0] < pauses[1] < pauses[2] < timedelta(minutes=5)
    await due(roost, session)
    await kept(roost.one)
    back = await roost.one.get(session.session_id)
    assert back.state == ACTIVE
    assert (await roost.two.start()).continuity == pb.CONTINUITY_NONE


async def test_a_first_start_that_nobody_came_back_for_is_given_up(roost: World) -> None:
    """Its machine was made, and the answer was lost: both go."""
    await roost.admin.set_fault("unavailable", route="GET /v1/apps/{app}/machines/{machine}/wait")
    await roost.admin.set_fault("exec_fails", action="exec", times=9)
    await roost.admin.set_fault("server_error", action="wait", times=50)
    refusal = await failing(roost.one.start())
    assert refusal.reason in ("PROVIDER_UNAVAILABLE", "PROVIDER_REFUSED")
    await roost.admin.clear_faults()
    (row,) = await sql(roost.one, "SELECT session_id::text, state FROM sessions")
    assert row[1] == "STARTING"
    assert await roost.committed("create") == 1
    await sql(
        roost.one,
        "UPDATE sessions SET change_time = now() - interval '3 minutes', due_at = now()",
    )
    assert (await kept(roost.two))[Action.DISCARD] == 1

    async def gone() -> bool:
        await sql(roost.one, "UPDATE sessions SET due_at = now() WHERE state <> 'ENDED'")
        await kept(roost.two)
        return await roost.committed("destroy") == 1

    assert await eventually(gone, timeout=15)
    over = await roost.one.get(row[0])
    assert (over.state, over.end_reason) == (pb.Session.STATE_ENDED, pb.END_REASON_CREATE_FAILED)
    # Its key is free.
    assert (await roost.one.start()).outcome == pb.START_OUTCOME_CREATED
