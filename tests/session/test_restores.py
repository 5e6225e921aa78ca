"""Restored state: the RESTORE rung, stops that save, rollbacks, forks."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from roost.container.v1 import container_service_pb2 as container_pb
from roost.session.v1 import session_pb2 as pb
from roost.session.v1 import session_service_pb2 as rpc_pb
from tests.container.harness import APP, TOKEN, failing
from tests.eventually import eventually
from tests.session.ageing import IDLE, WARNING, make_idle, touch
from tests.session.harness import request_id, spec, world
from tests.session.saving import Checkpoint, client, counting, execute, flip, large

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from local.fly.emulator import Emulator
    from tests.session.harness import World

pytestmark = pytest.mark.replicas(1)

ACTIVE = pb.Session.STATE_ACTIVE
PAUSED = pb.Session.STATE_PAUSED


@pytest.fixture
async def saving(emulator: Emulator, database_url: str) -> AsyncIterator[World]:
    """Two replicas whose policy saves the state and destroys the container at every stop."""
    async with world(emulator, database_url, persistence="checkpoint") as running:
        yield running


def numbers(answer: Any) -> list[tuple[str, str, int]]:
    """Each attempt's rung, reason and checkpoint number. Any: answers of several calls."""
    return [
        (pb.Rung.Name(each.rung).removeprefix("RUNG_"), each.reason, each.checkpoint_number)
        for each in answer.attempts
    ]


# --- stops that save -----------------------------------------------------------------------------


async def test_a_stop_saves_and_destroys_and_a_start_restores(saving: World) -> None:
    """CHECKPOINT: no machine is left after a stop, and a start restores the counter."""
    session = await counting(saving, 2)
    await saving.calls()
    stopped = await saving.one.stop(session.session_id)
    assert await saving.calls() == ["get", "lease", "destroy", "wait"]
    assert (stopped.state, stopped.pause_depth) == (PAUSED, pb.PAUSE_DEPTH_CHECKPOINT)
    assert stopped.expected_continuity == pb.CONTINUITY_CHECKPOINT
    assert not stopped.conditions
    assert await saving.committed("destroy", session.session_id) == 1
    assert await saving.committed("suspend") == 0
    (taken,) = await client(saving.one).of()
    assert (taken.reason, taken.state) == (Checkpoint.REASON_STOP, Checkpoint.STATE_READY)
    again = await saving.one.stop(session.session_id)
    assert again.etag == stopped.etag, "a second stop changes nothing"

    await saving.calls()
    answer = await saving.two.start()
    assert await saving.calls() == ["create", "wait", "exec", "get"]
    assert (answer.outcome, answer.continuity, answer.continuity_verified) == (
        pb.START_OUTCOME_RESTORED,
        pb.CONTINUITY_CHECKPOINT,
        True,
    )
    assert answer.session.session_id == session.session_id
    assert answer.session.generation == 2
    assert not answer.session.conditions, "nothing was lost"
    assert numbers(answer) == [("RESTORE", "CHECKPOINT_RESTORED", 1)]
    assert await saving.counter(answer.session) == "2"
    assert (await saving.one.start()).outcome == pb.START_OUTCOME_REUSED


async def test_a_stop_that_cannot_save_keeps_the_container(saving: World) -> None:
    """It is suspended with its memory and files. A condition and the answer give the reason."""
    session = (await saving.one.start(spec=spec())).session
    await saving.click_twice(session)
    stopped = await saving.one.stop(session.session_id)
    assert (stopped.state, stopped.pause_depth) == (PAUSED, pb.PAUSE_DEPTH_SUSPENDED)
    (condition,) = stopped.conditions
    assert condition.type == pb.CONDITION_TYPE_CHECKPOINT_FAILED
    assert "CHECKPOINT_UNSUPPORTED" in condition.message
    assert await saving.committed("destroy") == 0
    answer = await saving.one.start()
    assert answer.outcome == pb.START_OUTCOME_RESUMED
    assert answer.continuity == pb.CONTINUITY_MEMORY
    assert not answer.session.conditions
    assert await saving.counter(answer.session) == "2"


async def test_a_suspended_session_is_resumed_to_be_saved(saving: World) -> None:
    """A pause suspended it, then a stop resumes it, saves it with its memory, and destroys it."""
    session = await counting(saving, 2)
    await saving.one.pause(session.session_id, depth=pb.PAUSE_DEPTH_SUSPENDED)
    stopped = await saving.one.stop(session.session_id)
    assert stopped.pause_depth == pb.PAUSE_DEPTH_CHECKPOINT
    answer = await saving.one.start()
    assert answer.outcome == pb.START_OUTCOME_RESTORED
    assert await saving.counter(answer.session) == "2"


async def test_checkpoint_on_stop_saves_and_still_suspends(roost: World) -> None:
    """HIBERNATE with checkpoint_on_stop: memory at the next start, or state if memory is lost."""
    from google.protobuf.field_mask_pb2 import FieldMask

    from roost.session.v1 import policy_service_pb2 as policy_pb
    from roost.session.v1.policy_service_pb2_grpc import PolicyServiceStub

    await PolicyServiceStub(roost.one.channel).UpdateProjectPolicy(
        policy_pb.UpdateProjectPolicyRequest(
            project_id="nest",
            policy=pb.Policy(checkpoint_on_stop=True),
            update_mask=FieldMask(paths=["checkpoint_on_stop"]),
        ),
        timeout=30,
    )
    session = await counting(roost, 2)
    stopped = await roost.one.stop(session.session_id)
    assert stopped.pause_depth == pb.PAUSE_DEPTH_SUSPENDED
    assert stopped.expected_continuity == pb.CONTINUITY_MEMORY
    (taken,) = await client(roost.one).of()
    assert taken.reason == Checkpoint.REASON_STOP
    await roost.destroy_behind_our_back(session)
    answer = await roost.one.start()
    assert answer.outcome == pb.START_OUTCOME_RESTORED
    assert [c.type for c in answer.session.conditions] == [pb.CONDITION_TYPE_CONTAINER_LOST]
    assert await roost.counter(answer.session) == "2"


async def test_an_ended_session_that_was_saved_can_be_undeleted(saving: World) -> None:
    """Undelete within the grace period without a container; not after a purge."""
    session = await counting(saving, 2)
    await saving.one.stop(session.session_id)
    ended = await saving.one.end(session.session_id)
    assert ended.state == pb.Session.STATE_ENDED
    back = await saving.two.undelete(session.session_id)
    assert (back.state, back.pause_depth) == (PAUSED, pb.PAUSE_DEPTH_CHECKPOINT)
    answer = await saving.one.start()
    assert answer.outcome == pb.START_OUTCOME_RESTORED
    assert await saving.counter(answer.session) == "2"
    await saving.one.stop(session.session_id)
    await saving.one.end(session.session_id, now=True)
    failure = await failing(saving.one.undelete(session.session_id))
    assert failure.reason == "SESSION_STATE_CONFLICT"
    assert await client(saving.one).of(), "its checkpoints are kept, for forks"


# --- the rung ------------------------------------------------------------------------------------


async def test_a_lost_container_is_restored(roost: World) -> None:
    """HIBERNATE: the machine is destroyed past Roost, and an earlier checkpoint exists."""
    session = await counting(roost, 2)
    await client(roost.one).create(session.session_id)
    await roost.counter(session, "/click")
    await roost.one.stop(session.session_id)
    await roost.destroy_behind_our_back(session)
    answer = await roost.one.start(min_continuity=pb.CONTINUITY_CHECKPOINT)
    assert answer.outcome == pb.START_OUTCOME_RESTORED
    assert numbers(answer)[-1] == ("RESTORE", "CHECKPOINT_RESTORED", 1)
    assert await roost.counter(answer.session) == "2"


async def test_a_damaged_checkpoint_gives_way_to_the_next_older(
    saving: World, database_url: str
) -> None:
    """The attempts name it and it is FAILED from then on; the one before it is restored."""
    session = await counting(saving, 1)
    saved = client(saving.one)
    for clicks in (2, 3):
        await saved.create(session.session_id)
        assert await saving.counter(session, "/click") == str(clicks)
    await saving.one.stop(session.session_id)
    taken = await saved.of()
    assert [each.number for each in taken] == [3, 2, 1]
    for each in taken[:2]:
        flip(database_url, each.checkpoint_id)
    answer = await saving.one.start()
    assert numbers(answer) == [
        ("RESTORE", "CHECKPOINT_CORRUPT", 3),
        ("RESTORE", "CHECKPOINT_CORRUPT", 2),
        ("RESTORE", "CHECKPOINT_RESTORED", 1),
    ]
    assert await saving.counter(answer.session) == "1"
    shown = {each.number: each.state for each in await saved.of()}
    assert shown == {
        3: Checkpoint.STATE_FAILED,
        2: Checkpoint.STATE_FAILED,
        1: Checkpoint.STATE_READY,
    }
    (decision,) = [d for d in await saving.one.decisions(session.session_id) if d.attempts][:1]
    assert numbers(decision) == numbers(answer)


async def test_without_a_sound_checkpoint_min_continuity_decides(
    saving: World, database_url: str
) -> None:
    """CONTINUITY_UNAVAILABLE and nothing created; without it a new container, with NONE."""
    session = await counting(saving, 2)
    await saving.one.stop(session.session_id)
    (taken,) = await client(saving.one).of()
    flip(database_url, taken.checkpoint_id)
    failure = await failing(saving.one.start(min_continuity=pb.CONTINUITY_CHECKPOINT))
    assert failure.reason == "CONTINUITY_UNAVAILABLE"
    assert await saving.committed("create", session.session_id) == 1
    shown = await saving.one.get(session.session_id)
    assert (shown.state, shown.expected_continuity) == (PAUSED, pb.CONTINUITY_NONE)
    answer = await saving.one.start()
    assert (answer.outcome, answer.continuity) == (pb.START_OUTCOME_CREATED, pb.CONTINUITY_NONE)
    assert answer.session.session_id == session.session_id
    assert await saving.counter(answer.session) == "0"


async def test_a_preview_shows_what_a_start_would_restore(saving: World) -> None:
    """RESTORED is expected, and nothing changes."""
    from tests.session.harness import key

    session = await counting(saving, 2)
    await saving.one.stop(session.session_id)
    await saving.calls()
    request = rpc_pb.PreviewStartRequest(start=rpc_pb.StartSessionRequest(key=key()))
    preview = await saving.one.stub.PreviewStart(request, timeout=30)
    assert preview.outcome == pb.START_OUTCOME_RESTORED
    assert list(preview.rungs) == [pb.RUNG_RESTORE, pb.RUNG_CREATE]
    assert preview.expected_continuity == pb.CONTINUITY_CHECKPOINT
    assert await saving.calls() == []


async def test_memory_cannot_be_had_of_a_session_paused_to_a_checkpoint(saving: World) -> None:
    """min_continuity above CHECKPOINT fails before anything is created."""
    session = await counting(saving, 2)
    await saving.one.stop(session.session_id)
    failure = await failing(saving.one.start(min_continuity=pb.CONTINUITY_FILESYSTEM))
    assert failure.reason == "CONTINUITY_UNAVAILABLE"
    assert await saving.committed("create", session.session_id) == 1


async def test_no_start_returns_a_container_whose_restore_failed(saving: World) -> None:
    """The new container runs, and its application rejects the state: UNAVAILABLE. The session stays
    paused to its checkpoint, and the next start restores the state into the same container.
    """
    session = (await saving.one.start(spec=large(1000, REFUSE="1"))).session
    before = await saving.counter(session)
    await saving.one.stop(session.session_id)
    failure = await failing(saving.one.start())
    assert failure.code is grpc.StatusCode.UNAVAILABLE
    shown = await saving.one.get(session.session_id)
    assert (shown.state, shown.pause_depth) == (PAUSED, pb.PAUSE_DEPTH_CHECKPOINT)
    assert shown.expected_continuity == pb.CONTINUITY_CHECKPOINT
    answer = await saving.two.start()
    assert answer.outcome == pb.START_OUTCOME_RESTORED
    assert await saving.counter(answer.session) == before
    assert await saving.committed("create", session.session_id) == 2


async def test_a_container_that_took_no_state_is_not_recorded_as_active(
    emulator: Emulator, database_url: str
) -> None:
    """It runs without the user's state: an inventory pass has it destroyed; no start uses it."""
    quick = {"persistence": "checkpoint", "lag_window": timedelta(0)}
    async with world(emulator, database_url, 1, **quick) as roost:
        session = (await roost.one.start(spec=large(1000, REFUSE="1"))).session
        before = await roost.counter(session)
        await roost.one.stop(session.session_id)
        await failing(roost.one.start())
        inventory = roost.one.running.background.inventory_pass

        async def gone() -> bool:
            await inventory.shot(APP, timedelta(0), act=True)
            states = [pb.Session.STATE_PAUSED, pb.Session.STATE_PAUSING]
            assert (await roost.one.get(session.session_id)).state in states
            return await roost.committed("destroy", session.session_id) == 2

        assert await eventually(gone)
        shown = await roost.until_state(session.session_id, PAUSED)
        assert shown.pause_depth == pb.PAUSE_DEPTH_CHECKPOINT
        await failing(roost.one.start())
        answer = await roost.one.start()
        assert answer.outcome == pb.START_OUTCOME_RESTORED
        assert await roost.counter(answer.session) == before


async def test_a_container_that_was_never_restored_is_not_saved(saving: World) -> None:
    """A stop after a failed restore: the container holds none of the user's state."""
    session = (await saving.one.start(spec=large(1000, REFUSE="1"))).session
    before = await saving.counter(session)
    await saving.one.stop(session.session_id)
    await failing(saving.one.start())
    stopped = await saving.one.stop(session.session_id)
    assert stopped.pause_depth == pb.PAUSE_DEPTH_CHECKPOINT
    assert [each.number for each in await client(saving.one).of()] == [1]
    await failing(saving.one.start())
    answer = await saving.one.start()
    assert await saving.counter(answer.session) == before


# --- rollbacks -----------------------------------------------------------------------------------


@pytest.mark.replicas(2)
async def test_a_rollback_can_be_undone_byte_for_byte(roost: World) -> None:
    """Back to 2 of 5, and back again, in the same session and container."""
    session = await counting(roost, 0)
    saved = client(roost.one)
    for _ in range(5):
        await roost.counter(session, "/click")
        await saved.create(session.session_id)
    await roost.counter(session, "/click")
    back = await saved.restore(session.session_id, number=2)
    assert (back.outcome, back.continuity, back.continuity_verified) == (
        pb.START_OUTCOME_RESTORED,
        pb.CONTINUITY_CHECKPOINT,
        True,
    )
    assert back.session.session_id == session.session_id
    assert back.session.container.container_id == session.container.container_id
    assert await roost.counter(session) == "2"
    before = back.rollback_checkpoint
    assert (before.number, before.reason) == (6, Checkpoint.REASON_ROLLBACK)
    undone = await client(roost.two).restore(session.session_id, checkpoint_id=before.checkpoint_id)
    assert await roost.counter(undone.session) == "6"
    again = await saved.create(session.session_id)
    assert again.sha256 == before.sha256, "byte for byte"
    assert again.parent_checkpoint_id == before.checkpoint_id


@pytest.mark.replicas(2)
async def test_a_repeated_rollback_is_executed_once(roost: World) -> None:
    """The same request id at two replicas, concurrently and later: one rollback, one checkpoint."""
    session = await counting(roost, 1)
    saved = client(roost.one)
    await saved.create(session.session_id)
    await roost.counter(session, "/click")
    once = request_id()
    calls = [
        client(roost.replicas[number % 2]).restore(session.session_id, number=1, request_id=once)
        for number in range(4)
    ]
    answers = await asyncio.gather(*calls)
    assert len({answer.decision_id for answer in answers}) == 1
    assert {answer.rollback_checkpoint.number for answer in answers} == {2}
    assert len(await saved.of()) == 2


async def test_after_a_rollback_a_lost_container_is_restored_from_its_target(roost: World) -> None:
    """Not the newest by number: the user rolled back from that one."""
    session = await counting(roost, 1)
    saved = client(roost.one)
    await saved.create(session.session_id)
    await roost.counter(session, "/click")
    await saved.restore(session.session_id, number=1)
    assert await roost.counter(session) == "1"
    await roost.one.stop(session.session_id)
    await roost.destroy_behind_our_back(session)
    answer = await roost.one.start()
    assert numbers(answer)[-1] == ("RESTORE", "CHECKPOINT_RESTORED", 1)
    assert await roost.counter(answer.session) == "1"


async def test_a_paused_session_can_be_rolled_back(saving: World) -> None:
    """A suspended one is resumed, saved and rolled back; one without a container needs no save."""
    session = await counting(saving, 1)
    saved = client(saving.one)
    await saved.create(session.session_id)
    await saving.counter(session, "/click")
    await saving.one.pause(session.session_id)
    back = await saved.restore(session.session_id, number=1)
    assert back.rollback_checkpoint.number == 2
    assert await saving.counter(back.session) == "1"
    await saving.one.stop(session.session_id)
    forth = await saved.restore(session.session_id, number=2)
    assert not forth.HasField("rollback_checkpoint")
    assert await saving.counter(forth.session) == "2"
    assert forth.session.generation == 2


async def test_a_rollback_that_cannot_save_restores_nothing(
    emulator: Emulator, database_url: str
) -> None:
    """Rule 11: the rollback saves first, and fails. The session runs on as before."""
    async with world(emulator, database_url, 1, checkpoint_database_limit=5000) as roost:
        small = (await roost.one.start(spec=large(1000))).session
        origin = await client(roost.one).create(small.session_id)
        grown = (await roost.one.start("robin", spec=large(9000))).session
        # Make the small session's checkpoint one of the large session's.
        execute(database_url, "UPDATE checkpoints SET user_id = 'robin', number = 100")
        before = await roost.counter(grown)
        failure = await failing(
            client(roost.one).restore(grown.session_id, checkpoint_id=origin.checkpoint_id)
        )
        assert failure.reason == "CHECKPOINT_TOO_LARGE"
        shown = await roost.one.get(grown.session_id)
        assert shown.state == ACTIVE
        assert await roost.counter(grown) == before
        assert (await roost.one.start("robin")).outcome == pb.START_OUTCOME_REUSED


@pytest.mark.replicas(2)
async def test_no_start_returns_a_session_whose_rollback_is_in_doubt(roost: World) -> None:
    """The application was not reached: UNAVAILABLE, and the next start finishes the rollback."""
    session = (await roost.one.start(spec=large(1000, REFUSE="1"))).session
    saved = client(roost.one)
    origin = await saved.create(session.session_id)
    failure = await failing(saved.restore(session.session_id, number=1))
    assert failure.code is grpc.StatusCode.UNAVAILABLE
    shown = await roost.one.get(session.session_id)
    assert shown.state == pb.Session.STATE_STARTING
    answer = await roost.two.start()
    assert answer.outcome == pb.START_OUTCOME_REUSED
    assert await roost.counter(answer.session) == origin.sha256.hex()
    taken = [(each.number, each.reason) for each in await saved.of()]
    assert taken == [(2, Checkpoint.REASON_ROLLBACK), (1, Checkpoint.REASON_REQUESTED)]


async def test_a_rollback_without_a_valid_target_is_rejected(roost: World) -> None:
    """An unknown number, a checkpoint of another key, an ended session."""
    session = await counting(roost, 1)
    other = await counting(roost, 1, "robin")
    saved = client(roost.one)
    failure = await failing(saved.restore(session.session_id, number=9))
    assert (failure.code, failure.reason) == (grpc.StatusCode.NOT_FOUND, "CHECKPOINT_MISSING")
    foreign = await saved.create(other.session_id)
    failure = await failing(saved.restore(session.session_id, checkpoint_id=foreign.checkpoint_id))
    assert failure.reason == "CHECKPOINT_MISSING"
    await roost.one.end(other.session_id)
    failure = await failing(saved.restore(other.session_id, number=1))
    assert failure.reason == "SESSION_STATE_CONFLICT"


# --- forks ---------------------------------------------------------------------------------------


@pytest.mark.replicas(2)
async def test_a_fork_is_independent_of_its_origin(roost: World) -> None:
    """The same state at another key. Clicks in one do not show in the other."""
    session = await counting(roost, 2)
    saved = client(roost.one)
    origin = await saved.create(session.session_id)
    once = request_id()
    fork = await saved.fork(origin.checkpoint_id, "robin", request_id=once)
    assert (fork.outcome, fork.continuity) == (
        pb.START_OUTCOME_RESTORED,
        pb.CONTINUITY_CHECKPOINT,
    )
    assert fork.session.session_id != session.session_id
    assert await roost.counter(fork.session, "/click") == "3"
    assert await roost.counter(session) == "2"
    again = await client(roost.two).fork(origin.checkpoint_id, "robin", request_id=once)
    assert again.session.session_id == fork.session.session_id
    failure = await failing(saved.fork(origin.checkpoint_id, "robin"))
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.ALREADY_EXISTS,
        "LIVE_SESSION_EXISTS",
    )
    own = await saved.create(fork.session.session_id)
    assert (own.number, own.parent_checkpoint_id) == (1, origin.checkpoint_id)


async def test_a_checkpoint_that_a_fork_or_a_paused_session_needs_is_not_deleted(
    saving: World,
) -> None:
    """CHECKPOINT_IN_USE until the fork has a checkpoint of its own; retention keeps it too."""
    session = await counting(saving, 1)
    saved = client(saving.one)
    origin = await saved.create(session.session_id)
    fork = await saved.fork(origin.checkpoint_id, "robin")
    failure = await failing(saved.delete(origin.checkpoint_id))
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "CHECKPOINT_IN_USE",
    )
    for _ in range(6):
        await saved.create(session.session_id)
    assert origin.number in [each.number for each in await saved.of()]
    await saved.create(fork.session.session_id)
    await saved.delete(origin.checkpoint_id)
    await saving.one.stop(session.session_id)
    newest = (await saved.of())[0]
    failure = await failing(saved.delete(newest.checkpoint_id))
    assert failure.reason == "CHECKPOINT_IN_USE"
    await saving.one.end(session.session_id, now=True)
    await saved.delete(newest.checkpoint_id)


async def test_a_fork_of_a_damaged_checkpoint_leaves_nothing_behind(
    roost: World, database_url: str
) -> None:
    """DATA_LOSS, and the key stays free."""
    session = await counting(roost, 2)
    saved = client(roost.one)
    origin = await saved.create(session.session_id)
    flip(database_url, origin.checkpoint_id)
    failure = await failing(saved.fork(origin.checkpoint_id, "robin"))
    assert (failure.code, failure.reason) == (grpc.StatusCode.DATA_LOSS, "CHECKPOINT_CORRUPT")
    assert (await roost.one.start("robin")).outcome == pb.START_OUTCOME_CREATED
    assert await roost.committed("create") == 2


@pytest.mark.parametrize("mode", [pb.START_MODE_FRESH, pb.START_MODE_FAIL_IF_LIVE])
async def test_a_start_for_a_new_session_does_not_continue_a_failed_fork(
    roost: World, mode: pb.StartMode
) -> None:
    """There was no capacity for the fork, and its key is free for the next start."""
    session = await counting(roost, 2)
    saved = client(roost.one)
    origin = await saved.create(session.session_id)
    await roost.admin.set_fault("capacity", action="create")
    failure = await failing(saved.fork(origin.checkpoint_id, "robin"))
    assert failure.reason == "PROVIDER_CAPACITY"
    answer = await roost.one.start("robin", mode=mode)
    assert answer.outcome == pb.START_OUTCOME_CREATED
    assert await roost.counter(answer.session) == "0"


@pytest.mark.replicas(2)
async def test_a_fork_that_lost_its_container_is_restored_from_its_origin(roost: World) -> None:
    """Also when its origin was purged meanwhile."""
    session = await counting(roost, 2)
    saved = client(roost.one)
    origin = await saved.create(session.session_id)
    fork = (await saved.fork(origin.checkpoint_id, "robin")).session
    await roost.counter(fork, "/click")
    await roost.one.end(session.session_id, now=True)
    await roost.one.stop(fork.session_id)
    await roost.destroy_behind_our_back(fork)
    answer = await roost.two.start("robin")
    assert (answer.outcome, answer.session.session_id) == (
        pb.START_OUTCOME_RESTORED,
        fork.session_id,
    )
    assert await roost.counter(answer.session) == "2"


# --- volumes and idle sessions -------------------------------------------------------------------


async def _volume(roost: World) -> str:
    """A new volume's id."""
    answer = await roost.http.post(
        f"{roost.emulator.api_url}/v1/apps/{APP}/volumes",
        json={"name": "data", "size_gb": 1},
        headers={"authorization": f"Bearer {TOKEN}"},
    )
    answer.raise_for_status()
    return str(answer.json()["id"])


async def test_a_volume_is_saved_as_a_snapshot_and_restored_as_a_new_volume(saving: World) -> None:
    """Stop, start, roll back: files at the mount's path, each time on a new volume. The rollback
    destroys under the machine's lease: it waits until that of an earlier owner runs out.
    """
    mount = container_pb.Mount(volume_id=await _volume(saving), path="/data")
    made = spec(mounts=[mount], env={"COUNTER_FILE": "/data/count"})
    session = (await saving.one.start(spec=made)).session
    await saving.click_twice(session)
    stopped = await saving.one.stop(session.session_id)
    assert stopped.pause_depth == pb.PAUSE_DEPTH_CHECKPOINT
    saved = client(saving.one)
    (taken,) = await saved.of()
    assert (taken.kind, taken.state) == (Checkpoint.KIND_VOLUME, Checkpoint.STATE_READY)
    assert not taken.sha256
    answer = await saving.two.start()
    assert (answer.outcome, answer.continuity) == (
        pb.START_OUTCOME_RESTORED,
        pb.CONTINUITY_CHECKPOINT,
    )
    assert await saving.counter(answer.session, "/click") == "3"
    leased = await saving.http.post(
        f"{saving.emulator.api_url}/v1/apps/{APP}/machines/{answer.session.container.container_id}"
        "/lease",
        json={"ttl": 4},
        headers={"authorization": f"Bearer {TOKEN}"},
    )
    leased.raise_for_status()
    back = await saved.restore(session.session_id, number=1)
    assert back.session.generation == 3
    assert await saving.counter(back.session) == "2"
    before = back.rollback_checkpoint
    assert (before.kind, before.reason) == (Checkpoint.KIND_VOLUME, Checkpoint.REASON_ROLLBACK)
    undone = await saved.restore(session.session_id, checkpoint_id=before.checkpoint_id)
    assert await saving.counter(undone.session) == "3"
    assert await saving.committed("volume_create") == 4


async def test_a_lost_snapshot_gives_way_to_the_next_older(
    saving: World, database_url: str
) -> None:
    """Providers keep snapshots for a limited number of days."""
    mount = container_pb.Mount(volume_id=await _volume(saving), path="/data")
    made = spec(mounts=[mount], env={"COUNTER_FILE": "/data/count"})
    session = (await saving.one.start(spec=made)).session
    await saving.click_twice(session)
    await client(saving.one).create(session.session_id)
    await saving.one.stop(session.session_id)
    execute(database_url, "UPDATE checkpoints SET object = 'vs_gone' WHERE number = 2")
    answer = await saving.one.start()
    assert numbers(answer) == [
        ("RESTORE", "SNAPSHOT_GONE", 2),
        ("RESTORE", "CHECKPOINT_RESTORED", 1),
    ]
    assert await saving.counter(answer.session) == "2"


async def test_an_idle_session_is_saved_and_its_container_destroyed(
    emulator: Emulator, database_url: str
) -> None:
    """CHECKPOINT: an idle session is stopped as by a call, with reason IDLE."""
    brief = {"idle_timeout": timedelta(seconds=0.4), "idle_warning": timedelta(seconds=0.1)}
    async with world(emulator, database_url, 1, persistence="checkpoint", **brief) as roost:
        session = await counting(roost, 2)

        async def gone() -> bool:
            await roost.one.running.background.due_pass.settle()
            shown = await roost.one.get(session.session_id)
            return shown.pause_depth == pb.PAUSE_DEPTH_CHECKPOINT

        assert await eventually(gone)
        (taken,) = await client(roost.one).of()
        assert taken.reason == Checkpoint.REASON_IDLE
        answer = await roost.one.start()
        assert answer.outcome == pb.START_OUTCOME_RESTORED
        assert await roost.counter(answer.session) == "2"


async def test_activity_while_an_idle_session_is_saved_keeps_it_running(
    emulator: Emulator, database_url: str
) -> None:
    """A touch during the save: the container is kept, and so is the checkpoint."""
    idle = {"idle_timeout": IDLE, "idle_warning": WARNING}
    async with world(emulator, database_url, 1, persistence="checkpoint", **idle) as roost:
        slow = large(2_000_000, SLOW_MS="250")
        session = (await roost.one.start(spec=slow)).session
        await make_idle(roost, session)

        async def writing() -> bool:
            await roost.one.running.background.due_pass.shot()
            return bool(await client(roost.one).of())

        assert await eventually(writing)
        await touch(roost.one, session)
        await roost.until_state(session.session_id, ACTIVE)
        assert await roost.committed("destroy") == 0
        assert (await client(roost.one).of())[0].state == Checkpoint.STATE_READY
