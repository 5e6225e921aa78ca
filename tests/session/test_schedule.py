"""Checkpoints on a schedule: taken while the session goes on, and in nobody's way."""

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
from session_service.domain.keeping import Action
from session_service.storage import schedule, sessions
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
    from session_service.lifecycle.keeper import Kept
    from tests.session.harness import Replica

READY, FAILED = Checkpoint.STATE_READY, Checkpoint.STATE_FAILED
SCHEDULE = Checkpoint.REASON_SCHEDULE
EVERY = timedelta(seconds=1)
#: On a machine that is busy with other things, in s.
PATIENCE = 20.0


@pytest.fixture
async def often(emulator: Emulator, database_url: str) -> AsyncIterator[World]:
    """Two replicas that save what runs once a second."""
    async with world(emulator, database_url, checkpoint_every=EVERY) as running:
        yield running


def slow() -> container_pb.ContainerSpec:
    """Hands 64 KiB out every 200 ms: a save of half a minute, unless something ends it."""
    return large(10_000_000, SLOW_MS="200")


async def kept(replica: Replica) -> Kept:
    """One pass of the keeper, and all that it began."""
    return await replica.running.background.keeper.settle()


async def until_saved(roost: World, number: int) -> Checkpoint:
    """The user's checkpoint of this number once it is READY, by the first replica's keeper."""

    async def saved() -> Checkpoint | None:
        await kept(roost.one)
        shown = await client(roost.one).of()
        return next((c for c in shown if c.number == number and c.state == READY), None)

    made: Checkpoint | None = await eventually(saved, timeout=PATIENCE)
    assert made is not None, f"there is no checkpoint {number}"
    return made


async def until_writing(roost: World) -> asyncio.Task[Kept]:
    """A pass of the first replica's keeper, once it writes a checkpoint."""
    await age(roost)
    passing = asyncio.create_task(kept(roost.one))

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
    """A column of the one session. Any: of every type."""
    return (await sql(roost.one, f"SELECT {column} FROM sessions"))[0][0]


async def age(roost: World, span: str = "1 minute") -> None:
    """Let time pass for the schedule alone, and let the keeper look."""
    columns = ("create_time", "start_time", "checkpoint_time", "checkpoint_try_time")
    back = ", ".join(f"{name} = {name} - %s::interval" for name in columns)
    await sql(roost.one, f"UPDATE sessions SET due_at = now(), {back}", *([span] * len(columns)))


async def test_what_runs_is_saved_each_time_the_interval_has_passed(often: World) -> None:
    """Numbered, for the schedule; the counter runs on, and the session descends from the last."""
    session = await counting(often, 2)
    first = await until_saved(often, 1)
    assert (first.reason, first.kind, first.label) == (SCHEDULE, Checkpoint.KIND_APPLICATION, "")
    assert first.size_bytes == len(b"2\n")
    await often.counter(session, "/click")
    second = await until_saved(often, 2)
    assert second.parent_checkpoint_id == first.checkpoint_id
    assert second.sha256 != first.sha256
    assert second.ready_time.ToDatetime() - first.ready_time.ToDatetime() >= EVERY
    now = await often.one.get(session.session_id)
    assert now.state == pb.Session.STATE_ACTIVE
    assert not now.conditions
    assert str(await row(often, "checkpoint_id")) == second.checkpoint_id
    again = await often.two.start()
    assert again.outcome == pb.START_OUTCOME_REUSED
    assert await often.counter(again.session) == "3"


async def test_a_lost_container_is_restored_from_the_last_one(often: World) -> None:
    """That is what it is for."""
    session = await counting(often, 2)
    await until_saved(often, 1)
    await often.destroy_behind_our_back(session)
    await sql(often.one, "UPDATE sessions SET verified_at = NULL")
    back = await often.one.start()
    assert back.outcome == pb.START_OUTCOME_RESTORED
    assert await often.counter(back.session) == "2"


async def test_any_checkpoint_begins_the_interval_anew(roost: World) -> None:
    """Saved a moment ago by a call, it is not saved again; nor where nothing says how."""
    await set_every(roost, 3600)
    session = await counting(roost, 1)
    other = (await roost.one.start("crane", spec=spec())).session
    await age(roost, "50 minutes")
    await client(roost.one).create(session.session_id)
    await age(roost, "20 minutes")
    await kept(roost.one)
    assert [c.reason for c in await client(roost.one).of()] == [Checkpoint.REASON_REQUESTED]
    await age(roost, "40 minutes")
    assert (await kept(roost.one)).actions[Action.CHECKPOINT] == 1
    assert (await client(roost.one).of())[0].reason == SCHEDULE
    assert not await client(roost.one).of("crane")
    assert (await roost.one.get(other.session_id)).state == pb.Session.STATE_ACTIVE


async def test_a_change_of_the_interval_holds_at_once(roost: World) -> None:
    """The keeper looks right after it, and leaves off where it is taken back."""
    session = await counting(roost, 1)
    await age(roost, "10 minutes")
    await kept(roost.one)
    assert not await client(roost.one).of()
    await set_every(roost, 300)
    assert (await roost.one.get(session.session_id)).policy.checkpoint_every.seconds == 300
    assert (await kept(roost.two)).actions[Action.CHECKPOINT] == 1
    await set_every(roost, 0)
    await age(roost, "10 minutes")
    assert not (await kept(roost.two)).actions[Action.CHECKPOINT]
    assert len(await client(roost.one).of()) == 1


async def test_a_volume_is_saved_as_a_snapshot(often: World) -> None:
    await often.one.start(spec=await mounting(often))
    assert (await until_saved(often, 1)).kind == Checkpoint.KIND_VOLUME


async def test_it_is_no_activity_and_pause_and_warning_come_as_without_it(often: World) -> None:
    """Saved over and over it goes idle all the same; nothing of it is shown as what comes next."""
    session = await counting(often, 2)
    before = await row(often, "last_active_time")
    shown = (await often.one.get(session.session_id)).next_action
    assert shown.action == pb.NextAction.ACTION_PAUSE
    await until_saved(often, 1)
    assert await row(often, "last_active_time") == before
    assert (await often.one.get(session.session_id)).next_action == shown
    request = rpc_pb.ExplainIdleRequest(session_id=session.session_id)
    told = await often.one.stub.ExplainIdle(request, timeout=TIMEOUT)
    assert told.idle_time == shown.time
    assert any("saved every 1 s" in reason for reason in told.reasons)

    async def next_of(**columns: str) -> set[Action]:
        """What the keeper does of a session that is to be saved as well, all its times set back."""
        await age(often)
        moved = ", ".join(f"{name} = {value}" for name, value in columns.items())
        await sql(often.one, f"UPDATE sessions SET {moved}")
        return set((await kept(often.one)).actions)

    warning = "now() - interval '29 minutes 10 seconds'"
    assert Action.WARN in await next_of(last_active_time=warning)
    # Between the warning and the pause there is time for one.
    await until_saved(often, 2)
    idle, warned = "now() - interval '31 minutes'", "now() - interval '90 seconds'"
    assert Action.PAUSE in await next_of(last_active_time=idle, warn_time=warned)
    # At rest nothing more is saved, and what comes back has its memory.
    count = len(await client(often.one).of())
    await age(often)
    assert not (await kept(often.one)).actions[Action.CHECKPOINT]
    assert len(await client(often.one).of()) == count
    back = await often.one.start()
    assert back.outcome == pb.START_OUTCOME_RESUMED
    assert await often.counter(back.session) == "2"


async def test_retention_holds_for_what_is_taken_on_a_schedule(often: World) -> None:
    await set_every(often, 1, keep_checkpoints=2)
    await counting(often, 1)
    for number in (1, 2, 3, 4):
        await age(often)
        await until_saved(often, number)
    assert [c.number for c in await client(often.one).of() if c.state == READY] == [4, 3]


async def test_an_application_that_fails_is_told_of_and_tried_more_and_more_rarely(
    often: World,
) -> None:
    """The session runs on; once its state can be saved again it says nothing more."""
    broken = hooked()
    broken.state_hook.http_path = "/nowhere"
    session = (await often.one.start(spec=broken)).session

    async def told() -> pb.Session | None:
        await kept(often.one)
        found = await often.one.get(session.session_id)
        return found if found.conditions else None

    now = await eventually(told, timeout=PATIENCE)
    assert now is not None
    (condition,) = now.conditions
    assert condition.type == pb.CONDITION_TYPE_CHECKPOINT_FAILED
    assert "STATE_HOOK_FAILED" in condition.message
    assert now.state == pb.Session.STATE_ACTIVE
    assert (await often.two.start()).outcome == pb.START_OUTCOME_REUSED
    tries = len(await client(often.one).of())
    for _ in range(3):
        await sql(often.one, "UPDATE sessions SET due_at = now()")
        assert not (await kept(often.one)).actions[Action.CHECKPOINT]
    assert len(await client(often.one).of()) == tries == 1
    etag = (await often.one.get(session.session_id)).etag
    await age(often, "31 seconds")
    await kept(often.one)
    assert len(await client(often.one).of()) == 2
    # Half a minute was not enough the second time, and it is told once.
    assert (await often.one.get(session.session_id)).etag == etag
    await sql(often.one, "UPDATE sessions SET checkpoint_try_time = now() - interval '5 s'")
    await kept(often.one)
    assert len(await client(often.one).of()) == 2
    await sql(
        often.one,
        "UPDATE sessions SET spec = jsonb_set(spec, '{state_hook,http_path}', '\"/state\"')",
    )
    await age(often, "2 hours")
    assert (await kept(often.one)).actions[Action.CHECKPOINT] == 1
    assert not (await often.one.get(session.session_id)).conditions


async def test_a_checkpoint_that_was_asked_for_ends_what_is_told_of_failures(often: World) -> None:
    """Whoever saved it; what else is told of the session stays."""
    session = await counting(often, 1)
    failed = '["CHECKPOINT_FAILED", "why", "2026-05-01T00:00:00+00:00"]'
    other = '["MEMORY_LOST", "so", "2026-05-01T00:00:00+00:00"]'
    await sql(often.one, "UPDATE sessions SET conditions = %s::jsonb", f"[{failed}, {other}]")
    assert len((await often.one.get(session.session_id)).conditions) == 2
    await client(often.one).create(session.session_id)
    (condition,) = (await often.one.get(session.session_id)).conditions
    assert (condition.type, condition.message) == (pb.CONDITION_TYPE_MEMORY_LOST, "so")


async def test_a_pause_in_the_middle_wins(often: World) -> None:
    """The checkpoint is FAILED, the memory kept, the keeper's place free again, and nothing is told
    of a failure.
    """
    session = (await often.one.start(spec=slow())).session
    passing = await until_writing(often)
    paused = await often.two.pause(session.session_id)
    assert paused.state == pb.Session.STATE_PAUSED
    # Sooner than a save may take: it is looked after.
    async with asyncio.timeout(10):
        assert not (await passing).actions[Action.CHECKPOINT]
    assert [c.state for c in await client(often.one).of()] == [FAILED]
    assert not (await often.one.get(session.session_id)).conditions
    assert (await often.one.start()).outcome == pb.START_OUTCOME_RESUMED


async def test_a_stop_that_saves_takes_its_own(often: World) -> None:
    """Under CHECKPOINT: the one on its schedule gives way, and the session is at rest by a whole
    one.
    """
    await set_every(often, 1, persistence=pb.Policy.PERSISTENCE_CHECKPOINT)
    session = (await often.one.start(spec=large(1_000_000, SLOW_MS="100"))).session
    passing = await until_writing(often)
    stopped = await often.two.stop(session.session_id)
    assert stopped.pause_depth == pb.PAUSE_DEPTH_CHECKPOINT
    async with asyncio.timeout(PATIENCE):
        await passing
    newest, older = await client(often.one).of()
    assert (newest.reason, newest.state) == (Checkpoint.REASON_STOP, READY)
    assert (older.reason, older.state, older.failure) == (SCHEDULE, FAILED, "SUPERSEDED")


async def test_an_end_in_the_middle_wins(often: World) -> None:
    session = (await often.one.start(spec=slow())).session
    passing = await until_writing(often)
    ended = await often.two.end(session.session_id)
    assert ended.state == pb.Session.STATE_ENDED
    async with asyncio.timeout(PATIENCE):
        await passing
    assert [c.state for c in await client(often.one).of()] == [FAILED]


async def test_a_start_in_the_middle_is_reused_and_the_checkpoint_goes_on(often: World) -> None:
    session = (await often.one.start(spec=large(1_000_000, SLOW_MS="100"))).session
    passing = await until_writing(often)
    again = await often.two.start()
    assert again.outcome == pb.START_OUTCOME_REUSED
    assert again.session.session_id == session.session_id
    assert (await passing).actions[Action.CHECKPOINT] == 1
    assert [c.state for c in await client(often.one).of()] == [READY]


async def test_two_replicas_take_one(often: World) -> None:
    """However often both look, each interval has one checkpoint, and none is FAILED for another."""
    await counting(often, 1)
    await until_saved(often, 1)
    for number in (2, 3):
        await age(often)
        passes = await asyncio.gather(*(kept(each) for each in often.replicas * 3))
        assert sum(each.actions[Action.CHECKPOINT] for each in passes) == 1
        shown = await client(often.one).of()
        assert [c.number for c in shown if c.state == READY] == list(range(number, 0, -1))
        assert len(shown) == number


async def test_of_two_that_read_the_same_one_may_save(often: World) -> None:
    """The note is by compare-and-set: also where both held the row to be theirs."""
    session = await counting(often, 1)
    await age(often)
    database = often.one.running.database
    for _ in range(2):
        record = await sessions.find(database, UUID(session.session_id))
        assert record is not None
        both = [schedule.begin(database, record.session, record.now) for _ in range(2)]
        assert sorted(await asyncio.gather(*both)) == [False, True]
        # What was saved since it was read is not saved again, either.
        again = await sessions.find(database, UUID(session.session_id))
        assert again is not None
        await client(often.one).create(session.session_id)
        assert not await schedule.begin(database, again.session, again.now)


async def test_a_checkpoint_that_is_asked_for_waits_for_the_one_on_schedule(often: World) -> None:
    """Both come to be, one after the other, and the interval begins with the later one."""
    session = (await often.one.start(spec=large(1_000_000, SLOW_MS="50"))).session
    passing = await until_writing(often)
    asked = await client(often.two).create(session.session_id)
    assert (await passing).actions[Action.CHECKPOINT] == 1
    assert (asked.number, asked.state) == (2, READY)
    assert [c.state for c in await client(often.one).of()] == [READY, READY]


async def test_what_a_dead_keeper_left_is_taken_anew(often: World) -> None:
    """Its row is FAILED once its lease is over, and another replica saves the session."""
    await counting(often, 1)
    await until_saved(often, 1)
    await sql(
        often.one,
        "UPDATE checkpoints SET state = 'WRITING', ready_time = NULL,"
        " lease_until = now() - interval '1 s'",
    )
    await age(often)
    assert (await kept(often.two)).actions[Action.CHECKPOINT] == 1
    assert [c.state for c in await client(often.one).of()] == [READY, FAILED]


@pytest.mark.parametrize("point", ["note.after", "capture.during", "chunk.after", "ready.after"])
async def test_a_replica_killed_while_it_saves_harms_nothing(
    often: World, emulator: Emulator, database_url: str, point: str
) -> None:
    """The session runs on, and another replica saves it; nothing stays half written."""
    session = await counting(often, 2)
    await age(often)
    async with serve_containers(config_for(emulator)) as containers:
        dying = await launch(
            ROOST_DATABASE_URL=database_url,
            ROOST_SESSION_LISTEN="127.0.0.1:0",
            ROOST_CONTAINER_TARGET=containers.target,
            ROOST_KEEPER_INTERVAL="0.1",
            ROOST_LEASE="1",
            ROOST_KILL_AT=f"{point}:1",
        )
        status, _, log = await outcome(dying)
    assert status == -signal.SIGKILL, log
    left = await client(often.one).of()
    assert len(left) == (point != "note.after")
    assert all(c.state == READY for c in left) is (point in ("note.after", "ready.after"))

    async def saved() -> bool:
        await age(often)
        return (await kept(often.two)).actions[Action.CHECKPOINT] == 1

    assert await eventually(saved, timeout=PATIENCE)
    newest, *before = await client(often.one).of()
    assert (newest.state, newest.reason) == (READY, SCHEDULE)
    assert all(c.state in (READY, FAILED) for c in before)
    assert (await often.one.start()).outcome == pb.START_OUTCOME_REUSED
    assert await often.counter(session) == "2"


async def test_applications_that_hang_leave_the_keeper_places(
    emulator: Emulator, database_url: str
) -> None:
    """Half of its slots, and not for ever."""
    async with world(
        emulator,
        database_url,
        checkpoint_every=EVERY,
        keeper_slots=2,
        start_budget=timedelta(seconds=6),
    ) as roost:
        users = ("wren", "crane", "heron")
        for user in users:
            await roost.one.start(user, spec=slow())
        resting = (await roost.one.start("robin", spec=spec())).session
        await age(roost)
        keeper = roost.one.running.background.keeper
        await sql(
            roost.one,
            "UPDATE sessions SET last_active_time = now() - interval '1 hour'"
            " WHERE user_id = 'robin'",
        )
        async with asyncio.timeout(PATIENCE):
            seen: set[Action] = set()
            while Action.WARN not in seen:
                seen.update((await keeper.shot()).actions)
                await sql(roost.one, "UPDATE sessions SET due_at = now() WHERE user_id = 'robin'")
        assert len(await found(roost, users)) == 1
        assert (await roost.one.get(resting.session_id)).state == pb.Session.STATE_ACTIVE

        async def broken_off() -> bool:
            await keeper.shot()
            return any(c.state == FAILED for c in await found(roost, users))

        assert await eventually(broken_off, timeout=PATIENCE)


async def found(roost: World, users: Iterable[str]) -> list[Checkpoint]:
    """The checkpoints of these users."""
    return [c for user in users for c in await client(roost.one).of(user)]
