"""A checkpoint is deleted while a transition begins to need it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import grpc.aio
import psycopg
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from roost.session.v1 import policy_service_pb2 as policy_pb
from roost.session.v1 import session_pb2 as pb
from roost.session.v1.policy_service_pb2_grpc import PolicyServiceStub
from tests.container.harness import failing
from tests.eventually import eventually
from tests.session.harness import TIMEOUT, spec, world
from tests.session.saving import HOOK, Checkpoint, client, counting, execute, hooked, mounting
from tests.session.test_deepening import GONE, STOPPED, deepened

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from local.fly.emulator import Emulator
    from tests.session.harness import Replica, World

CHECKPOINT = pb.Policy.PERSISTENCE_CHECKPOINT

#: The commit of such a start waits for the lock, after its writes to the session.
HELD = (
    """
    CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN PERFORM pg_advisory_xact_lock(8); RETURN NEW; END $$
    """,
    """
    CREATE TRIGGER hold BEFORE INSERT ON decisions FOR EACH ROW
    WHEN (NEW.method IN ('RestoreCheckpoint', 'ForkSession')) EXECUTE FUNCTION hold()
    """,
)
WAITING = (
    "SELECT count(*) FROM pg_stat_activity"
    " WHERE datname = current_database() AND wait_event_type = 'Lock'"
)


def restore(at: Replica, checkpoint: Any) -> Coroutine[Any, Any, Any]:
    return client(at).restore(checkpoint.session_id, number=checkpoint.number)


def fork(at: Replica, checkpoint: Any) -> Coroutine[Any, Any, Any]:
    return client(at).fork(checkpoint.checkpoint_id, "robin")


@pytest.mark.usefixtures("patient_database")
@pytest.mark.parametrize("call", [restore, fork])
async def test_a_delete_waits_for_the_commit_of_a_start_that_restores_the_checkpoint(
    roost: World, database_url: str, call: Any
) -> None:
    """The delete is rejected then, and the start gets the checkpoint's state."""
    session = await counting(roost, 1)
    taken = await client(roost.one).create(session.session_id)
    # A newer one, so that no session needs the first.
    await client(roost.one).create(session.session_id)
    for statement in HELD:
        execute(database_url, statement)

    async def waits(count: int) -> bool:
        ((waiting,),) = await asyncio.to_thread(execute, database_url, WAITING)
        return int(waiting) >= count

    async with await psycopg.AsyncConnection.connect(database_url) as holder:
        await holder.execute("SELECT pg_advisory_xact_lock(8)")
        starting = asyncio.create_task(call(roost.one, taken))
        await eventually(lambda: waits(1))
        deleting = asyncio.create_task(failing(client(roost.two).delete(taken.checkpoint_id)))

        async def waits_or_done() -> bool:
            return deleting.done() or await waits(2)

        await eventually(waits_or_done)
    answer = await starting
    assert answer.session.state == pb.Session.STATE_ACTIVE
    assert (await deleting).reason == "CHECKPOINT_IN_USE"
    assert await roost.counter(answer.session) == "1"


# --- a checkpoint on whose word a container is destroyed -----------------------------------------

#: The statement that begins a transition waits for lock 8, and a delete for lock 9 in its commit.
HELD_BOTH = (
    """
    CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN PERFORM pg_advisory_xact_lock(TG_ARGV[0]::bigint); RETURN NEW; END $$
    """,
    """
    CREATE TRIGGER hold BEFORE INSERT ON session_events FOR EACH ROW
    WHEN (NEW.state IN ('PAUSING', 'STARTING')) EXECUTE FUNCTION hold(8)
    """,
    """
    CREATE TRIGGER hold BEFORE INSERT ON decisions FOR EACH ROW
    WHEN (NEW.method = 'DeleteCheckpoint') EXECUTE FUNCTION hold(9)
    """,
)
#: How many statements wait for lock 8, for lock 9, and for a row.
WAITERS = """
    SELECT count(*) FILTER (WHERE locktype = 'advisory' AND objid = 8),
        count(*) FILTER (WHERE locktype = 'advisory' AND objid = 9),
        count(*) FILTER (WHERE locktype <> 'advisory')
    FROM pg_locks JOIN pg_stat_activity USING (pid)
    WHERE NOT granted AND datname = current_database()
"""


async def set_policy(replica: Replica, path: str, policy: pb.Policy) -> None:
    """Set one field of the project's policy."""
    request = policy_pb.UpdateProjectPolicyRequest(
        project_id="nest", policy=policy, update_mask=FieldMask(paths=[path])
    )
    await PolicyServiceStub(replica.channel).UpdateProjectPolicy(request, timeout=TIMEOUT)


async def started(roost: World) -> pb.Session:
    """The session after a start that is repeated while it is UNAVAILABLE."""

    async def once() -> pb.Session | None:
        try:
            return (await roost.one.start()).session
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.UNAVAILABLE, error
            return None

    found: pb.Session | None = await eventually(once, timeout=40)
    assert found is not None
    return found


@pytest.fixture
async def saved(emulator: Emulator, database_url: str) -> AsyncIterator[World]:
    """Roost saves at pauses, destroys an hour later, and recreates for a changed spec."""
    spans: dict[str, Any] = {"deepen_after": GONE, "checkpoint_after": STOPPED}
    spans["lease"] = timedelta(seconds=30)
    async with world(
        emulator, database_url, on_fingerprint_change="recreate_keeping_files", **spans
    ) as roost:
        await set_policy(roost.one, "checkpoint_on_stop", pb.Policy(checkpoint_on_stop=True))
        yield roost


async def deepen(roost: World, session: pb.Session) -> None:
    """Destroy the container, an hour after the pause."""
    await deepened(roost, session)


async def recreate(roost: World, session: pb.Session) -> None:
    """Destroy the container and create one of another spec."""
    await roost.one.start(spec=hooked(A="2"))


@pytest.mark.usefixtures("patient_database")
@pytest.mark.parametrize("destroying", [deepen, recreate])
async def test_a_container_outlives_a_checkpoint_that_is_deleted_before_it(
    saved: World,
    database_url: str,
    destroying: Callable[[World, pb.Session], Coroutine[Any, Any, None]],
) -> None:
    """The delete decides before the transition begins, and commits before the container may go.

    The state is then only in the container, which is kept, or saved again before it goes.
    """
    session = await counting(saved, 2)
    await saved.one.pause(session.session_id)
    (taken,) = await client(saved.one).of()
    for statement in HELD_BOTH:
        execute(database_url, statement)

    async def waiting(*least: int) -> bool:
        ((*found,),) = await asyncio.to_thread(execute, database_url, WAITERS)
        return all(have >= want for have, want in zip(found, least, strict=True))

    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as holder:
        await holder.execute("SELECT pg_advisory_lock(8), pg_advisory_lock(9)")
        work = asyncio.create_task(destroying(saved, session))
        await eventually(lambda: waiting(1, 0, 0))
        deleting = asyncio.create_task(client(saved.two).delete(taken.checkpoint_id))
        await eventually(lambda: waiting(1, 0, 1))
        await holder.execute("SELECT pg_advisory_unlock(8)")
        await eventually(lambda: waiting(0, 1, 1))
    await deleting
    await work
    answer = await saved.two.start()
    assert await saved.counter(answer.session) == "2"


async def destroying_stop(roost: World, session: pb.Session) -> None:
    """A stop that saves, whose destroy is not answered: the pause stays in flight."""
    await set_policy(roost.one, "persistence", pb.Policy(persistence=CHECKPOINT))
    await failing(roost.one.stop(session.session_id))


async def destroying_recreate(roost: World, session: pb.Session) -> None:
    """A start of another spec, whose destroy is not answered: the session is paused."""
    await failing(roost.one.start(spec=hooked(A="2")))


@pytest.mark.parametrize("destroying", [destroying_stop, destroying_recreate])
async def test_a_checkpoint_is_not_deleted_while_its_container_is_destroyed(
    emulator: Emulator,
    database_url: str,
    destroying: Callable[[World, pb.Session], Coroutine[Any, Any, None]],
) -> None:
    """From the note that the container may go, the checkpoint is the session's only sure state."""
    quick: dict[str, Any] = {"start_budget": timedelta(seconds=10)}
    policy = "recreate_keeping_files"
    async with world(emulator, database_url, on_fingerprint_change=policy, **quick) as roost:
        session = await counting(roost, 2)
        await roost.admin.set_fault("server_error", action="destroy", times=None)
        await destroying(roost, session)
        ((wanted,),) = execute(database_url, "SELECT wanted FROM containers")
        assert not wanted
        (taken,) = await client(roost.two).of()
        failure = await failing(client(roost.two).delete(taken.checkpoint_id))
        assert failure.reason == "CHECKPOINT_IN_USE"
        await roost.admin.clear_faults()
        await roost.free_lease(session)
        assert await roost.counter(await started(roost)) == "2"


async def test_a_snapshot_in_progress_does_not_replace_the_checkpoint_of_a_destroyed_container(
    saved: World,
) -> None:
    """Its session needs the checkpoint with the application's state, whose container is gone."""
    volume = (await mounting(saved)).mounts[0]
    session = (await saved.one.start(spec=spec(mounts=[volume], state_hook=HOOK))).session
    await saved.click_twice(session)
    await saved.one.pause(session.session_id)
    checkpoints = client(saved.two)

    async def begun() -> bool:
        return len(await checkpoints.of()) == 2

    asked = checkpoints.create(session.session_id, kind=Checkpoint.KIND_VOLUME)
    taking = asyncio.create_task(asked)
    await eventually(begun)
    await deepened(saved, session)
    await asyncio.gather(taking, return_exceptions=True)
    for each in await checkpoints.of():
        with suppress(grpc.aio.AioRpcError):
            await checkpoints.delete(each.checkpoint_id)
    answer = await saved.one.start()
    assert await saved.counter(answer.session) == "2"


async def test_a_rollback_that_destroyed_the_container_and_failed_needs_both_checkpoints(
    emulator: Emulator, database_url: str
) -> None:
    """The state before the rollback is in its own checkpoint alone, and can be restored."""
    async with world(emulator, database_url, start_budget=timedelta(seconds=10)) as roost:
        session = (await roost.one.start(spec=await mounting(roost))).session
        checkpoints = client(roost.one)
        await checkpoints.create(session.session_id)
        await roost.click_twice(session)
        await roost.admin.set_fault("server_error", action="create", times=None)
        await failing(checkpoints.restore(session.session_id, number=1))
        shown = await roost.one.get(session.session_id)
        assert (shown.state, shown.pause_depth) == (
            pb.Session.STATE_PAUSED,
            pb.PAUSE_DEPTH_CHECKPOINT,
        )
        before, _ = await checkpoints.of()
        assert before.reason == Checkpoint.REASON_ROLLBACK
        failure = await failing(checkpoints.delete(before.checkpoint_id))
        assert failure.reason == "CHECKPOINT_IN_USE"
        await roost.admin.clear_faults()
        assert await roost.counter(await started(roost)) == "2"
