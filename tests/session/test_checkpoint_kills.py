"""Checkpoints cut off in the middle: never READY, never restored, and nothing is lost by it."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from time import monotonic
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask

from roost.session.v1 import checkpoint_service_pb2 as checkpoint_pb
from roost.session.v1 import policy_service_pb2 as policy_pb
from roost.session.v1 import session_pb2 as pb
from roost.session.v1 import session_service_pb2 as rpc_pb
from roost.session.v1.checkpoint_service_pb2_grpc import CheckpointServiceStub
from roost.session.v1.policy_service_pb2_grpc import PolicyServiceStub
from session_service.clients.states import GrpcVolumes
from session_service.storage.installation import HERE
from session_service.vault.clearing import Clearing
from session_service.vault.retention import Retention
from tests.chaos import test_points as deaths
from tests.container.harness import APP, TOKEN, failing
from tests.eventually import eventually
from tests.session.harness import key, request_id
from tests.session.saving import Checkpoint, client, counting, execute, hooked, large, mounting

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from tests.chaos.test_points import Case
    from tests.database import Databases
    from tests.session.harness import Replica, World

KB = 1024


async def _set(replica: Replica, path: str, policy: pb.Policy) -> None:
    """Set this of the project's policy."""
    request = policy_pb.UpdateProjectPolicyRequest(
        project_id="nest", policy=policy, update_mask=FieldMask(paths=[path])
    )
    await PolicyServiceStub(replica.channel).UpdateProjectPolicy(request, timeout=9)


async def _save_at_stop(replica: Replica) -> None:
    """Let the project's stops save and destroy."""
    policy = pb.Policy(persistence=pb.Policy.PERSISTENCE_CHECKPOINT)
    await _set(replica, "persistence", policy)


# --- a replica killed at every point -------------------------------------------------------------


async def _repeated(case: Case, method: str, request: Any) -> Any:
    """The request at the other replica until it is answered. Any: of several methods."""
    stub = CheckpointServiceStub(case.other.channel)

    async def once() -> Any:
        return await getattr(stub, method)(request, timeout=deaths.PATIENCE)

    return await eventually(once, timeout=deaths.PATIENCE, interval=0.1)


async def _stop(case: Case) -> None:
    await _save_at_stop(case.other)
    session = await counting(case.world, 2)
    request = rpc_pb.StopSessionRequest(session_id=session.session_id, request_id=request_id())
    await case.dies(lambda stub: stub.StopSession(request, timeout=deaths.PATIENCE))
    answer = await case.repeated("StopSession", request)
    assert answer.session.pause_depth == pb.PAUSE_DEPTH_CHECKPOINT, answer
    assert not answer.session.conditions
    assert await case.machines(session.session_id) == ["destroyed"]
    back = await case.other.start()
    assert back.outcome == pb.START_OUTCOME_RESTORED
    assert await case.world.counter(back.session) == "2"


async def _restore(case: Case) -> None:
    await _save_at_stop(case.other)
    session = await counting(case.world, 2)
    await case.other.stop(session.session_id)
    request = rpc_pb.StartSessionRequest(key=key(), request_id=request_id())
    await case.dies(lambda stub: stub.StartSession(request, timeout=deaths.PATIENCE))
    answer = await case.repeated("StartSession", request)
    assert (answer.outcome, answer.continuity) == (
        pb.START_OUTCOME_RESTORED,
        pb.CONTINUITY_CHECKPOINT,
    )
    assert await case.world.counter(answer.session) == "2"
    assert sorted(await case.machines(session.session_id)) == ["destroyed", "started"]


async def _create(case: Case) -> None:
    session = await counting(case.world, 2)
    request = checkpoint_pb.CreateCheckpointRequest(
        session_id=session.session_id, request_id=request_id()
    )
    await case.dies(
        lambda stub: stub.CreateCheckpoint(request, timeout=deaths.PATIENCE), CheckpointServiceStub
    )
    taken = await _repeated(case, "CreateCheckpoint", request)
    assert taken.checkpoint.state == Checkpoint.STATE_READY
    again = await _repeated(case, "CreateCheckpoint", request)
    assert again == taken
    shown = [each.state for each in await client(case.other).of()]
    assert shown.count(Checkpoint.STATE_READY) == 1, shown
    assert set(shown) <= {Checkpoint.STATE_READY, Checkpoint.STATE_FAILED}
    assert (await case.other.get(session.session_id)).state == pb.Session.STATE_ACTIVE


async def _roll_back(case: Case) -> None:
    session = await counting(case.world, 1)
    saved = client(case.other)
    await saved.create(session.session_id)
    await case.world.counter(session, "/click")
    request = checkpoint_pb.RestoreCheckpointRequest(
        session_id=session.session_id, number=1, request_id=request_id()
    )
    await case.dies(
        lambda stub: stub.RestoreCheckpoint(request, timeout=deaths.PATIENCE),
        CheckpointServiceStub,
    )
    back = await _repeated(case, "RestoreCheckpoint", request)
    assert back.outcome == pb.START_OUTCOME_RESTORED
    assert await case.world.counter(back.session) == "1"
    before = back.rollback_checkpoint
    assert (before.state, before.reason) == (Checkpoint.STATE_READY, Checkpoint.REASON_ROLLBACK)
    kept = [each for each in await saved.of() if each.state == Checkpoint.STATE_READY]
    # Saved once more where the owner died before it could say that it was saved.
    assert len(kept) in (2, 3)
    assert kept[0].checkpoint_id == before.checkpoint_id
    assert {each.sha256 for each in kept[:-1]} == {before.sha256}
    undone = await saved.restore(session.session_id, checkpoint_id=before.checkpoint_id)
    assert await case.world.counter(undone.session) == "2"
    assert await case.machines(session.session_id) == ["started"]


async def _rests(case: Case, *, stopped: int, gone: int) -> pb.Session:
    """A session that rests suspended, 2 in memory, and a replica that dies as its keeper has it
    rest deeper: stopped after so many seconds, saved and gone after so many.
    """
    # A copy of the template, which no keeper would touch.
    execute(
        case.environment["ROOST_DATABASE_URL"],
        f"UPDATE installation SET system_identifier = {HERE}",
    )
    request = policy_pb.UpdateProjectPolicyRequest(
        project_id="nest",
        policy=pb.Policy(
            deepen_after=Duration(seconds=stopped), checkpoint_after=Duration(seconds=gone)
        ),
    )
    await PolicyServiceStub(case.other.channel).UpdateProjectPolicy(request, timeout=9)
    session = await counting(case.world, 2)
    await case.other.pause(session.session_id)
    case.environment["ROOST_KEEPER_INTERVAL"] = "0.05"

    async def comes_due(stub: Any) -> None:
        """The keeper needs no call. Any: a stub."""
        await _aged(case, "61 minutes")

    await case.dies(comes_due)
    return session


async def _aged(case: Case, span: str) -> None:
    execute(
        case.environment["ROOST_DATABASE_URL"],
        "UPDATE sessions SET pause_time = now() - %s::interval, due_at = now()",
        span,
    )


async def _settled(case: Case, session: pb.Session) -> pb.Session:
    """The session once the keeper of the other replica has finished what was begun."""

    async def at_rest() -> pb.Session | None:
        execute(
            case.environment["ROOST_DATABASE_URL"],
            "UPDATE sessions SET due_at = now() WHERE transition IS NOT NULL",
        )
        await case.other.running.background.keeper.settle()
        shown = await case.other.get(session.session_id)
        return shown if shown.state == pb.Session.STATE_PAUSED else None

    found: pb.Session | None = await eventually(at_rest, timeout=deaths.PATIENCE, interval=0.1)
    assert found is not None
    return found


async def _deepen(case: Case) -> None:
    """From suspended to stopped: what is in memory is saved first, wherever an owner died."""
    session = await _rests(case, stopped=3600, gone=7200)
    shown = await _settled(case, session)
    if shown.pause_depth == pb.PAUSE_DEPTH_SUSPENDED:
        # It died before it had begun.
        await _aged(case, "61 minutes")
        await case.other.running.background.keeper.settle()
        shown = await case.other.get(session.session_id)
    assert shown.pause_depth == pb.PAUSE_DEPTH_STOPPED, shown
    assert not shown.conditions
    assert await case.machines(session.session_id) == ["stopped"]
    await _goes(case, session)


async def _goes(case: Case, session: pb.Session) -> None:
    """It is saved and gone in the end, and comes back with its count; nothing is left beside."""
    await _aged(case, "3 hours")
    shown = await _settled(case, session)
    assert shown.pause_depth == pb.PAUSE_DEPTH_CHECKPOINT, shown
    assert await case.machines(session.session_id) == ["destroyed"]
    back = await case.other.start()
    assert back.outcome == pb.START_OUTCOME_RESTORED
    assert await case.world.counter(back.session) == "2"


async def _go(case: Case) -> None:
    """From suspended to saved and destroyed, at once."""
    session = await _rests(case, stopped=7200, gone=3600)
    await _goes(case, session)


async def _recreate(case: Case, *, suspended: bool = False) -> None:
    keeping = pb.Policy.ON_FINGERPRINT_CHANGE_RECREATE_KEEPING_FILES
    policy = pb.Policy(on_fingerprint_change=keeping)
    await _set(case.other, "on_fingerprint_change", policy)
    session = await counting(case.world, 2, A="1")
    if suspended:
        await case.other.pause(session.session_id)
    request = rpc_pb.StartSessionRequest(key=key(), spec=hooked(A="2"), request_id=request_id())
    await case.dies(lambda stub: stub.StartSession(request, timeout=deaths.PATIENCE))
    answer = await case.repeated("StartSession", request)
    assert (answer.outcome, answer.continuity, answer.session.generation) == (
        pb.START_OUTCOME_RESTORED,
        pb.CONTINUITY_CHECKPOINT,
        2,
    )
    assert not answer.session.conditions, "nothing was lost"
    assert await case.world.counter(answer.session) == "2"
    assert await case.world.in_guest(answer.session, "sh", "-c", "echo $A") == "2\n"
    assert sorted(await case.machines(session.session_id)) == ["destroyed", "started"]
    kept = [each for each in await client(case.other).of() if each.state == Checkpoint.STATE_READY]
    # Saved once more where the owner died before it could say that it was saved.
    assert {each.reason for each in kept} == {Checkpoint.REASON_RECREATE}
    assert len(kept) in (1, 2)
    assert len({each.sha256 for each in kept}) == 1
    # And back.
    again = rpc_pb.StartSessionRequest(key=key(), spec=hooked(A="1"), request_id=request_id())
    back = await case.repeated("StartSession", again)
    assert (back.outcome, back.session.generation) == (pb.START_OUTCOME_RESTORED, 3)
    assert await case.world.counter(back.session) == "2"


async def _recreate_restoring(case: Case) -> None:
    await _recreate(case)


async def _recreate_suspended(case: Case) -> None:
    await _recreate(case, suspended=True)


async def _restore_volume(case: Case) -> None:
    """A volume is made for the new container, and its rows say which, wherever an owner died."""
    await _save_at_stop(case.other)
    session = (await case.other.start(spec=await mounting(case.world))).session
    await case.world.click_twice(session)
    await case.other.stop(session.session_id)
    request = rpc_pb.StartSessionRequest(key=key(), request_id=request_id())
    await case.dies(lambda stub: stub.StartSession(request, timeout=deaths.PATIENCE))
    answer = await case.repeated("StartSession", request)
    assert answer.outcome == pb.START_OUTCOME_RESTORED
    assert await case.world.counter(answer.session) == "2"
    assert len(await _made_for(case, session)) == 1, "none was made twice"
    await _cleared(case)
    assert await _made_for(case, session) == _noted(case)
    assert await case.world.counter(answer.session) == "2"
    await case.other.end(session.session_id, now=True)
    execute(case.environment["ROOST_DATABASE_URL"], "DELETE FROM checkpoints")
    await _cleared(case)
    assert await _made_for(case, session) == _noted(case) == []


async def _clear(case: Case) -> None:
    """A volume that nobody needs goes, and its row, and no other, wherever a replica died."""
    await _save_at_stop(case.other)
    session = (await case.other.start(spec=await mounting(case.world))).session
    await case.world.click_twice(session)
    await case.other.stop(session.session_id)
    await case.other.start()
    await case.other.stop(session.session_id)
    answer = await case.other.start()
    left, current = _noted(case)
    url = case.environment["ROOST_DATABASE_URL"]
    execute(url, "DELETE FROM checkpoints")
    execute(url, f"UPDATE installation SET system_identifier = {HERE}")
    case.environment["ROOST_SWEEP_INTERVAL"] = "0.1"

    async def comes_due(stub: Any) -> None:
        """The sweeper needs no call. Any: a stub."""
        execute(url, "UPDATE volumes SET create_time = now() - interval '1 hour', due_at = now()")

    await case.dies(comes_due)
    assert set(await _made_for(case, session)) <= {left, current}
    await _cleared(case)
    assert await _made_for(case, session) == _noted(case) == [current]
    assert await case.world.counter(answer.session) == "2"


async def _made_for(case: Case, session: pb.Session) -> list[str]:
    """The volumes at the provider that restores made for the session."""
    url = f"{case.world.emulator.api_url}/v1/apps/{APP}/volumes"
    answer = await case.world.http.get(url, headers={"authorization": f"Bearer {TOKEN}"})
    stem = f"r{session.session_id.replace('-', '')[-10:]}_"
    return [
        str(each["id"])
        for each in answer.json()
        if each["name"].startswith(stem) and "destroy" not in each["state"]
    ]


def _noted(case: Case) -> list[str]:
    """The volumes that are in a row."""
    found = execute(
        case.environment["ROOST_DATABASE_URL"], "SELECT volume_id FROM volumes ORDER BY create_time"
    )
    return [row[0] for row in found]


async def _cleared(case: Case) -> None:
    """A pass over all volumes, until what a machine held a moment ago is let go of."""
    url = case.environment["ROOST_DATABASE_URL"]
    async with grpc.aio.insecure_channel(case.environment["ROOST_CONTAINER_TARGET"]) as channel:
        database = case.other.running.database
        clearing = Clearing(database, GrpcVolumes(channel), timedelta(0), deletes=True)

        async def none_failed() -> bool:
            execute(url, "UPDATE volumes SET due_at = now()")
            await clearing.shot()
            return execute(url, "SELECT 1 FROM volumes WHERE failure_count > 0") == []

        assert await eventually(none_failed, timeout=deaths.PATIENCE, interval=0.2)


PLACES: dict[Callable[[Case], Awaitable[None]], tuple[str, ...]] = {
    _stop: (
        *("intent.after", "capture.during", "capture.after", "chunk.before", "chunk.after"),
        *("ready.before", "ready.during", "ready.after", "note.during", "note.after"),
        *("acquire_lease.after", "destroy.during", "destroy.after", "outcome.before"),
    ),
    _restore: (
        *("intent.after", "note.before", "note.after", "create.during", "wait_started.after"),
        *("restore.before", "restore.during", "restore.after", "outcome.before", "outcome.after"),
    ),
    _deepen: (
        *("intent.after", "get.after", "resume.during", "resume.after", "capture.during"),
        *("capture.after", "ready.before", "ready.after", "note.before", "note.after"),
        *("acquire_lease.after", "stop.during", "stop.after", "outcome.before", "outcome.after"),
    ),
    _go: (
        *("intent.after", "resume.after", "capture.after", "ready.after", "note.before"),
        *("note.after", "destroy.during", "destroy.after", "outcome.before", "outcome.after"),
    ),
    _restore_volume: (
        *("note.before", "note.after", "create_volume.before", "create_volume.during"),
        *("create_volume.after", "create.before", "create.during", "create.after"),
        *("wait_started.after", "outcome.before"),
    ),
    _clear: ("delete_volume.before", "delete_volume.during", "delete_volume.after"),
    _create: ("capture.during", "chunk.after", "ready.before", "ready.during", "ready.after"),
    _roll_back: (
        *("intent.after", "resume.after", "capture.during", "chunk.after", "ready.during"),
        *("ready.after", "note.before", "note.after", "restore.before", "restore.during"),
        *("restore.after", "outcome.before"),
    ),
    _recreate: (
        *("intent.after", "resume.during", "capture.during", "capture.after", "chunk.after"),
        *("ready.before", "ready.during", "ready.after", "note.before", "note.during"),
        *("note.after", "acquire_lease.during", "acquire_lease.after", "destroy.before"),
    ),
    _recreate_restoring: (
        *("destroy.during", "destroy.after", "create.before", "create.during", "create.after"),
        *("wait_started.after", "read_boot_id.after", "restore.before", "restore.during"),
        *("restore.after", "outcome.before", "outcome.during", "outcome.after"),
    ),
    _recreate_suspended: (
        *("intent.after", "resume.during", "resume.after", "capture.during", "ready.during"),
        *("note.after", "destroy.during", "create.during", "restore.during", "outcome.before"),
    ),
}


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize(("transition", "names"), deaths.in_parts(PLACES, 7))
async def test_a_death_at_every_point_of(
    transition: Callable[[Case], Awaitable[None]],
    names: Sequence[str],
    databases: Databases,
    migrated_database: str,
    tmp_path: Path,
) -> None:
    """The right state, once, wherever the replica died; no other was ever READY."""
    async with deaths._ground(tmp_path) as ground:
        await deaths.died_at(
            names, transition, lambda name: deaths._case(name, ground, databases, migrated_database)
        )


# --- the rest of the world breaking in the middle ------------------------------------------------


async def _begun(roost: World, session_id: str, url: str) -> asyncio.Task[Any]:
    """A checkpoint whose bytes are on their way: some are stored already."""
    task = asyncio.create_task(failing(client(roost.one).create(session_id)))

    async def stored() -> bool:
        return bool(execute(url, "SELECT 1 FROM checkpoint_chunks LIMIT 1"))

    assert await eventually(stored, timeout=10)
    return task


async def _nothing_of_it(roost: World, url: str) -> None:
    """FAILED, without bytes, and not what the session goes back to."""
    (shown,) = await client(roost.two).of()
    assert shown.state == Checkpoint.STATE_FAILED
    assert execute(url, "SELECT count(*) FROM checkpoint_chunks") == [(0,)]
    assert execute(url, "SELECT checkpoint_id FROM sessions") == [(None,)]


async def test_a_container_that_goes_in_the_middle_leaves_no_checkpoint(
    roost: World, database_url: str
) -> None:
    """What came of its state by then is thrown away."""
    session = (await roost.one.start(spec=large(4000 * KB, SLOW_MS="40"))).session
    task = await _begun(roost, session.session_id, database_url)
    await roost.admin.set_fault("machine_vanished", machine=session.container.container_id)
    failure = await task
    assert failure.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.FAILED_PRECONDITION)
    await _nothing_of_it(roost, database_url)


async def test_a_database_that_cuts_its_connections_leaves_no_checkpoint(
    roost: World, database_url: str
) -> None:
    """And takes no new ones, for longer than is waited for one: the session is not touched, and
    then it goes through.
    """
    session = (await roost.one.start(spec=large(4000 * KB, SLOW_MS="40"))).session
    task = await _begun(roost, session.session_id, database_url)
    server, _, name = database_url.rpartition("/")
    execute(f"{server}/postgres", f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
    back = monotonic() + 6
    try:
        while not task.done() and monotonic() < back:
            # One that was just being made is let in all the same.
            execute(
                f"{server}/postgres",
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s",
                name,
            )
            await asyncio.sleep(0.02)
    finally:
        execute(f"{server}/postgres", f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
    failure = await task
    # Which is heard first: that nothing answers, or that the writer's lease ran out meanwhile.
    assert failure.reason in ("STORAGE_UNAVAILABLE", "SESSION_STATE_CONFLICT")

    async def over() -> bool:
        taken = await client(roost.two).create(session.session_id)
        return taken.state == Checkpoint.STATE_READY

    assert await eventually(over, timeout=20)
    assert (await roost.one.get(session.session_id)).state == pb.Session.STATE_ACTIVE
    states = {each.number: each.state for each in await client(roost.one).of()}
    assert list(states.values()).count(Checkpoint.STATE_READY) == 1


async def test_a_stop_does_not_wait_for_a_checkpoint_that_is_being_written(
    roost: World, database_url: str
) -> None:
    """The pause freezes what was handing its state out; that checkpoint is FAILED."""
    session = (await roost.one.start(spec=large(4000 * KB, SLOW_MS="40"))).session
    task = await _begun(roost, session.session_id, database_url)
    await _save_at_stop(roost.two)
    stopped = await roost.two.stop(session.session_id)
    assert stopped.pause_depth == pb.PAUSE_DEPTH_CHECKPOINT
    failure = await task
    assert failure.reason in ("SESSION_STATE_CONFLICT", "PROVIDER_UNAVAILABLE")
    shown = {each.number: (each.state, each.reason) for each in await client(roost.one).of()}
    assert shown == {
        1: (Checkpoint.STATE_FAILED, Checkpoint.REASON_REQUESTED),
        2: (Checkpoint.STATE_READY, Checkpoint.REASON_STOP),
    }


async def test_the_caller_going_away_does_not_undo_a_checkpoint(roost: World) -> None:
    """It is READY all the same, and the request id is answered with it."""
    session = (await roost.one.start(spec=large(1500 * KB, SLOW_MS="20"))).session
    once = request_id()
    call = client(roost.one).stub.CreateCheckpoint(
        checkpoint_pb.CreateCheckpointRequest(session_id=session.session_id, request_id=once),
        timeout=20,
    )

    async def writing() -> bool:
        return bool(await client(roost.two).of())

    await eventually(writing)
    call.cancel()
    taken = await client(roost.two).create(session.session_id, request_id=once)
    assert (taken.number, taken.state) == (1, Checkpoint.STATE_READY)


async def test_what_an_owner_left_who_is_gone_is_tidied_up(roost: World, database_url: str) -> None:
    """WRITING with a lease that ran out: FAILED by the janitor's pass, its bytes gone."""
    session = await counting(roost, 1)
    await client(roost.one).create(session.session_id)
    execute(
        database_url,
        "UPDATE checkpoints SET state = 'WRITING', ready_time = NULL, "
        "lease_until = now() - interval '1 s'",
    )
    execute(database_url, "UPDATE sessions SET checkpoint_id = NULL")
    retention = Retention(roost.two.running.database, None)
    assert await retention.shot() == 1
    await _nothing_of_it(roost, database_url)
    assert await retention.shot() == 0
