"""Idle pauses and activity during them: activity wins, and nothing is lost or done twice."""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import TYPE_CHECKING

import pytest

from roost.session.v1 import session_pb2 as pb
from session_service.domain import next_action
from session_service.domain.next_action import Action, Timings
from session_service.domain.session import Session
from session_service.reconcile import due as reconcile_due
from session_service.storage.session import due as session_due
from session_service.storage.session import reads
from session_service.storage.session.commit import Conflict, commit
from session_service.transition.changes import FIRST_RETRY, LAST_RETRY
from tests.cases import each
from tests.container.harness import failing
from tests.eventually import eventually
from tests.session.ageing import (
    IDLE,
    WARNING,
    events_of,
    explain_idle,
    hold,
    id_of,
    make_due,
    make_idle,
    release,
    run_due_pass,
    sql,
    touch,
)
from tests.session.harness import Replica, World, world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from local.fly.emulator import Emulator
    from session_service.domain.session import Record

ACTIVE, PAUSED = pb.Session.STATE_ACTIVE, pb.Session.STATE_PAUSED


@pytest.fixture
async def roost(emulator: Emulator, database_url: str) -> AsyncIterator[World]:
    """Two replicas. Sessions pause after ten idle minutes, one minute after the warning."""
    async with world(emulator, database_url, idle_timeout=IDLE, idle_warning=WARNING) as running:
        yield running


async def event_types(roost: World, session: pb.Session) -> list[str]:
    """The types of the session's events, oldest first."""
    return [event.type for event in await events_of(roost, session)]


# --- the warning ---------------------------------------------------------------------------------


async def test_a_warning_comes_first_and_names_the_time_of_the_pause(roost: World) -> None:
    session = (await roost.one.start()).session
    await make_idle(roost, session, warned=False)
    began = monotonic()
    assert await run_due_pass(roost.one) == {Action.WARN: 1}
    took = timedelta(seconds=monotonic() - began)
    (warning,) = [e for e in await events_of(roost, session) if e.type == "IDLE_WARNING"]
    shown = (await explain_idle(roost.one, session)).next_action
    assert shown.action == pb.NextAction.ACTION_PAUSE
    promised = datetime.fromisoformat(warning.details.split('"')[3])
    # The event's time is computed before the row is written from which the pause follows.
    assert timedelta(0) <= shown.time.ToDatetime(UTC) - promised <= took
    # The announced time has not come, so the due pass does nothing.
    await make_due(roost, session)
    assert not await run_due_pass(roost.two)
    await sql(roost.one, "UPDATE sessions SET warn_time = warn_time - interval '61 s'")
    await make_due(roost, session)
    assert await run_due_pass(roost.two) == {Action.PAUSE: 1}
    assert (await event_types(roost, session))[-3:] == ["IDLE_WARNING", "PAUSING", "PAUSED"]


async def test_activity_after_a_warning_is_no_pause_and_a_new_warning_later(roost: World) -> None:
    session = (await roost.one.start()).session
    await make_idle(roost, session, warned=False)
    await run_due_pass(roost.one)
    await touch(roost.two, session, "typing")
    # The minute is over, and the user was active.
    await sql(roost.one, "UPDATE sessions SET warn_time = warn_time - interval '2 minutes'")
    await make_due(roost, session)
    assert not await run_due_pass(roost.one)
    assert (await roost.one.get(session.session_id)).state == ACTIVE
    assert any("typing" in reason for reason in (await explain_idle(roost.one, session)).reasons)
    # Idle again. The old warning was for another pause, so a new one is due.
    await sql(
        roost.one,
        "UPDATE sessions SET last_active_time = now() - interval '11 minutes',"
        " warn_time = now() - interval '12 minutes', due_at = now()",
    )
    assert await run_due_pass(roost.one) == {Action.WARN: 1}
    assert (await event_types(roost, session)).count("IDLE_WARNING") == 2


# --- activity during an idle pause ---------------------------------------------------------------


async def test_a_touch_during_an_idle_pause_never_loses_the_session(roost: World) -> None:
    """A touch at a random moment: the session ends ACTIVE, or PAUSED with its memory."""
    session = (await roost.one.start()).session
    await roost.click_twice(session)
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    ends: set[int] = set()
    for _ in range(25):
        await make_idle(roost, session)
        due_pass = asyncio.create_task(run_due_pass(roost.one))
        await asyncio.sleep(dice.uniform(0, 0.06))
        await touch(roost.two, session)
        await due_pass
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


async def test_a_touch_before_the_first_provider_call_cancels_the_pause(roost: World) -> None:
    session = (await roost.one.start()).session
    await make_idle(roost, session)
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
    await make_idle(roost, session)
    await roost.admin.set_fault("slow_after", action="suspend", delay_ms=3000)
    due_pass = asyncio.create_task(run_due_pass(roost.one))
    await roost.until_state(session.session_id, pb.Session.STATE_PAUSING)
    again = await roost.two.start()
    await due_pass
    assert again.outcome == pb.START_OUTCOME_RESUMED
    assert again.continuity == pb.CONTINUITY_MEMORY
    assert again.continuity_verified
    assert await roost.counter(again.session) == "2"


async def _record(roost: World, session: pb.Session) -> Record:
    record = await reads.find(roost.one.running.database, id_of(session))
    assert record is not None
    return record


async def _begin_idle_pause(roost: World, session: pb.Session) -> Session | None:
    """Commit the intent of an idle pause as the due pass does, without running it.

    Returns None where the commit finds that the session is not idle any more.
    """
    record = await _record(roost, session)
    step = next_action.next_step(record, Timings())
    assert step.action is Action.PAUSE
    assert step.due(record.now)
    pause = reconcile_due.bring_down(record, step, roost.one.running.work.terms)
    done = await commit(roost.one.running.database, pause)
    return None if isinstance(done, Conflict) else done.session(record.session.session_id)


async def _waiters(roost: World) -> int:
    """The number of statements in this database that wait for a lock."""
    (row,) = await sql(
        roost.two,
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'",
    )
    return int(row[0])


@pytest.mark.usefixtures("patient_database")
@pytest.mark.parametrize("first", ["hold", "pause"])
async def test_a_hold_that_races_the_commit_of_an_idle_pause_wins(roost: World, first: str) -> None:
    """Both wait for the row's lock, in this order. A hold that is first keeps the session active.
    A hold after the commit cancels the pause, which has not called the provider yet.
    """
    session = (await roost.one.start()).session
    await make_idle(roost, session)

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
    assert [each.name for each in (await explain_idle(roost.one, session)).holds] == ["build"]
    assert await roost.committed("suspend", session.session_id) == 0
    await make_due(roost, session)
    assert Action.PAUSE not in await run_due_pass(roost.one)


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


async def test_an_expired_hold_does_not_count_to_the_limit(roost: World) -> None:
    session_id = (await roost.one.start()).session.session_id
    for number in range(32):
        await hold(roost.one, session_id, f"hold-{number}")
    await hold(roost.one, session_id, "hold-0", timedelta(microseconds=1))
    assert (await hold(roost.two, session_id, "one-more")).name == "one-more"


@each(
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


async def test_a_paused_or_ended_session_cannot_be_held(roost: World) -> None:
    session_id = (await roost.one.start()).session.session_id
    await roost.one.pause(session_id)
    refusal = await failing(hold(roost.one, session_id))
    assert refusal.reason == "SESSION_STATE_CONFLICT"
    assert "resume" in refusal.message
    await roost.one.end(session_id)
    assert (await failing(hold(roost.two, session_id))).reason == "SESSION_STATE_CONFLICT"


async def test_releasing_a_hold_twice_is_idempotent(roost: World) -> None:
    session = (await roost.one.start()).session
    await release(roost.one, session.session_id, "never-put")
    await hold(roost.one, session.session_id)
    for replica in (roost.one, roost.two, roost.one):
        await release(replica, session.session_id)
    assert not (await explain_idle(roost.one, session)).holds
    assert (await event_types(roost, session)).count("HOLD_RELEASED") == 1
    await roost.one.end(session.session_id)
    await release(roost.two, session.session_id)


async def test_holds_of_an_unknown_or_foreign_session_are_not_found(roost: World) -> None:
    session = (await roost.one.start()).session
    unknown = "00000000-0000-4000-8000-000000000000"
    for session_id in (session.session_id, unknown):
        if session_id == session.session_id:
            await sql(roost.one, "UPDATE sessions SET tenant = 'another'")
        assert (await failing(hold(roost.one, session_id))).reason == "SESSION_NOT_FOUND"
        assert (await failing(release(roost.one, session_id))).reason == "SESSION_NOT_FOUND"
    assert (await failing(explain_idle(roost.one, session))).reason == "SESSION_NOT_FOUND"
    assert (await failing(touch(roost.one, session))).reason == "SESSION_NOT_FOUND"


async def test_the_latest_expiry_of_all_holds_decides(roost: World) -> None:
    session = (await roost.one.start()).session
    for name, minutes in (("long", 60), ("short", 1), ("longer", 90)):
        await hold(roost.one, session.session_id, name, timedelta(minutes=minutes))
    await release(roost.one, session.session_id, "longer")
    (row,) = await sql(roost.one, "SELECT hold_until - now() FROM sessions")
    assert timedelta(minutes=59) < row[0] <= timedelta(minutes=60)
    await make_idle(roost, session)
    assert Action.PAUSE not in await run_due_pass(roost.one)


# --- the provider --------------------------------------------------------------------------------


async def test_an_idle_machine_that_cannot_be_suspended_is_stopped(roost: World) -> None:
    """No caller can choose another depth: its files are kept, and MEMORY_LOST is reported."""
    session = (await roost.one.start()).session
    await roost.admin.set_fault("server_error", action="suspend", status=412, times=9)
    await make_idle(roost, session)
    await run_due_pass(roost.one)
    found = await roost.one.get(session.session_id)
    assert (found.state, found.pause_depth) == (PAUSED, pb.PAUSE_DEPTH_STOPPED)
    assert [each.type for each in found.conditions] == [pb.CONDITION_TYPE_MEMORY_LOST]
    assert found.expected_continuity == pb.CONTINUITY_FILESYSTEM
    again = await roost.two.start()
    assert again.outcome == pb.START_OUTCOME_RESTARTED
    assert again.continuity == pb.CONTINUITY_FILESYSTEM


async def test_a_caller_that_suspends_such_a_machine_gets_an_error_and_loses_nothing(
    roost: World,
) -> None:
    session = (await roost.one.start()).session
    await roost.click_twice(session)
    await roost.admin.set_fault("server_error", action="suspend", status=412, times=9)
    refusal = await failing(roost.one.pause(session.session_id))
    assert refusal.reason == "SUSPEND_UNSUPPORTED"
    assert await roost.counter(session) == "2"


async def last_failure(roost: World) -> tuple[int, timedelta]:
    """How often the session's action has failed, and the pause after the last failure."""
    (row,) = await sql(roost.one, "SELECT failure_count, due_at - change_time FROM sessions")
    return row[0], row[1]


async def check_not_due(roost: World, replica: Replica) -> None:
    """Assert that a pass leaves the session alone until its time. That is put an hour off, so that
    it does not come meanwhile.
    """
    await sql(roost.one, "UPDATE sessions SET due_at = due_at + interval '1 hour'")
    assert not await run_due_pass(replica)


async def test_while_the_provider_is_down_due_passes_back_off(roost: World) -> None:
    session = (await roost.one.start()).session
    await roost.click_twice(session)
    await roost.admin.set_fault("unavailable")
    await make_idle(roost, session)
    for number in range(1, 5):
        await run_due_pass(roost.replicas[number % 2])
        # A slow pass meets the end of the first pauses, and tries again.
        failures, pause = await last_failure(roost)
        assert failures >= number
        assert pause == min(FIRST_RETRY * 2 ** (failures - 1), LAST_RETRY)
        await check_not_due(roost, roost.replicas[number % 2])
        await make_due(roost, session)
    assert (await roost.one.get(session.session_id)).state == pb.Session.STATE_PAUSING
    await roost.admin.clear_faults()

    async def paused_again() -> bool:
        await make_due(roost, session)
        await run_due_pass(roost.two)
        return (await roost.one.get(session.session_id)).state in (PAUSED, ACTIVE)

    assert await eventually(paused_again)
    ((failures,),) = await sql(roost.one, "SELECT failure_count FROM sessions")
    assert failures == 0
    again = await roost.two.start()
    assert again.continuity == pb.CONTINUITY_MEMORY
    assert await roost.counter(again.session) == "2"


# --- due passes of two replicas ------------------------------------------------------------------


async def test_two_due_passes_over_thirty_sessions_pause_each_once(roost: World) -> None:
    sessions: list[pb.Session] = []
    # A few at a time: of thirty starts at once, those that the database serves late fail.
    for first in range(0, 30, 6):
        users = range(first, first + 6)
        starts = [roost.replicas[n % 2].start(f"user-{n}") for n in users]
        sessions += [reply.session for reply in await asyncio.gather(*starts)]
    await roost.calls()
    await make_idle(roost, *sessions)
    one, two = await asyncio.gather(run_due_pass(roost.one), run_due_pass(roost.two))
    assert one[Action.PAUSE] + two[Action.PAUSE] == 30
    assert (await roost.calls()).count("suspend") == 30
    assert await roost.committed("suspend") == 30
    for session in sessions:
        assert (await event_types(roost, session)).count("PAUSED") == 1


async def test_a_session_claimed_by_a_replica_that_died_comes_due_again(roost: World) -> None:
    """It died between the claim and the intent: only the next due time was written."""
    session = (await roost.one.start()).session
    await make_idle(roost, session)
    hold = timedelta(minutes=5)
    claimed = await session_due.claim(roost.one.running.database, 16, hold)
    assert [record.session.session_id for record in claimed] == [id_of(session)]
    assert not await run_due_pass(roost.two)
    await sql(roost.one, "UPDATE sessions SET due_at = due_at - %s", hold)
    assert (await run_due_pass(roost.two))[Action.PAUSE] == 1
    assert (await roost.one.get(session.session_id)).state == PAUSED


async def test_an_idle_pause_of_a_replica_that_died_is_taken_over(roost: World) -> None:
    """It died between the intent and the provider call. A later pass pauses the running machine."""
    session = (await roost.one.start()).session
    await roost.click_twice(session)
    await make_idle(roost, session)
    assert await _begin_idle_pause(roost, session) is not None
    await sql(roost.one, "UPDATE sessions SET lease_until = now(), due_at = now()")
    assert await run_due_pass(roost.two) == {Action.TAKE_OVER: 1}
    assert (await roost.one.get(session.session_id)).state in (ACTIVE, PAUSED)
    await roost.free_lease(session)
    await make_due(roost, session)
    await run_due_pass(roost.two)
    again = await roost.one.start()
    assert again.continuity == pb.CONTINUITY_MEMORY
    assert await roost.counter(again.session) == "2"
    assert "TAKEN_OVER" in await event_types(roost, session)


# --- lost machines, and first starts that failed -------------------------------------------------


async def lose(roost: World, session: pb.Session, *, at_once: bool) -> None:
    """Destroy the session's machine past Roost; run inventory passes until it is found lost."""
    await sql(
        roost.one,
        "UPDATE sessions SET policy = policy || jsonb_build_object('recover_at_once', %s)",
        at_once,
    )
    await roost.destroy_behind_our_back(session)
    inventory_pass = roost.one.running.background.inventory_pass

    async def found() -> bool:
        # Make the app due at once: its interval has not passed.
        await sql(roost.one, "UPDATE sweeps SET due_at = now()")
        await inventory_pass.shot(session.container.app, timedelta(0), act=True)
        return "CONTAINER_LOST" in await event_types(roost, session)

    assert await eventually(found)


async def test_a_lost_machine_is_replaced_at_once_and_the_next_start_reports_the_loss(
    roost: World,
) -> None:
    session = (await roost.one.start()).session
    await roost.click_twice(session)
    await lose(roost, session, at_once=True)
    assert await run_due_pass(roost.two) == {Action.RECOVER: 1}
    back = await roost.one.get(session.session_id)
    assert (back.state, back.generation) == (ACTIVE, 2)
    assert [each.type for each in back.conditions] == [pb.CONDITION_TYPE_CONTAINER_LOST]
    assert (await event_types(roost, session))[-3:] == ["CONTAINER_LOST", "STARTING", "ACTIVE"]
    (decision, *_) = await roost.one.decisions(session.session_id)
    assert (decision.method, decision.outcome) == ("Keeper", pb.START_OUTCOME_CREATED)
    # No caller has got the loss reported yet: the next start reports it, and only that one.
    again = await roost.two.start()
    assert again.outcome == pb.START_OUTCOME_REUSED
    assert again.continuity == pb.CONTINUITY_NONE
    assert await roost.counter(again.session) == "0"
    assert (await roost.one.start()).continuity == pb.CONTINUITY_MEMORY


async def test_the_loss_is_reported_also_after_a_pause_of_the_new_container(roost: World) -> None:
    session = (await roost.one.start()).session
    await lose(roost, session, at_once=True)
    await run_due_pass(roost.two)
    await make_idle(roost, session)
    assert await run_due_pass(roost.one) == {Action.PAUSE: 1}
    paused_session = await roost.one.get(session.session_id)
    assert paused_session.expected_continuity == pb.CONTINUITY_NONE
    again = await roost.two.start()
    assert again.outcome == pb.START_OUTCOME_RESUMED
    assert again.continuity == pb.CONTINUITY_NONE
    assert (await roost.one.start()).continuity == pb.CONTINUITY_MEMORY


async def test_a_start_that_joins_the_recovery_reports_the_loss_and_the_next_does_not(
    roost: World,
) -> None:
    session = (await roost.one.start()).session
    await lose(roost, session, at_once=True)
    await roost.admin.set_fault("slow_before", action="create", delay_ms=3000)
    recovering = asyncio.create_task(run_due_pass(roost.one))
    await roost.until_state(session.session_id, pb.Session.STATE_STARTING)
    joiner = await roost.two.start()
    await recovering
    assert joiner.joined
    assert joiner.continuity == pb.CONTINUITY_NONE
    assert (await roost.two.start()).continuity == pb.CONTINUITY_MEMORY


async def test_without_the_policy_a_lost_machine_waits_for_its_user(roost: World) -> None:
    session = (await roost.one.start()).session
    await lose(roost, session, at_once=False)
    assert not await run_due_pass(roost.one)
    again = await roost.two.start()
    assert again.outcome == pb.START_OUTCOME_CREATED
    assert again.continuity == pb.CONTINUITY_NONE
    assert again.session.session_id == session.session_id


async def test_a_failed_recovery_is_retried_with_growing_delay(roost: World) -> None:
    session = (await roost.one.start()).session
    await lose(roost, session, at_once=True)
    await roost.admin.set_fault("capacity", action="create", times=None)
    for number in range(1, 4):
        await make_due(roost, session)
        assert (await run_due_pass(roost.one)).keys() == {Action.RECOVER}
        assert (await roost.one.get(session.session_id)).state == PAUSED
        failures, pause = await last_failure(roost)
        assert failures >= number
        assert pause == min(FIRST_RETRY * 2 ** (failures - 1), LAST_RETRY)
        await check_not_due(roost, roost.two)
    await roost.admin.clear_faults()
    await make_due(roost, session)
    await run_due_pass(roost.one)
    back = await roost.one.get(session.session_id)
    assert back.state == ACTIVE
    assert (await roost.two.start()).continuity == pb.CONTINUITY_NONE


async def test_a_first_start_that_is_never_retried_is_abandoned(roost: World) -> None:
    """Its machine was created and the answer was lost: session and machine are both removed."""
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
    assert (await run_due_pass(roost.two))[Action.DISCARD] == 1

    async def gone() -> bool:
        await sql(roost.one, "UPDATE sessions SET due_at = now() WHERE state <> 'ENDED'")
        await run_due_pass(roost.two)
        return await roost.committed("destroy") == 1

    assert await eventually(gone)
    over = await roost.one.get(row[0])
    assert (over.state, over.end_reason) == (pb.Session.STATE_ENDED, pb.END_REASON_CREATE_FAILED)
    # The key is free again.
    assert (await roost.one.start()).outcome == pb.START_OUTCOME_CREATED
