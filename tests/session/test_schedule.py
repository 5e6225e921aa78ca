"""Scheduled checkpoints: taken while the session runs, without delaying other calls."""

from __future__ import annotations

import asyncio
import signal
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from google.protobuf.duration_pb2 import Duration

from container_service.main import serve as serve_containers
from roost.session.v1 import policy_service_pb2 as policy_pb
from roost.session.v1 import session_pb2 as pb
from roost.session.v1 import session_service_pb2 as rpc_pb
from roost.session.v1.policy_service_pb2_grpc import PolicyServiceStub
from session_service.domain.next_action import Action
from session_service.storage.session import due, reads
from tests.container.harness import config_for
from tests.eventually import eventually
from tests.session.ageing import sql
from tests.session.harness import TIMEOUT, World, spec, world
from tests.session.saving import Checkpoint, client, counting, hooked, large, mounting
from tests.session.test_process import launch, outcome

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from local.fly.emulator import Emulator
    from roost.container.v1 import container_service_pb2 as container_pb
    from session_service.reconcile.due import DueCounts
    from tests.session.harness import Replica

READY, FAILED = Checkpoint.STATE_READY, Checkpoint.STATE_FAILED
SCHEDULE = Checkpoint.REASON_SCHEDULE
#: Longer than a test takes: a checkpoint is due only when the test says so, with `age`.
EVERY = timedelta(minutes=2)
#: A bound of waits, in s: only what hangs reaches it.
PATIENCE = 30.0


@pytest.fixture
async def scheduled(emulator: Emulator, database_url: str) -> AsyncIterator[World]:
    """Two replicas that save each running session on a schedule, and have long for it."""
    budget = timedelta(minutes=2)
    async with world(
        emulator, database_url, checkpoint_every=EVERY, start_budget=budget
    ) as running:
        yield running


def slow() -> container_pb.ContainerSpec:
    """A spec whose hook writes 64 KiB every 400 ms: a save takes a minute if not ended."""
    return large(10_000_000, SLOW_MS="400")


async def due_pass(replica: Replica) -> DueCounts:
    """Run one due pass of the replica and wait for all that it began."""
    return await replica.running.background.due_pass.settle()


async def until_saved(roost: World, number: int, *, aged: bool = True) -> Checkpoint:
    """The user's checkpoint of this number once it is READY, by due passes of the first replica;
    with `aged`, it is due now.
    """

    async def saved() -> Checkpoint | None:
        if aged:
            await age(roost)
        await due_pass(roost.one)
        shown = await client(roost.one).of()
        return next((c for c in shown if c.number == number and c.state == READY), None)

    made: Checkpoint | None = await eventually(saved, timeout=PATIENCE)
    assert made is not None, f"there is no checkpoint {number}"
    return made


async def until_writing(roost: World) -> asyncio.Task[DueCounts]:
    """A due pass of the first replica, once it writes a checkpoint."""
    await age(roost)
    passing = asyncio.create_task(due_pass(roost.one))

    async def writing() -> bool:
        return any(c.state == Checkpoint.STATE_WRITING for c in await client(roost.two).of())

    assert await eventually(writing, timeout=PATIENCE), "no checkpoint is being written"
    return passing


async def set_every(roost: World, seconds: int, **values: Any) -> None:
    """Set the project's interval. Any: fields of every type."""
    policy = pb.Policy(checkpoint_every=Duration(seconds=seconds), **values)
    request = policy_pb.UpdateProjectPolicyRequest(project_id="nest", policy=policy)
    await PolicyServiceStub(roost.one.channel).UpdateProjectPolicy(request, timeout=TIMEOUT)


async def row(roost: World, column: str) -> Any:
    """A column of the only session. Any: columns of every type."""
    return (await sql(roost.one, f"SELECT {column} FROM sessions"))[0][0]


async def age(roost: World, span: str = "3 minutes") -> None:
    """Move only the schedule's times back, and make the session due."""
    columns = ("create_time", "start_time", "checkpoint_time", "checkpoint_try_time")
    back = ", ".join(f"{name} = {name} - %s::interval" for name in columns)
    await sql(roost.one, f"UPDATE sessions SET due_at = now(), {back}", *([span] * len(columns)))


async def test_a_running_session_is_saved_once_per_interval(
    emulator: Emulator, database_url: str
) -> None:
    """Numbered, with reason SCHEDULE; the counter runs on; the session descends from the last."""
    second = timedelta(seconds=1)
    async with world(emulator, database_url, checkpoint_every=second) as roost:
        session = await counting(roost, 2)
        first = await until_saved(roost, 1, aged=False)
        reason = (first.reason, first.kind, first.label)
        assert reason == (SCHEDULE, Checkpoint.KIND_APPLICATION, "")
        assert first.size_bytes == len(b"2\n")
        await roost.counter(session, "/click")
        next_one = await until_saved(roost, 2, aged=False)
        assert next_one.parent_checkpoint_id == first.checkpoint_id
        assert next_one.sha256 != first.sha256
        assert next_one.ready_time.ToDatetime() - first.ready_time.ToDatetime() >= second
        now = await roost.one.get(session.session_id)
        assert now.state == pb.Session.STATE_ACTIVE
        assert not now.conditions
        # The pass that saved it may have saved again: the interval is short.
        last = (await client(roost.one).of())[0]
        assert (last.state, last.number >= 2) == (READY, True)
        assert str(await row(roost, "checkpoint_id")) == last.checkpoint_id
        again = await roost.two.start()
        assert again.outcome == pb.START_OUTCOME_REUSED
        assert await roost.counter(again.session) == "3"


async def test_a_lost_container_is_restored_from_the_last_one(scheduled: World) -> None:
    """The purpose of the schedule."""
    session = await counting(scheduled, 2)
    await until_saved(scheduled, 1)
    await scheduled.destroy_behind_our_back(session)
    await sql(scheduled.one, "UPDATE sessions SET verified_at = NULL")
    back = await scheduled.one.start()
    assert back.outcome == pb.START_OUTCOME_RESTORED
    assert await scheduled.counter(back.session) == "2"


async def test_any_checkpoint_restarts_the_interval(roost: World) -> None:
    """A session saved a moment ago by a call is not saved; nor one without a state hook."""
    await set_every(roost, 3600)
    session = await counting(roost, 1)
    other = (await roost.one.start("crane", spec=spec())).session
    await age(roost, "50 minutes")
    await client(roost.one).create(session.session_id)
    await age(roost, "20 minutes")
    await due_pass(roost.one)
    assert [c.reason for c in await client(roost.one).of()] == [Checkpoint.REASON_REQUESTED]
    await age(roost, "40 minutes")
    assert (await due_pass(roost.one)).actions[Action.CHECKPOINT] == 1
    assert (await client(roost.one).of())[0].reason == SCHEDULE
    assert not await client(roost.one).of("crane")
    assert (await roost.one.get(other.session_id)).state == pb.Session.STATE_ACTIVE


async def test_a_change_of_the_interval_applies_at_once(roost: World) -> None:
    """The next due pass applies it, and saves no more once the interval is unset."""
    session = await counting(roost, 1)
    await age(roost, "10 minutes")
    await due_pass(roost.one)
    assert not await client(roost.one).of()
    await set_every(roost, 300)
    assert (await roost.one.get(session.session_id)).policy.checkpoint_every.seconds == 300
    assert (await due_pass(roost.two)).actions[Action.CHECKPOINT] == 1
    await set_every(roost, 0)
    await age(roost, "10 minutes")
    assert not (await due_pass(roost.two)).actions[Action.CHECKPOINT]
    assert len(await client(roost.one).of()) == 1


async def test_a_volume_is_saved_as_a_snapshot(scheduled: World) -> None:
    await scheduled.one.start(spec=await mounting(scheduled))
    assert (await until_saved(scheduled, 1)).kind == Checkpoint.KIND_VOLUME


async def test_a_scheduled_checkpoint_is_no_activity_and_delays_no_pause_or_warning(
    scheduled: World,
) -> None:
    """Saved over and over it still goes idle, and saves are not shown as its next action."""
    session = await counting(scheduled, 2)
    before = await row(scheduled, "last_active_time")
    shown = (await scheduled.one.get(session.session_id)).next_action
    assert shown.action == pb.NextAction.ACTION_PAUSE
    await until_saved(scheduled, 1)
    assert await row(scheduled, "last_active_time") == before
    assert (await scheduled.one.get(session.session_id)).next_action == shown
    request = rpc_pb.ExplainIdleRequest(session_id=session.session_id)
    explained = await scheduled.one.stub.ExplainIdle(request, timeout=TIMEOUT)
    assert explained.idle_time == shown.time
    assert any("saved every 120 s" in reason for reason in explained.reasons)

    async def next_of(**columns: str) -> set[Action]:
        """What a due pass does to a session with all its times set back."""
        await age(scheduled)
        moved = ", ".join(f"{name} = {value}" for name, value in columns.items())
        await sql(scheduled.one, f"UPDATE sessions SET {moved}")
        return set((await due_pass(scheduled.one)).actions)

    warning = "now() - interval '29 minutes 10 seconds'"
    assert Action.WARN in await next_of(last_active_time=warning)
    # Between the warning and the pause a checkpoint is taken.
    await until_saved(scheduled, 2)
    idle, warned = "now() - interval '31 minutes'", "now() - interval '90 seconds'"
    assert Action.PAUSE in await next_of(last_active_time=idle, warn_time=warned)
    # A paused session is not saved, and a resume brings its memory back.
    count = len(await client(scheduled.one).of())
    await age(scheduled)
    assert not (await due_pass(scheduled.one)).actions[Action.CHECKPOINT]
    assert len(await client(scheduled.one).of()) == count
    back = await scheduled.one.start()
    assert back.outcome == pb.START_OUTCOME_RESUMED
    assert await scheduled.counter(back.session) == "2"


async def test_retention_applies_to_scheduled_checkpoints(scheduled: World) -> None:
    await set_every(scheduled, 120, keep_checkpoints=2)
    await counting(scheduled, 1)
    for number in (1, 2, 3, 4):
        await until_saved(scheduled, number)
    assert [c.number for c in await client(scheduled.one).of() if c.state == READY] == [4, 3]


async def test_a_failing_application_is_reported_and_retried_with_a_growing_delay(
    scheduled: World,
) -> None:
    """The session runs on. Once its state can be saved again, the condition is removed."""
    broken = hooked()
    broken.state_hook.http_path = "/nowhere"
    session = (await scheduled.one.start(spec=broken)).session
    await age(scheduled, "2 minutes")

    async def with_condition() -> pb.Session | None:
        await due_pass(scheduled.one)
        found = await scheduled.one.get(session.session_id)
        return found if found.conditions else None

    now = await eventually(with_condition, timeout=PATIENCE)
    assert now is not None
    (condition,) = now.conditions
    assert condition.type == pb.CONDITION_TYPE_CHECKPOINT_FAILED
    assert "STATE_HOOK_FAILED" in condition.message
    assert now.state == pb.Session.STATE_ACTIVE
    assert (await scheduled.two.start()).outcome == pb.START_OUTCOME_REUSED
    tries = len(await client(scheduled.one).of())
    for _ in range(3):
        await sql(scheduled.one, "UPDATE sessions SET due_at = now()")
        assert not (await due_pass(scheduled.one)).actions[Action.CHECKPOINT]
    assert len(await client(scheduled.one).of()) == tries == 1
    etag = (await scheduled.one.get(session.session_id)).etag
    await age(scheduled, "31 seconds")
    await due_pass(scheduled.one)
    assert len(await client(scheduled.one).of()) == 2
    # The next retry waits for longer, and the condition is reported once.
    assert (await scheduled.one.get(session.session_id)).etag == etag
    await sql(scheduled.one, "UPDATE sessions SET checkpoint_try_time = now() - interval '5 s'")
    await due_pass(scheduled.one)
    assert len(await client(scheduled.one).of()) == 2
    await sql(
        scheduled.one,
        "UPDATE sessions SET spec = jsonb_set(spec, '{state_hook,http_path}', '\"/state\"')",
    )
    await age(scheduled, "2 hours")
    assert (await due_pass(scheduled.one)).actions[Action.CHECKPOINT] == 1
    assert not (await scheduled.one.get(session.session_id)).conditions


async def test_a_requested_checkpoint_removes_the_condition_of_a_failed_one(
    scheduled: World,
) -> None:
    """Any caller's checkpoint does. The session's other conditions stay."""
    session = await counting(scheduled, 1)
    failed = '["CHECKPOINT_FAILED", "why", "2026-05-01T00:00:00+00:00"]'
    other = '["MEMORY_LOST", "so", "2026-05-01T00:00:00+00:00"]'
    await sql(scheduled.one, "UPDATE sessions SET conditions = %s::jsonb", f"[{failed}, {other}]")
    assert len((await scheduled.one.get(session.session_id)).conditions) == 2
    await client(scheduled.one).create(session.session_id)
    (condition,) = (await scheduled.one.get(session.session_id)).conditions
    assert (condition.type, condition.message) == (pb.CONDITION_TYPE_MEMORY_LOST, "so")


async def test_a_pause_during_a_scheduled_checkpoint_wins(scheduled: World) -> None:
    """The checkpoint is FAILED, the memory is kept, the due pass's slot is free again, and no
    condition reports a failure.
    """
    session = (await scheduled.one.start(spec=slow())).session
    passing = await until_writing(scheduled)
    paused = await scheduled.two.pause(session.session_id)
    assert paused.state == pb.Session.STATE_PAUSED
    # The session becomes due sooner than a save may take, and the next pass checks on it.
    async with asyncio.timeout(PATIENCE):
        assert not (await passing).actions[Action.CHECKPOINT]
    assert [c.state for c in await client(scheduled.one).of()] == [FAILED]
    assert not (await scheduled.one.get(session.session_id)).conditions
    assert (await scheduled.one.start()).outcome == pb.START_OUTCOME_RESUMED


async def test_a_stop_that_saves_supersedes_a_scheduled_checkpoint(scheduled: World) -> None:
    """Under CHECKPOINT the scheduled checkpoint is superseded, and the session is paused by a
    complete one.
    """
    await set_every(scheduled, 120, persistence=pb.Policy.PERSISTENCE_CHECKPOINT)
    session = (await scheduled.one.start(spec=large(1_000_000, SLOW_MS="300"))).session
    passing = await until_writing(scheduled)
    stopped = await scheduled.two.stop(session.session_id)
    assert stopped.pause_depth == pb.PAUSE_DEPTH_CHECKPOINT
    async with asyncio.timeout(PATIENCE):
        await passing
    newest, older = await client(scheduled.one).of()
    assert (newest.reason, newest.state) == (Checkpoint.REASON_STOP, READY)
    assert (older.reason, older.state, older.failure) == (SCHEDULE, FAILED, "SUPERSEDED")


async def test_an_end_during_a_scheduled_checkpoint_wins(scheduled: World) -> None:
    session = (await scheduled.one.start(spec=slow())).session
    passing = await until_writing(scheduled)
    ended = await scheduled.two.end(session.session_id)
    assert ended.state == pb.Session.STATE_ENDED
    async with asyncio.timeout(PATIENCE):
        await passing
    assert [c.state for c in await client(scheduled.one).of()] == [FAILED]


async def test_a_start_during_a_scheduled_checkpoint_is_reused_and_the_checkpoint_goes_on(
    scheduled: World,
) -> None:
    session = (await scheduled.one.start(spec=large(1_000_000, SLOW_MS="300"))).session
    passing = await until_writing(scheduled)
    again = await scheduled.two.start()
    assert again.outcome == pb.START_OUTCOME_REUSED
    assert again.session.session_id == session.session_id
    assert (await passing).actions[Action.CHECKPOINT] == 1
    assert [c.state for c in await client(scheduled.one).of()] == [READY]


async def test_two_replicas_take_one_checkpoint_per_interval(scheduled: World) -> None:
    """However often both run a pass, each interval has one checkpoint, and none fails for it."""
    await counting(scheduled, 1)
    await until_saved(scheduled, 1)
    for number in (2, 3):
        await age(scheduled)
        passes = await asyncio.gather(*(due_pass(each) for each in scheduled.replicas * 3))
        assert sum(each.actions[Action.CHECKPOINT] for each in passes) == 1
        shown = await client(scheduled.one).of()
        assert [c.number for c in shown if c.state == READY] == list(range(number, 0, -1))
        assert len(shown) == number


async def test_of_two_passes_that_read_the_same_row_one_may_save(scheduled: World) -> None:
    """The row is claimed by compare-and-set, also where both passes found the session due."""
    session = await counting(scheduled, 1)
    await age(scheduled)
    database = scheduled.one.running.database
    for _ in range(2):
        record = await reads.find(database, UUID(session.session_id))
        assert record is not None
        both = [due.note_scheduled(database, record.session, record.now) for _ in range(2)]
        assert sorted(await asyncio.gather(*both)) == [False, True]
        # A session that was saved after it was read is not saved again either.
        again = await reads.find(database, UUID(session.session_id))
        assert again is not None
        await client(scheduled.one).create(session.session_id)
        assert not await due.note_scheduled(database, again.session, again.now)


async def test_a_requested_checkpoint_waits_for_a_scheduled_one(scheduled: World) -> None:
    """Both are taken, one after the other, and the interval begins at the later one."""
    session = (await scheduled.one.start(spec=large(1_000_000, SLOW_MS="300"))).session
    passing = await until_writing(scheduled)
    asked = await client(scheduled.two).create(session.session_id)
    assert (await passing).actions[Action.CHECKPOINT] == 1
    assert (asked.number, asked.state) == (2, READY)
    assert [c.state for c in await client(scheduled.one).of()] == [READY, READY]


async def test_a_checkpoint_that_a_dead_replica_left_is_taken_again(scheduled: World) -> None:
    """The row is FAILED after its lease expired, and another replica saves the session."""
    await counting(scheduled, 1)
    await until_saved(scheduled, 1)
    await sql(
        scheduled.one,
        "UPDATE checkpoints SET state = 'WRITING', ready_time = NULL,"
        " lease_until = now() - interval '1 s'",
    )
    await age(scheduled)
    assert (await due_pass(scheduled.two)).actions[Action.CHECKPOINT] == 1
    assert [c.state for c in await client(scheduled.one).of()] == [READY, FAILED]


@pytest.mark.parametrize("point", ["note.after", "capture.during", "chunk.after", "ready.after"])
async def test_a_replica_killed_while_it_saves_does_no_harm(
    scheduled: World, emulator: Emulator, database_url: str, point: str
) -> None:
    """The session runs on, another replica saves it, and no checkpoint stays incomplete."""
    session = await counting(scheduled, 2)
    await age(scheduled)
    async with serve_containers(config_for(emulator)) as containers:
        dying = await launch(
            ROOST_DATABASE_URL=database_url,
            ROOST_SESSION_LISTEN="127.0.0.1:0",
            ROOST_CONTAINER_TARGET=containers.target,
            ROOST_RECONCILE_INTERVAL="0.1",
            ROOST_LEASE="1",
            ROOST_KILL_AT=f"{point}:1",
        )
        status, _, log = await outcome(dying)
    assert status == -signal.SIGKILL, log
    left = await client(scheduled.one).of()
    assert len(left) == (point != "note.after")
    assert all(c.state == READY for c in left) is (point in ("note.after", "ready.after"))

    async def saved() -> bool:
        await age(scheduled)
        return (await due_pass(scheduled.two)).actions[Action.CHECKPOINT] == 1

    assert await eventually(saved, timeout=PATIENCE)
    newest, *before = await client(scheduled.one).of()
    assert (newest.state, newest.reason) == (READY, SCHEDULE)
    assert all(c.state in (READY, FAILED) for c in before)
    assert (await scheduled.one.start()).outcome == pb.START_OUTCOME_REUSED
    assert await scheduled.counter(session) == "2"


async def test_hanging_applications_leave_slots_to_the_due_pass(
    emulator: Emulator, database_url: str
) -> None:
    """Scheduled checkpoints take half of its slots, and only up to a timeout."""
    async with world(
        emulator,
        database_url,
        checkpoint_every=EVERY,
        reconcile_slots=2,
        start_budget=timedelta(seconds=10),
    ) as roost:
        users = ("wren", "crane", "heron")
        for user in users:
            await roost.one.start(user, spec=slow())
        idle = (await roost.one.start("robin", spec=spec())).session
        await age(roost)
        due = roost.one.running.background.due_pass
        await sql(
            roost.one,
            "UPDATE sessions SET last_active_time = now() - interval '1 hour'"
            " WHERE user_id = 'robin'",
        )
        async with asyncio.timeout(PATIENCE):
            seen: set[Action] = set()
            while Action.WARN not in seen:
                seen.update((await due.shot()).actions)
                await sql(roost.one, "UPDATE sessions SET due_at = now() WHERE user_id = 'robin'")
        assert len(await found(roost, users)) == 1
        assert (await roost.one.get(idle.session_id)).state == pb.Session.STATE_ACTIVE

        async def broken_off() -> bool:
            await due.shot()
            return any(c.state == FAILED for c in await found(roost, users))

        assert await eventually(broken_off, timeout=PATIENCE)


async def found(roost: World, users: Iterable[str]) -> list[Checkpoint]:
    """The checkpoints of these users."""
    return [c for user in users for c in await client(roost.one).of(user)]
