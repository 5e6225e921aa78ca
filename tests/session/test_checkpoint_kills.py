"""Checkpoints that are interrupted: never READY, never restored, and no session loses state."""

from __future__ import annotations

import asyncio
from datetime import timedelta
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
from session_service.checkpoints.retention import Retention, VolumeDeletion
from session_service.clients.states import GrpcVolumes
from session_service.storage.installation import HERE
from tests.chaos.replica_death import PATIENCE, died_at, in_parts, running_case, shared_servers
from tests.container.harness import APP, TOKEN, failing
from tests.eventually import eventually
from tests.session.harness import TIMEOUT, key, request_id
from tests.session.saving import Checkpoint, client, counting, execute, hooked, large, mounting

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from tests.chaos.replica_death import Case
    from tests.database import Databases
    from tests.session.harness import Replica, World

KB = 1024


async def _set(replica: Replica, path: str, policy: pb.Policy) -> None:
    """Set one field of the project's policy."""
    request = policy_pb.UpdateProjectPolicyRequest(
        project_id="nest", policy=policy, update_mask=FieldMask(paths=[path])
    )
    await PolicyServiceStub(replica.channel).UpdateProjectPolicy(request, timeout=TIMEOUT)


async def _save_at_stop(replica: Replica) -> None:
    """Set the project's policy: a stop saves the state and destroys the container."""
    policy = pb.Policy(persistence=pb.Policy.PERSISTENCE_CHECKPOINT)
    await _set(replica, "persistence", policy)


# --- a replica killed at every failpoint ---------------------------------------------------------


async def _repeated(case: Case, method: str, request: Any) -> Any:
    """Send the request to the other replica until it is answered. Any: of several methods."""
    stub = CheckpointServiceStub(case.other.channel)

    async def once() -> Any:
        return await getattr(stub, method)(request, timeout=PATIENCE)

    return await eventually(once, timeout=PATIENCE, interval=0.1)


async def _stop(case: Case) -> None:
    await _save_at_stop(case.other)
    session = await counting(case.world, 2)
    request = rpc_pb.StopSessionRequest(session_id=session.session_id, request_id=request_id())
    await case.dies(lambda stub: stub.StopSession(request, timeout=PATIENCE))
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
    await case.dies(lambda stub: stub.StartSession(request, timeout=PATIENCE))
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
        lambda stub: stub.CreateCheckpoint(request, timeout=PATIENCE), CheckpointServiceStub
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
        lambda stub: stub.RestoreCheckpoint(request, timeout=PATIENCE),
        CheckpointServiceStub,
    )
    back = await _repeated(case, "RestoreCheckpoint", request)
    assert back.outcome == pb.START_OUTCOME_RESTORED
    assert await case.world.counter(back.session) == "1"
    before = back.rollback_checkpoint
    assert (before.state, before.reason) == (Checkpoint.STATE_READY, Checkpoint.REASON_ROLLBACK)
    kept = [each for each in await saved.of() if each.state == Checkpoint.STATE_READY]
    # An owner that died before it recorded its checkpoint makes its successor save again.
    assert len(kept) in (2, 3)
    assert kept[0].checkpoint_id == before.checkpoint_id
    assert {each.sha256 for each in kept[:-1]} == {before.sha256}
    undone = await saved.restore(session.session_id, checkpoint_id=before.checkpoint_id)
    assert await case.world.counter(undone.session) == "2"
    assert await case.machines(session.session_id) == ["started"]


async def _paused_then_killed(case: Case, *, stopped: int, gone: int) -> pb.Session:
    """A suspended session, 2 in memory, and a replica that dies in the due pass that deepens it.

    The policy stops it after `stopped` s of pause, and saves and destroys it after `gone` s.
    """
    # The database is a copy of a template. Without this, due passes would leave its sessions alone.
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
    await PolicyServiceStub(case.other.channel).UpdateProjectPolicy(request, timeout=TIMEOUT)
    session = await counting(case.world, 2)
    await case.other.pause(session.session_id)
    case.environment["ROOST_RECONCILE_INTERVAL"] = "0.05"

    async def comes_due(stub: Any) -> None:
        """The due pass needs no call. Any: a stub."""
        await _date_pause_back(case, "61 minutes")

    await case.dies(comes_due)
    return session


async def _date_pause_back(case: Case, span: str) -> None:
    execute(
        case.environment["ROOST_DATABASE_URL"],
        "UPDATE sessions SET pause_time = now() - %s::interval, due_at = now()",
        span,
    )


async def _taken_over(case: Case, session: pb.Session) -> pb.Session:
    """The session once the other replica has taken its transition over and finished it."""

    async def paused() -> pb.Session | None:
        execute(
            case.environment["ROOST_DATABASE_URL"],
            "UPDATE sessions SET due_at = now() WHERE transition IS NOT NULL",
        )
        await case.other.running.background.due_pass.settle()
        shown = await case.other.get(session.session_id)
        return shown if shown.state == pb.Session.STATE_PAUSED else None

    found: pb.Session | None = await eventually(paused, timeout=PATIENCE, interval=0.1)
    assert found is not None
    return found


async def _deepen(case: Case) -> None:
    """From suspended to stopped: memory is saved first, at whichever failpoint the owner died."""
    session = await _paused_then_killed(case, stopped=3600, gone=7200)
    shown = await _taken_over(case, session)
    if shown.pause_depth == pb.PAUSE_DEPTH_SUSPENDED:
        # The owner died before it committed the intent.
        await _date_pause_back(case, "61 minutes")
        await case.other.running.background.due_pass.settle()
        shown = await case.other.get(session.session_id)
    assert shown.pause_depth == pb.PAUSE_DEPTH_STOPPED, shown
    assert not shown.conditions
    assert await case.machines(session.session_id) == ["stopped"]
    await _check_destroyed_and_restored(case, session)


async def _check_destroyed_and_restored(case: Case, session: pb.Session) -> None:
    """Three hours on it is saved and destroyed; a start restores its count; no machine is left."""
    await _date_pause_back(case, "3 hours")
    shown = await _taken_over(case, session)
    assert shown.pause_depth == pb.PAUSE_DEPTH_CHECKPOINT, shown
    assert await case.machines(session.session_id) == ["destroyed"]
    back = await case.other.start()
    assert back.outcome == pb.START_OUTCOME_RESTORED
    assert await case.world.counter(back.session) == "2"


async def _save_and_destroy(case: Case) -> None:
    """From suspended to saved and destroyed, at once."""
    session = await _paused_then_killed(case, stopped=7200, gone=3600)
    await _check_destroyed_and_restored(case, session)


async def _recreate(case: Case, *, suspended: bool = False) -> None:
    keeping = pb.Policy.ON_FINGERPRINT_CHANGE_RECREATE_KEEPING_FILES
    policy = pb.Policy(on_fingerprint_change=keeping)
    await _set(case.other, "on_fingerprint_change", policy)
    session = await counting(case.world, 2, A="1")
    if suspended:
        await case.other.pause(session.session_id)
    request = rpc_pb.StartSessionRequest(key=key(), spec=hooked(A="2"), request_id=request_id())
    await case.dies(lambda stub: stub.StartSession(request, timeout=PATIENCE))
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
    # An owner that died before it recorded its checkpoint makes its successor save again.
    assert {each.reason for each in kept} == {Checkpoint.REASON_RECREATE}
    assert len(kept) in (1, 2)
    assert len({each.sha256 for each in kept}) == 1
    # Back to the first spec.
    again = rpc_pb.StartSessionRequest(key=key(), spec=hooked(A="1"), request_id=request_id())
    back = await case.repeated("StartSession", again)
    assert (back.outcome, back.session.generation) == (pb.START_OUTCOME_RESTORED, 3)
    assert await case.world.counter(back.session) == "2"


async def _recreate_restoring(case: Case) -> None:
    await _recreate(case)


async def _recreate_suspended(case: Case) -> None:
    await _recreate(case, suspended=True)


async def _restore_volume(case: Case) -> None:
    """One volume is created for the new container and recorded, wherever the owner died."""
    await _save_at_stop(case.other)
    session = (await case.other.start(spec=await mounting(case.world))).session
    await case.world.click_twice(session)
    await case.other.stop(session.session_id)
    request = rpc_pb.StartSessionRequest(key=key(), request_id=request_id())
    await case.dies(lambda stub: stub.StartSession(request, timeout=PATIENCE))
    answer = await case.repeated("StartSession", request)
    assert answer.outcome == pb.START_OUTCOME_RESTORED
    assert await case.world.counter(answer.session) == "2"
    assert len(await _made_for(case, session)) == 1, "one volume, not two"
    await _run_volume_pass(case)
    assert await _made_for(case, session) == _recorded_volumes(case)
    assert await case.world.counter(answer.session) == "2"
    await case.other.end(session.session_id, now=True)
    execute(case.environment["ROOST_DATABASE_URL"], "DELETE FROM checkpoints")
    await _run_volume_pass(case)
    assert await _made_for(case, session) == _recorded_volumes(case) == []


async def _delete_volumes(case: Case) -> None:
    """The unneeded volume and its row are deleted, and no other, wherever the replica died."""
    await _save_at_stop(case.other)
    session = (await case.other.start(spec=await mounting(case.world))).session
    await case.world.click_twice(session)
    await case.other.stop(session.session_id)
    await case.other.start()
    await case.other.stop(session.session_id)
    answer = await case.other.start()
    left, current = _recorded_volumes(case)
    url = case.environment["ROOST_DATABASE_URL"]
    execute(url, "DELETE FROM checkpoints")
    execute(url, f"UPDATE installation SET system_identifier = {HERE}")
    case.environment["ROOST_SWEEP_INTERVAL"] = "0.1"

    async def comes_due(stub: Any) -> None:
        """The inventory pass needs no call. Any: a stub."""
        execute(
            url, "UPDATE volumes SET create_time = create_time - interval '1 hour', due_at = now()"
        )

    await case.dies(comes_due)
    assert set(await _made_for(case, session)) <= {left, current}
    await _run_volume_pass(case)
    assert await _made_for(case, session) == _recorded_volumes(case) == [current]
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


def _recorded_volumes(case: Case) -> list[str]:
    """The ids of the volumes in table `volumes`, oldest first."""
    found = execute(
        case.environment["ROOST_DATABASE_URL"], "SELECT volume_id FROM volumes ORDER BY create_time"
    )
    return [row[0] for row in found]


async def _run_volume_pass(case: Case) -> None:
    """Run passes over all volumes until none fails: a machine may still hold one for a moment."""
    url = case.environment["ROOST_DATABASE_URL"]
    async with grpc.aio.insecure_channel(case.environment["ROOST_CONTAINER_TARGET"]) as channel:
        database = case.other.running.database
        clearing = VolumeDeletion(database, GrpcVolumes(channel), timedelta(0), deletes=True)

        async def none_failed() -> bool:
            execute(url, "UPDATE volumes SET due_at = now()")
            await clearing.shot()
            return execute(url, "SELECT 1 FROM volumes WHERE failure_count > 0") == []

        assert await eventually(none_failed, timeout=PATIENCE, interval=0.2)


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
    _save_and_destroy: (
        *("intent.after", "resume.after", "capture.after", "ready.after", "note.before"),
        *("note.after", "destroy.during", "destroy.after", "outcome.before", "outcome.after"),
    ),
    _restore_volume: (
        *("note.before", "note.after", "create_volume.before", "create_volume.during"),
        *("create_volume.after", "create.before", "create.during", "create.after"),
        *("wait_started.after", "outcome.before"),
    ),
    _delete_volumes: ("delete_volume.before", "delete_volume.during", "delete_volume.after"),
    _create: (
        *("intent.before", "intent.during", "intent.after", "capture.during", "chunk.after"),
        *("ready.before", "ready.during", "ready.after"),
    ),
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
@pytest.mark.parametrize(("transition", "names"), in_parts(PLACES, 7))
async def test_a_death_at_every_failpoint_of(
    transition: Callable[[Case], Awaitable[None]],
    names: Sequence[str],
    databases: Databases,
    migrated_database: str,
    tmp_path: Path,
) -> None:
    """One READY checkpoint with the right state, wherever the replica died; no other was READY."""
    async with shared_servers(tmp_path) as servers:
        await died_at(
            names,
            transition,
            lambda name: running_case(name, servers, databases, migrated_database),
        )


# --- the container, the database or the caller fails ---------------------------------------------


async def _begin_checkpoint(roost: World, session_id: str, url: str) -> asyncio.Task[Any]:
    """Begin a checkpoint; return its call, which must fail, once some bytes are stored.

    The application holds the rest back until a `GET /go`.
    """
    task = asyncio.create_task(failing(client(roost.one).create(session_id)))

    async def stored() -> bool:
        return bool(execute(url, "SELECT 1 FROM checkpoint_chunks LIMIT 1"))

    assert await eventually(stored)
    return task


async def _check_failed(roost: World, url: str) -> None:
    """The only checkpoint is FAILED, without bytes, and not the session's checkpoint."""
    (shown,) = await client(roost.two).of()
    assert shown.state == Checkpoint.STATE_FAILED
    assert execute(url, "SELECT count(*) FROM checkpoint_chunks") == [(0,)]
    assert execute(url, "SELECT checkpoint_id FROM sessions") == [(None,)]


async def test_a_container_that_vanishes_during_a_checkpoint_leaves_none(
    roost: World, database_url: str
) -> None:
    """The bytes stored by then are deleted."""
    session = (await roost.one.start(spec=large(4000 * KB, HELD="1"))).session
    task = await _begin_checkpoint(roost, session.session_id, database_url)
    await roost.admin.set_fault("machine_vanished", machine=session.container.container_id)
    failure = await task
    assert failure.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.FAILED_PRECONDITION)
    await _check_failed(roost, database_url)


async def test_a_database_that_cuts_its_connections_leaves_no_checkpoint(
    roost: World, database_url: str
) -> None:
    """It also refuses new connections until the checkpoint has failed. The session does not change,
    and a later checkpoint succeeds.
    """
    session = (await roost.one.start(spec=large(4000 * KB, HELD="1"))).session
    task = await _begin_checkpoint(roost, session.session_id, database_url)
    server, _, name = database_url.rpartition("/")
    execute(f"{server}/postgres", f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
    going: asyncio.Task[str] | None = None
    try:
        while not task.done():
            # A connection that was being opened is still let in, so this repeats.
            execute(
                f"{server}/postgres",
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s",
                name,
            )
            # The writer gets the rest of the state now.
            going = going or asyncio.create_task(roost.counter(session, "/go"))
            await asyncio.sleep(0.02)
    finally:
        execute(f"{server}/postgres", f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
    assert going is not None
    await going
    failure = await task
    # Either the database does not answer, or the writer's lease runs out first.
    assert failure.reason in ("STORAGE_UNAVAILABLE", "SESSION_STATE_CONFLICT")

    async def over() -> bool:
        taken = await client(roost.two).create(session.session_id)
        return taken.state == Checkpoint.STATE_READY

    assert await eventually(over)
    assert (await roost.one.get(session.session_id)).state == pb.Session.STATE_ACTIVE
    states = {each.number: each.state for each in await client(roost.one).of()}
    assert list(states.values()).count(Checkpoint.STATE_READY) == 1


async def test_a_stop_does_not_wait_for_a_checkpoint_that_is_being_written(
    roost: World, database_url: str
) -> None:
    """The pause freezes the application that was sending its state; that checkpoint is FAILED."""
    session = (await roost.one.start(spec=large(4000 * KB, HELD="1"))).session
    task = await _begin_checkpoint(roost, session.session_id, database_url)
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


async def test_a_cancelled_call_does_not_undo_its_checkpoint(roost: World) -> None:
    """It becomes READY, and the same request id returns it."""
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


async def test_the_checkpoint_of_a_dead_owner_is_failed_and_its_bytes_deleted(
    roost: World, database_url: str
) -> None:
    """WRITING with an expired lease: the retention pass fails it and deletes its bytes."""
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
    await _check_failed(roost, database_url)
    assert await retention.shot() == 0
