"""RECREATE_KEEPING_FILES by a checkpoint: another spec, the same state hook, the state kept."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from roost.container.v1 import container_service_pb2 as container_pb
from roost.session.v1 import session_pb2 as pb
from roost.session.v1 import session_service_pb2 as rpc_pb
from tests.container.harness import failing
from tests.eventually import eventually
from tests.session.harness import TIMEOUT, key, request_id, spec, world
from tests.session.saving import Checkpoint, client, counting, execute, flip, hooked, large
from tests.session.test_choices import offered

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from local.fly.emulator import Emulator
    from tests.session.harness import World

ACTIVE = pb.Session.STATE_ACTIVE
PAUSED = pb.Session.STATE_PAUSED
#: The settings of a replica. Any: settings of every type.
RECREATE: dict[str, Any] = {"on_fingerprint_change": "recreate_keeping_files"}
WANTED = hooked(A="2")
RESTORED = (pb.START_OUTCOME_RESTORED, pb.CONTINUITY_CHECKPOINT, True)


@pytest.fixture
async def recreating(emulator: Emulator, database_url: str) -> AsyncIterator[World]:
    """Two replicas whose policy recreates the container for a changed spec."""
    async with world(emulator, database_url, **RECREATE) as running:
        yield running


def claims(answer: Any) -> tuple[Any, ...]:
    """Outcome, continuity, and whether it is verified. Any: answers of starts and of resumes."""
    return answer.outcome, answer.continuity, answer.continuity_verified


def conditions(session: pb.Session) -> list[int]:
    """The types of the session's conditions."""
    return [condition.type for condition in session.conditions]


def tried(answer: Any) -> list[tuple[str, str, int]]:
    """Each attempt's rung, reason and checkpoint number. Any: of starts and decisions."""
    return [
        (pb.Rung.Name(each.rung).removeprefix("RUNG_"), each.reason, each.checkpoint_number)
        for each in answer.attempts
    ]


# --- the container exists ------------------------------------------------------------------------


@pytest.mark.parametrize("before", ["running", "suspended", "stopped"])
async def test_a_container_is_recreated_with_its_applications_state(
    recreating: World, before: str
) -> None:
    """The same session, next generation, new spec, old count, one machine. A suspended container is
    resumed first, so that its memory is part of the saved state.
    """
    session = await counting(recreating, 2, A="1", COUNTER_FILE="" if before != "stopped" else "c")
    if before != "running":
        depth = pb.PAUSE_DEPTH_STOPPED if before == "stopped" else pb.PAUSE_DEPTH_SUSPENDED
        await recreating.one.pause(session.session_id, depth=depth)
    preview = rpc_pb.PreviewStartRequest(start=rpc_pb.StartSessionRequest(key=key(), spec=WANTED))
    seen = await recreating.one.stub.PreviewStart(preview, timeout=TIMEOUT)
    assert (seen.outcome, seen.expected_continuity) == RESTORED[:2]
    assert list(seen.rungs) == [pb.RUNG_RESTORE]
    assert await recreating.committed("destroy") == 0

    answer = await recreating.two.start(spec=WANTED)
    assert claims(answer) == RESTORED
    assert tried(answer) == [("RESTORE", "CHECKPOINT_RESTORED", 1)]
    assert (answer.session.session_id, answer.session.generation) == (session.session_id, 2)
    assert answer.session.fingerprint != session.fingerprint
    assert await recreating.counter(answer.session) == "2"
    assert await recreating.in_guest(answer.session, "sh", "-c", "echo $A") == "2\n"
    (taken,) = await client(recreating.one).of()
    assert (taken.reason, taken.state) == (Checkpoint.REASON_RECREATE, Checkpoint.STATE_READY)
    assert taken.fingerprint == session.fingerprint
    assert await recreating.committed("destroy", session.session_id) == 1
    assert await recreating.committed("create", session.session_id) == 2
    lost = [pb.CONDITION_TYPE_MEMORY_LOST] if before == "stopped" else []
    assert conditions(answer.session) == lost
    again = await recreating.one.start(spec=WANTED)
    assert (again.outcome, again.session.generation) == (pb.START_OUTCOME_REUSED, 2)


async def test_a_container_saved_before_it_was_stopped_is_not_started_again(
    emulator: Emulator, database_url: str
) -> None:
    """`checkpoint_after`: its memory is in the checkpoint alone, which is restored."""
    hour = timedelta(hours=1)
    policy = {**RECREATE, "deepen_after": hour, "checkpoint_after": 2 * hour}
    async with world(emulator, database_url, 1, **policy) as roost:
        session = await counting(roost, 2, A="1")
        await roost.one.pause(session.session_id)
        execute(
            database_url,
            "UPDATE sessions SET pause_time = now() - interval '61 minutes', due_at = now()",
        )
        await roost.one.running.background.due_pass.settle()
        shown = await roost.one.get(session.session_id)
        assert shown.pause_depth == pb.PAUSE_DEPTH_STOPPED
        answer = await roost.one.start(spec=WANTED)
        assert claims(answer) == RESTORED
        assert not answer.session.conditions, "nothing was lost"
        assert await roost.counter(answer.session) == "2"
        (taken,) = await client(roost.one).of()
        assert taken.reason == Checkpoint.REASON_IDLE


async def test_a_session_paused_to_a_checkpoint_is_restored_into_the_new_spec(
    emulator: Emulator, database_url: str
) -> None:
    """No container is left to save: the session's checkpoint is restored into the new one."""
    policy: dict[str, Any] = {
        "on_fingerprint_change": "recreate_keeping_files",
        "persistence": "checkpoint",
    }
    async with world(emulator, database_url, **policy) as roost:
        session = await counting(roost, 2, A="1")
        await roost.one.stop(session.session_id)
        answer = await roost.two.start(spec=WANTED, min_continuity=pb.CONTINUITY_CHECKPOINT)
        assert claims(answer) == RESTORED
        assert not answer.session.conditions
        assert await roost.counter(answer.session) == "2"
        assert await roost.in_guest(answer.session, "sh", "-c", "echo $A") == "2\n"
        (taken,) = await client(roost.one).of()
        assert taken.reason == Checkpoint.REASON_STOP
        assert await roost.committed("destroy", session.session_id) == 1


@pytest.mark.parametrize("known", [False, True])
async def test_a_lost_container_is_reported_and_the_newest_checkpoint_restored(
    recreating: World, known: bool
) -> None:
    """The start itself finds it lost, or an earlier one did."""
    session = await counting(recreating, 1, A="1")
    await client(recreating.one).create(session.session_id)
    await recreating.counter(session, "/click")
    await recreating.one.stop(session.session_id)
    await recreating.destroy_behind_our_back(session)
    if known:
        await failing(recreating.one.start(min_continuity=pb.CONTINUITY_MEMORY))
    answer = await recreating.two.start(spec=WANTED)
    assert claims(answer) == RESTORED
    assert conditions(answer.session) == [pb.CONDITION_TYPE_CONTAINER_LOST]
    assert await recreating.counter(answer.session) == "1"
    assert tried(answer)[-1] == ("RESTORE", "CHECKPOINT_RESTORED", 1)


async def test_a_lost_container_without_a_checkpoint_is_recreated_empty(
    recreating: World,
) -> None:
    """CREATED and NONE, with the loss reported; with min_continuity the start fails."""
    session = await counting(recreating, 1, A="1")
    await recreating.destroy_behind_our_back(session)
    failure = await failing(
        recreating.one.start(spec=WANTED, min_continuity=pb.CONTINUITY_CHECKPOINT)
    )
    assert failure.reason == "CONTINUITY_UNAVAILABLE"
    answer = await recreating.two.start(spec=WANTED)
    assert claims(answer) == (pb.START_OUTCOME_CREATED, pb.CONTINUITY_NONE, True)
    assert conditions(answer.session) == [pb.CONDITION_TYPE_CONTAINER_LOST]
    assert answer.session.session_id == session.session_id


async def test_memory_lost_before_the_save_is_reported(recreating: World) -> None:
    """The snapshot is dropped: the state of a cold boot is saved, and the answer reports it."""
    session = await counting(recreating, 2, A="1")
    await recreating.one.pause(session.session_id)
    await recreating.admin.set_fault("snapshot_dropped")
    answer = await recreating.one.start(spec=WANTED)
    assert claims(answer) == RESTORED
    assert conditions(answer.session) == [pb.CONDITION_TYPE_MEMORY_LOST]
    again = await recreating.two.start(spec=WANTED)
    assert (again.outcome, again.continuity) == (pb.START_OUTCOME_REUSED, pb.CONTINUITY_MEMORY)


# --- rejected starts -----------------------------------------------------------------------------


@pytest.mark.parametrize("least", [pb.CONTINUITY_FILESYSTEM, pb.CONTINUITY_MEMORY])
async def test_more_continuity_than_a_checkpoint_keeps_is_rejected(
    recreating: World, least: pb.Continuity.ValueType
) -> None:
    """CONTINUITY_UNAVAILABLE, before any change."""
    session = await counting(recreating, 2, A="1")
    failure = await failing(recreating.one.start(spec=WANTED, min_continuity=least))
    assert failure.reason == "CONTINUITY_UNAVAILABLE"
    assert await client(recreating.one).of() == []
    assert (await recreating.one.get(session.session_id)).state == ACTIVE
    answer = await recreating.one.start(spec=WANTED, min_continuity=pb.CONTINUITY_CHECKPOINT)
    assert claims(answer) == RESTORED


@pytest.mark.parametrize("hook", [None, container_pb.StateHook(http_path="/other")])
async def test_another_hook_or_none_cannot_restore_the_state(
    recreating: World, hook: container_pb.StateHook | None
) -> None:
    """Only the same hook can restore the old container's state: FINGERPRINT_CHANGED."""
    session = await counting(recreating, 2, A="1")
    failure = await failing(recreating.one.start(spec=spec(env={"A": "2"}, state_hook=hook)))
    assert (failure.reason, failure.metadata["parts"]) == ("FINGERPRINT_CHANGED", "env")
    assert "state hook" in failure.message
    assert await recreating.counter(session) == "2"


@pytest.mark.parametrize("paused", [False, True])
async def test_where_saving_fails_nothing_is_destroyed(recreating: World, paused: bool) -> None:
    """The start fails with the hook's error. The session is as before, with its memory."""
    hook = container_pb.StateHook(http_path="/nowhere")
    session = (await recreating.one.start(spec=spec(env={"A": "1"}, state_hook=hook))).session
    await recreating.click_twice(session)
    if paused:
        await recreating.one.pause(session.session_id)
    wanted = spec(env={"A": "2"}, state_hook=hook)
    failure = await failing(recreating.one.start(spec=wanted))
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "STATE_HOOK_FAILED",
    )
    assert "the container is kept" in failure.message
    assert await recreating.committed("destroy") == 0
    shown = await recreating.until_state(session.session_id, PAUSED if paused else ACTIVE)
    assert (shown.generation, shown.fingerprint) == (1, session.fingerprint)
    (decision,) = [d for d in await recreating.one.decisions(session.session_id) if d.attempts][:1]
    assert tried(decision) == [("RESTORE", "STATE_HOOK_FAILED", 0)]
    answer = await recreating.one.start()
    outcome = pb.START_OUTCOME_RESUMED if paused else pb.START_OUTCOME_REUSED
    assert (answer.outcome, answer.continuity) == (outcome, pb.CONTINUITY_MEMORY)
    assert await recreating.counter(answer.session) == "2"


async def test_a_provider_that_is_down_leaves_the_session_running(recreating: World) -> None:
    """UNAVAILABLE; a start succeeds once the provider answers again."""
    session = await counting(recreating, 2, A="1")
    await recreating.admin.set_fault("unavailable", times=None)
    failure = await failing(recreating.one.start(spec=WANTED))
    assert failure.code is grpc.StatusCode.UNAVAILABLE
    assert (await recreating.one.get(session.session_id)).state == ACTIVE
    await recreating.admin.clear_faults()
    answer = await recreating.two.start(spec=WANTED)
    assert claims(answer) == RESTORED
    assert await recreating.counter(answer.session) == "2"


async def test_a_choice_offers_the_continuity_that_continue_would_keep(
    emulator: Emulator, database_url: str
) -> None:
    """ASK: CONTINUE offers CHECKPOINT where the wanted spec would cost the memory. A choice of an
    offer of memory fails, and loses no memory, if it asks for another spec.
    """
    policy = {**RECREATE, "persistence": "ask"}
    async with world(emulator, database_url, 1, **policy) as roost:
        session = await counting(roost, 2, A="1")

        async def going_on(**fields: Any) -> rpc_pb.Candidate:
            """The offered CONTINUE, which a preview shows too. Any: fields of a start."""
            found = (await offered(roost.one.start(**fields)))[rpc_pb.CHOICE_CONTINUE]
            start = rpc_pb.StartSessionRequest(key=key(), **fields)
            preview = rpc_pb.PreviewStartRequest(start=start)
            seen = (await roost.one.stub.PreviewStart(preview, timeout=TIMEOUT)).candidates[0]
            assert seen.expected_continuity == found.expected_continuity
            return found

        found = await going_on()
        assert found.expected_continuity == pb.CONTINUITY_MEMORY
        failure = await failing(roost.one.start(spec=WANTED, choice_token=found.choice_token))
        assert failure.reason == "CHOICE_STALE"
        assert (await roost.one.get(session.session_id)).generation == 1
        found = await going_on(spec=WANTED)
        assert found.expected_continuity == pb.CONTINUITY_CHECKPOINT
        answer = await roost.one.start(spec=WANTED, choice_token=found.choice_token)
        assert claims(answer) == RESTORED
        assert await roost.counter(answer.session) == "2"


# --- failures after the old container was destroyed ----------------------------------------------


@pytest.mark.parametrize("new_spec", [False, True])
async def test_a_container_that_cannot_be_destroyed_yet_never_runs_beside_another(
    emulator: Emulator, database_url: str, new_spec: bool
) -> None:
    """Its state is saved, so the next start destroys it first and then restores, with the old spec
    or with the wanted one.
    """
    quick = {**RECREATE, "start_budget": timedelta(seconds=8)}
    async with world(emulator, database_url, **quick) as roost:
        session = await counting(roost, 2, A="1")
        await roost.admin.set_fault("server_error", action="destroy", times=None)
        failure = await failing(roost.one.start(spec=WANTED))
        assert failure.code is grpc.StatusCode.UNAVAILABLE
        shown = await roost.one.get(session.session_id)
        assert (shown.state, shown.pause_depth) == (PAUSED, pb.PAUSE_DEPTH_CHECKPOINT)
        assert shown.fingerprint == session.fingerprint
        assert await roost.provider_state(session) == "started"
        await roost.admin.clear_faults()
        await roost.free_lease(session)
        answer = await roost.two.start(spec=WANTED if new_spec else None)
        assert claims(answer) == RESTORED
        assert not answer.session.conditions
        assert await roost.counter(answer.session) == "2"
        assert await roost.in_guest(answer.session, "sh", "-c", "echo $A") == f"{1 + new_spec}\n"
        assert await roost.committed("destroy", session.session_id) == 1
        assert len(await client(roost.one).of()) == 1


async def test_a_state_that_the_new_container_rejects_is_not_lost(recreating: World) -> None:
    """The checkpoint is kept and the next start restores from it. The old spec restores
    the old state again.
    """
    old = large(1000)
    session = (await recreating.one.start(spec=old)).session
    before = await recreating.counter(session)
    for _ in range(2):
        failure = await failing(recreating.one.start(spec=hooked()))
        assert failure.reason == "STATE_HOOK_FAILED"
        shown = await recreating.one.get(session.session_id)
        assert (shown.state, shown.pause_depth) == (PAUSED, pb.PAUSE_DEPTH_CHECKPOINT)
        assert shown.expected_continuity == pb.CONTINUITY_CHECKPOINT
    assert (await failing(recreating.two.start())).reason == "STATE_HOOK_FAILED"
    back = await recreating.two.start(spec=old)
    assert claims(back) == RESTORED
    assert back.session.fingerprint == session.fingerprint
    assert await recreating.counter(back.session) == before
    assert len(await client(recreating.one).of()) == 1
    created = await recreating.committed("create", session.session_id)
    assert await recreating.committed("destroy", session.session_id) == created - 1


async def test_a_missing_image_loses_nothing(recreating: World) -> None:
    """The start fails after the old container was destroyed; the old spec restores the state."""
    session = await counting(recreating, 2, A="1")
    wanted = container_pb.ContainerSpec(image="roost/none", state_hook=hooked().state_hook)
    failure = await failing(recreating.one.start(spec=wanted))
    assert failure.reason == "PROVIDER_REFUSED"
    shown = await recreating.one.get(session.session_id)
    assert (shown.state, shown.pause_depth) == (PAUSED, pb.PAUSE_DEPTH_CHECKPOINT)
    back = await recreating.one.start(spec=hooked(A="1"))
    assert claims(back) == RESTORED
    assert await recreating.counter(back.session) == "2"


async def test_a_checkpoint_damaged_in_between_gives_way_to_an_older_one(
    emulator: Emulator, database_url: str
) -> None:
    """The same fallback as at every start."""
    policy: dict[str, Any] = {
        "on_fingerprint_change": "recreate_keeping_files",
        "persistence": "checkpoint",
    }
    async with world(emulator, database_url, 1, **policy) as roost:
        session = await counting(roost, 1, A="1")
        await client(roost.one).create(session.session_id)
        await roost.counter(session, "/click")
        await roost.one.stop(session.session_id)
        newest, _ = await client(roost.one).of()
        flip(database_url, newest.checkpoint_id)
        answer = await roost.one.start(spec=WANTED)
        assert tried(answer) == [
            ("RESTORE", "CHECKPOINT_CORRUPT", 2),
            ("RESTORE", "CHECKPOINT_RESTORED", 1),
        ]
        assert await roost.counter(answer.session) == "1"


# --- several at once, and versions ---------------------------------------------------------------


async def test_starts_of_the_same_new_spec_join(recreating: World) -> None:
    """One of them recreates the container and others join. Then two starts of two further specs
    recreate it once each.
    """
    session = await counting(recreating, 2, A="1")
    starts = [recreating.replicas[n % 2].start(spec=WANTED) for n in range(6)]
    answers = await asyncio.gather(*starts)
    assert {answer.session.generation for answer in answers} == {2}
    assert {answer.outcome for answer in answers} <= {
        pb.START_OUTCOME_RESTORED,
        pb.START_OUTCOME_REUSED,
    }
    assert sum(answer.joined for answer in answers) >= 1
    assert await recreating.committed("create", session.session_id) == 2
    both = (recreating.one.start(spec=hooked(A=value)) for value in ("3", "4"))
    for answer in await asyncio.gather(*both):
        assert claims(answer) == RESTORED
    shown = await recreating.one.get(session.session_id)
    assert shown.generation == 4
    assert await recreating.counter(shown) == "2"


async def test_a_failed_save_is_shared_by_starts_of_the_same_spec(
    emulator: Emulator, database_url: str
) -> None:
    """The waiting starts do not save again after one of them failed to."""
    small = {**RECREATE, "checkpoint_database_limit": 150_000}
    async with world(emulator, database_url, **small) as roost:
        # Others must have come before it has failed: after six seconds.
        slow = {"SLOW_MS": "2000"}
        session = (await roost.one.start(spec=large(200_000, **slow))).session
        before = await roost.counter(session)
        wanted = large(200_000, "other", **slow)
        leader = asyncio.create_task(failing(roost.one.start(spec=wanted)))

        async def writing() -> bool:
            return bool(execute(database_url, "SELECT 1 FROM checkpoints"))

        assert await eventually(writing)
        others = [failing(each.start(spec=wanted)) for each in roost.replicas * 2]
        refusals = await asyncio.gather(leader, *others)
        assert {refusal.reason for refusal in refusals} == {"CHECKPOINT_TOO_LARGE"}
        (taken,) = await client(roost.one).of()
        assert taken.state == Checkpoint.STATE_FAILED
        assert await roost.counter(session) == before


async def test_one_request_is_executed_once(recreating: World) -> None:
    """The same request id, concurrently and later."""
    session = await counting(recreating, 1, A="1")
    once = request_id()
    calls = [r.start(spec=WANTED, request_id=once) for r in recreating.replicas * 2]
    answers = await asyncio.gather(*calls)
    assert len({answer.decision_id for answer in answers}) == 1
    assert len(await client(recreating.one).of()) == 1
    assert await recreating.committed("create", session.session_id) == 2


async def test_a_volume_that_both_mount_takes_precedence_over_the_hook(
    recreating: World, database_url: str
) -> None:
    """A volume keeps more than a checkpoint does, so none is taken."""
    from tests.session.test_policies import fly, mounted

    volume = await fly(recreating, "/volumes", {"name": "data", "region": "iad", "size_gb": 1})
    hook = hooked().state_hook
    first = mounted(str(volume["id"]), env={"A": "1"}, state_hook=hook)
    await recreating.one.start(spec=first)
    wanted = mounted(str(volume["id"]), env={"A": "2"}, state_hook=hook)
    answer = await recreating.one.start(spec=wanted)
    assert (answer.outcome, answer.continuity) == (
        pb.START_OUTCOME_CREATED,
        pb.CONTINUITY_FILESYSTEM,
    )
    assert execute(database_url, "SELECT count(*) FROM checkpoints") == [(0,)]
