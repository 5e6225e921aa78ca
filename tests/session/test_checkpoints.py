"""CheckpointService: state is READY once it is durable and proved, and kept for as long as told."""

from __future__ import annotations

import asyncio
import hashlib
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import UUID

import grpc
import pytest

from roost.session.v1 import session_pb2
from session_service.storage import checkpoint_outcomes, checkpoints, chunks
from session_service.storage.checkpoint_outcomes import Proved
from tests.container.harness import failing
from tests.session.harness import request_id, spec
from tests.session.saving import Checkpoint, client, counting, execute, flip

if TYPE_CHECKING:
    from tests.session.harness import World


async def test_a_checkpoint_is_the_state_numbered_per_key(roost: World) -> None:
    """What is kept is the application's bytes: their size and their SHA-256 are theirs."""
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
    assert other.number == 1, "another key counts for itself"
    assert [each.number for each in await saved.of("wren")] == [2, 1]
    assert await saved.get(first.checkpoint_id) == first


async def test_checkpoints_at_once_come_one_after_the_other(roost: World) -> None:
    """From two replicas: each has its number, none is lost, none twice."""
    session = await counting(roost, 1)
    callers = [client(roost.replicas[turn % 2]) for turn in range(6)]
    taken = await asyncio.gather(*(each.create(session.session_id) for each in callers))
    assert sorted(each.number for each in taken) == [1, 2, 3, 4, 5, 6]
    assert all(each.state == Checkpoint.STATE_READY for each in taken)


async def test_a_request_id_makes_one_checkpoint(roost: World) -> None:
    """At any replica, at once or later; another body is refused."""
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


async def test_what_cannot_be_saved_is_refused(roost: World) -> None:
    """No hook, a session at rest, none at all; nothing is left behind."""
    saved = client(roost.one)
    session = (await roost.one.start(spec=spec())).session
    failure = await failing(saved.create(session.session_id))
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "CHECKPOINT_UNSUPPORTED",
    )
    failure = await failing(saved.create(request_id()))
    assert failure.reason == "SESSION_NOT_FOUND"
    resting = await counting(roost, 1, "robin")
    await roost.one.stop(resting.session_id)
    failure = await failing(saved.create(resting.session_id))
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


async def test_an_application_that_refuses_is_told_with_its_words(roost: World) -> None:
    """STATE_HOOK_FAILED, and the attempt is shown as FAILED."""
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


async def test_beyond_the_limit_without_a_bucket_it_is_refused(
    emulator: object, database_url: str
) -> None:
    """RESOURCE_EXHAUSTED, of no use to repeat; no bytes are left behind."""
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


async def test_the_oldest_go_beyond_what_is_kept_but_pinned_ones_stay(
    roost: World, database_url: str
) -> None:
    """Five by default, pinned ones apart; with them go their bytes."""
    session = await counting(roost, 1)
    saved = client(roost.one)
    first = await saved.create(session.session_id)
    assert (await saved.pin(first.checkpoint_id)).pinned
    for _ in range(7):
        await saved.create(session.session_id)
    kept = await saved.of()
    assert [each.number for each in kept] == [8, 7, 6, 5, 4, 1]
    assert kept[-2].parent_checkpoint_id == first.checkpoint_id, "the nearest that is kept"
    assert execute(database_url, "SELECT count(DISTINCT checkpoint_id) FROM checkpoint_chunks") == [
        (6,)
    ]
    await saved.pin(first.checkpoint_id, pinned=False)
    await saved.create(session.session_id)
    assert [each.number for each in await saved.of()] == [9, 8, 7, 6, 5]


async def test_deleting_has_its_rules(roost: World, database_url: str) -> None:
    """Pinned: refused. Gone: missing, but for the same call. What descends from it stays."""
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
    # The newest of a session that runs may go: what it descends from is the one before.
    await saved.delete(three.checkpoint_id)
    shown = execute(database_url, "SELECT checkpoint_id::text FROM sessions")
    assert shown == [(one.checkpoint_id,)]


async def test_lists_go_page_by_page(roost: World) -> None:
    """Newest first; a token of another key's list is refused."""
    session = await counting(roost, 1)
    saved = client(roost.one)
    for _ in range(3):
        await saved.create(session.session_id)
    from roost.session.v1 import checkpoint_service_pb2 as pb

    request = pb.ListCheckpointsRequest(session_id=session.session_id, page_size=2)
    page = await saved.stub.ListCheckpoints(request, timeout=9)
    assert [each.number for each in page.checkpoints] == [3, 2]
    request.page_token = page.next_page_token
    rest = await saved.stub.ListCheckpoints(request, timeout=9)
    assert [each.number for each in rest.checkpoints] == [1]
    assert not rest.next_page_token
    failure = await failing(saved.of("robin", page_token=page.next_page_token))
    assert failure.fields == ("page_token",) or failure.metadata["field"] == "page_token"


async def test_a_damaged_checkpoint_is_data_loss_when_asked_for(
    roost: World, database_url: str
) -> None:
    """CHECKPOINT_CORRUPT, for good; the session runs on as it was, and others can be restored."""
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


async def test_what_failed_is_never_ready_any_more(roost: World) -> None:
    """Whoever says FAILED wins: a late owner makes nothing READY, and adds no byte."""
    session = await counting(roost, 1)
    database = roost.one.running.database
    first = await client(roost.one).create(session.session_id)
    checkpoint_id = UUID(first.checkpoint_id)
    async with database.connection() as connection:
        await connection.execute(
            "UPDATE checkpoints SET state = 'WRITING', lease_until = now() + interval '1 minute'"
        )
    assert await checkpoint_outcomes.fail(database, checkpoint_id, "SUPERSEDED") is not None
    late = Proved(2, 10, b"")
    ready = checkpoint_outcomes.ready(database, checkpoint_id, late, epoch=1, answers=False)
    assert await ready is None
    assert not await chunks.put(database, checkpoint_id, 7, b"late")
    assert not await checkpoints.renew(database, checkpoint_id, timedelta(seconds=9))
    assert await checkpoint_outcomes.fail(database, checkpoint_id, "AGAIN") is None
    shown = await client(roost.one).get(first.checkpoint_id)
    assert (shown.state, shown.failure) == (Checkpoint.STATE_FAILED, "SUPERSEDED")
