"""CheckpointService: a checkpoint is READY once durable and verified; retention and deletion."""

from __future__ import annotations

import asyncio
import hashlib
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import UUID

import grpc
import pytest

from roost.session.v1 import session_pb2
from session_service.storage.checkpoint import write
from session_service.storage.checkpoint.write import Proved
from tests.container.harness import failing
from tests.session.harness import TIMEOUT, request_id, spec
from tests.session.saving import Checkpoint, client, counting, execute, flip

if TYPE_CHECKING:
    from tests.session.harness import World

pytestmark = pytest.mark.replicas(1)


@pytest.mark.replicas(2)
async def test_a_checkpoint_is_the_state_numbered_per_key(roost: World) -> None:
    """Size and SHA-256 are those of the application's own bytes."""
    session = await counting(roost, 2)
    saved = client(roost.one)
    first = await saved.create(session.session_id, label="two clicks")
    state = b"2\n"
    assert (first.number, first.state, first.reason) == (
        1,
        Checkpoint.STATE_READY,
        Checkpoint.REASON_REQUESTED,
    )
    assert (first.size_bytes, first.sha256) == (len(state), hashlib.sha256(state).digest())
    assert (first.label, first.kind) == ("two clicks", Checkpoint.KIND_APPLICATION)
    assert (first.session_id, first.generation) == (session.session_id, 1)
    assert first.fingerprint == session.fingerprint
    assert not first.parent_checkpoint_id
    await roost.counter(session, "/click")
    second = await client(roost.two).create(session.session_id)
    assert (second.number, second.parent_checkpoint_id) == (2, first.checkpoint_id)
    other = await saved.create((await counting(roost, 1, "robin")).session_id)
    assert other.number == 1, "each key has its own numbers"
    assert [each.number for each in await saved.of("wren")] == [2, 1]
    assert await saved.get(first.checkpoint_id) == first


@pytest.mark.replicas(2)
async def test_concurrent_checkpoints_are_taken_one_after_the_other(roost: World) -> None:
    """Six calls at two replicas get six consecutive numbers."""
    session = await counting(roost, 1)
    callers = [client(roost.replicas[turn % 2]) for turn in range(6)]
    taken = await asyncio.gather(*(each.create(session.session_id) for each in callers))
    assert sorted(each.number for each in taken) == [1, 2, 3, 4, 5, 6]
    assert all(each.state == Checkpoint.STATE_READY for each in taken)


@pytest.mark.replicas(2)
async def test_a_request_id_makes_one_checkpoint(roost: World) -> None:
    """At any replica, at once or later; with another body it is REQUEST_ID_REUSED."""
    session = await counting(roost, 1)
    once = request_id()
    calls = [
        client(roost.replicas[turn % 2]).create(session.session_id, request_id=once)
        for turn in range(4)
    ]
    taken = await asyncio.gather(*calls)
    assert len({each.checkpoint_id for each in taken}) == 1
    again = await client(roost.two).create(session.session_id, request_id=once)
    assert again.checkpoint_id == taken[0].checkpoint_id
    failure = await failing(
        client(roost.one).create(session.session_id, request_id=once, label="another")
    )
    assert failure.reason == "REQUEST_ID_REUSED"
    assert len(await client(roost.one).of()) == 1


async def test_a_session_that_cannot_be_saved_is_an_error(roost: World) -> None:
    """No state hook, a paused session, an unknown session; no checkpoint is created."""
    saved = client(roost.one)
    session = (await roost.one.start(spec=spec())).session
    failure = await failing(saved.create(session.session_id))
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "CHECKPOINT_UNSUPPORTED",
    )
    failure = await failing(saved.create(request_id()))
    assert failure.reason == "SESSION_NOT_FOUND"
    paused = await counting(roost, 1, "robin")
    await roost.one.stop(paused.session_id)
    failure = await failing(saved.create(paused.session_id))
    assert failure.reason == "SESSION_STATE_CONFLICT"
    assert not await saved.of("wren") + await saved.of("robin")


@pytest.mark.parametrize("kind", ["application", "volume"])
async def test_wrong_fields_are_named(roost: World, kind: str) -> None:
    """INVALID_ARGUMENT, each field by its path."""
    saved = client(roost.one)
    failure = await failing(saved.create("nobody", request_id="never", label="x" * 200))
    assert failure.fields == ("session_id", "request_id", "label")
    failure = await failing(saved.restore(request_id()))
    assert failure.fields == ("checkpoint_id",)
    failure = await failing(saved.restore(request_id(), number=-1))
    assert failure.fields == ("number",)
    failure = await failing(saved.get(kind))
    assert failure.fields == ("checkpoint_id",)


@pytest.mark.replicas(2)
async def test_a_state_hook_that_fails_is_reported(roost: World) -> None:
    """STATE_HOOK_FAILED; the checkpoint is listed as FAILED."""
    from roost.container.v1 import container_service_pb2 as container_pb

    hook = container_pb.StateHook(http_path="/nothing/here")
    session = (await roost.one.start(spec=spec(state_hook=hook))).session
    saved = client(roost.one)
    once = request_id()
    for replica in roost.replicas:
        failure = await failing(client(replica).create(session.session_id, request_id=once))
        assert (failure.code, failure.reason) == (
            grpc.StatusCode.FAILED_PRECONDITION,
            "STATE_HOOK_FAILED",
        )
    (shown,) = await saved.of()
    assert (shown.state, shown.failure) == (Checkpoint.STATE_FAILED, "STATE_HOOK_FAILED")
    failure = await failing(saved.restore(session.session_id, number=1))
    assert failure.reason == "CHECKPOINT_NOT_READY"


async def test_a_state_beyond_the_limit_fails_without_a_bucket(
    emulator: object, database_url: str
) -> None:
    """RESOURCE_EXHAUSTED without a retry delay; no bytes are left behind."""
    from local.fly.emulator import Emulator
    from tests.session.harness import world

    assert isinstance(emulator, Emulator)
    async with world(emulator, database_url, 1, checkpoint_database_limit=10) as roost:
        session = await counting(roost, 1, COUNTER_STATE_BYTES="100000")
        failure = await failing(client(roost.one).create(session.session_id))
        assert (failure.code, failure.reason) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "CHECKPOINT_TOO_LARGE",
        )
        assert failure.retry_seconds is None
        (shown,) = await client(roost.one).of()
        assert (shown.state, shown.failure) == (Checkpoint.STATE_FAILED, "CHECKPOINT_TOO_LARGE")
    assert execute(database_url, "SELECT count(*) FROM checkpoint_chunks") == [(0,)]


async def test_the_oldest_checkpoints_are_deleted_but_pinned_ones_stay(
    roost: World, database_url: str
) -> None:
    """By default five are kept, not counting pinned ones. The bytes of the others are deleted."""
    session = await counting(roost, 1)
    saved = client(roost.one)
    first = await saved.create(session.session_id)
    assert (await saved.pin(first.checkpoint_id)).pinned
    for _ in range(7):
        await saved.create(session.session_id)
    kept = await saved.of()
    assert [each.number for each in kept] == [8, 7, 6, 5, 4, 1]
    assert kept[-2].parent_checkpoint_id == first.checkpoint_id, "the nearest kept ancestor"
    assert execute(database_url, "SELECT count(DISTINCT checkpoint_id) FROM checkpoint_chunks") == [
        (6,)
    ]
    await saved.pin(first.checkpoint_id, pinned=False)
    await saved.create(session.session_id)
    assert [each.number for each in await saved.of()] == [9, 8, 7, 6, 5]


@pytest.mark.replicas(2)
async def test_the_rules_of_deleting_a_checkpoint(roost: World, database_url: str) -> None:
    """A pinned one is kept. A second delete is CHECKPOINT_MISSING, unless it is a replay.
    Descendants stay, with the nearest ancestor as parent.
    """
    session = await counting(roost, 1)
    saved = client(roost.one)
    one, two, three = [await saved.create(session.session_id) for _ in range(3)]
    await saved.pin(two.checkpoint_id)
    failure = await failing(saved.delete(two.checkpoint_id))
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "CHECKPOINT_PINNED",
    )
    await saved.pin(two.checkpoint_id, pinned=False)
    once = request_id()
    await saved.delete(two.checkpoint_id, request_id=once)
    await client(roost.two).delete(two.checkpoint_id, request_id=once)
    failure = await failing(saved.delete(two.checkpoint_id))
    assert (failure.code, failure.reason) == (grpc.StatusCode.NOT_FOUND, "CHECKPOINT_MISSING")
    assert (await failing(saved.get(two.checkpoint_id))).reason == "CHECKPOINT_MISSING"
    assert (await saved.get(three.checkpoint_id)).parent_checkpoint_id == one.checkpoint_id
    assert execute(
        database_url,
        "SELECT count(*) FROM checkpoint_chunks WHERE checkpoint_id = %s",
        two.checkpoint_id,
    ) == [(0,)]
    # The newest of an ACTIVE session may be deleted: the session then descends from its parent.
    await saved.delete(three.checkpoint_id)
    shown = execute(database_url, "SELECT checkpoint_id::text FROM sessions")
    assert shown == [(one.checkpoint_id,)]


async def test_lists_have_pages(roost: World) -> None:
    """Newest first; a page token of another key's list is rejected."""
    session = await counting(roost, 1)
    saved = client(roost.one)
    for _ in range(3):
        await saved.create(session.session_id)
    from roost.session.v1 import checkpoint_service_pb2 as pb

    request = pb.ListCheckpointsRequest(session_id=session.session_id, page_size=2)
    page = await saved.stub.ListCheckpoints(request, timeout=TIMEOUT)
    assert [each.number for each in page.checkpoints] == [3, 2]
    request.page_token = page.next_page_token
    rest = await saved.stub.ListCheckpoints(request, timeout=TIMEOUT)
    assert [each.number for each in rest.checkpoints] == [1]
    assert not rest.next_page_token
    failure = await failing(saved.of("robin", page_token=page.next_page_token))
    assert failure.fields == ("page_token",) or failure.metadata["field"] == "page_token"


async def test_restoring_a_damaged_checkpoint_is_data_loss(roost: World, database_url: str) -> None:
    """It stays CHECKPOINT_CORRUPT. The session runs on unchanged; others can be restored."""
    session = await counting(roost, 1)
    saved = client(roost.one)
    sound = await saved.create(session.session_id)
    await roost.counter(session, "/click")
    damaged = await saved.create(session.session_id)
    flip(database_url, damaged.checkpoint_id)
    for _ in range(2):
        failure = await failing(saved.restore(session.session_id, number=2))
        assert (failure.code, failure.reason) == (
            grpc.StatusCode.DATA_LOSS,
            "CHECKPOINT_CORRUPT",
        )
    shown = await saved.get(damaged.checkpoint_id)
    assert (shown.state, shown.failure) == (Checkpoint.STATE_FAILED, "CHECKPOINT_CORRUPT")
    assert (await roost.one.get(session.session_id)).state == session_pb2.Session.STATE_ACTIVE
    assert await roost.counter(session) == "2"
    answer = await saved.restore(session.session_id, checkpoint_id=sound.checkpoint_id)
    assert answer.outcome == session_pb2.START_OUTCOME_RESTORED
    assert await roost.counter(session) == "1"


async def test_a_failed_checkpoint_never_becomes_ready(roost: World) -> None:
    """Once FAILED, a late writer can neither make it READY, nor add bytes, nor renew its lease."""
    session = await counting(roost, 1)
    database = roost.one.running.database
    first = await client(roost.one).create(session.session_id)
    checkpoint_id = UUID(first.checkpoint_id)
    async with database.connection() as connection:
        await connection.execute(
            "UPDATE checkpoints SET state = 'WRITING', lease_until = now() + interval '1 minute'"
        )
    assert await write.fail(database, checkpoint_id, "SUPERSEDED") is not None
    late = Proved(2, 10, b"")
    ready = write.ready(database, checkpoint_id, late, epoch=1, answers=False)
    assert await ready is None
    assert not await write.put(database, checkpoint_id, 7, b"late")
    assert not await write.renew(database, checkpoint_id, timedelta(seconds=9))
    assert await write.fail(database, checkpoint_id, "AGAIN") is None
    shown = await client(roost.one).get(first.checkpoint_id)
    assert (shown.state, shown.failure) == (Checkpoint.STATE_FAILED, "SUPERSEDED")
