"""Request ids: the same call twice is one call, at any replica."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc
import psycopg
import pytest

from roost.session.v1 import session_pb2 as pb
from roost.session.v1 import session_service_pb2 as rpc_pb
from tests.container.harness import failing, read_failure
from tests.eventually import eventually
from tests.session.harness import key, request_id
from tests.session.saving import client, counting, execute

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.session.harness import Replica, World

#: The commit of a PinCheckpoint waits for the lock before its decision is inserted.
HELD_PINS = (
    """
    CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM set_config('lock_timeout', '0', true);
        PERFORM pg_advisory_xact_lock(8);
        RETURN NEW;
    END $$
    """,
    """
    CREATE TRIGGER hold BEFORE INSERT ON decisions FOR EACH ROW
    WHEN (NEW.method = 'PinCheckpoint') EXECUTE FUNCTION hold()
    """,
)
WAITING = (
    "SELECT count(*) FROM pg_stat_activity"
    " WHERE datname = current_database() AND wait_event_type = 'Lock'"
)


async def test_a_start_whose_answer_was_lost_is_answered_again(roost: World) -> None:
    """Same session, outcome, attempts and decision at another replica, after later calls too."""
    once = request_id()
    first = await roost.one.start(request_id=once)
    await roost.one.stop(first.session.session_id)
    again = await roost.two.start(request_id=once)
    assert again.session.session_id == first.session.session_id
    assert (again.outcome, again.decision_id) == (first.outcome, first.decision_id)
    assert (again.continuity, again.continuity_verified) == (
        first.continuity,
        first.continuity_verified,
    )
    assert list(again.attempts) == list(first.attempts)
    assert again.session.state == pb.Session.STATE_PAUSED, "the state is the current one"


async def test_a_reuse_is_replayed_too(roost: World) -> None:
    """The hot path records its request id in its only statement."""
    session = (await roost.one.start()).session
    once = request_id()
    first = await roost.one.start(request_id=once)
    again = await roost.two.start(request_id=once)
    assert first.outcome == again.outcome == pb.START_OUTCOME_REUSED
    assert first.decision_id == again.decision_id
    assert again.session.start_count == first.session.start_count == session.start_count + 1


async def test_another_body_is_rejected(roost: World) -> None:
    """Any difference counts; the two spellings of the default slot are no difference."""
    once = request_id()
    await roost.one.start(request_id=once)
    failure = await failing(roost.two.start("robin", request_id=once))
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "REQUEST_ID_REUSED",
    )
    failure = await failing(roost.two.start(request_id=once, mode=pb.START_MODE_FRESH))
    assert failure.reason == "REQUEST_ID_REUSED"
    same = rpc_pb.StartSessionRequest(request_id=once, key=key(slot="default"))
    assert (await roost.two.stub.StartSession(same, timeout=30)).outcome == pb.START_OUTCOME_CREATED


async def test_a_repeat_of_a_start_in_flight_waits_for_it(roost: World) -> None:
    """Both have the same answer; one of them did the work."""
    once = request_id()
    await roost.admin.set_fault("slow_before", action="create", delay_ms=300)
    first, second = await asyncio.gather(
        roost.one.start(request_id=once), roost.two.start(request_id=once)
    )
    assert first.decision_id == second.decision_id
    assert not first.joined
    assert not second.joined
    assert len(await roost.one.decisions(first.session.session_id)) == 1


async def test_a_final_error_is_recorded_and_a_retryable_one_frees_the_id(roost: World) -> None:
    """A failed FAIL_IF_LIVE is recorded; a failure for lack of capacity is not."""
    session = (await roost.one.start()).session
    once = request_id()
    for _ in range(2):
        fail = roost.one.start(request_id=once, mode=pb.START_MODE_FAIL_IF_LIVE)
        assert (await failing(fail)).reason == "LIVE_SESSION_EXISTS"
        await roost.one.end(session.session_id)
    again = request_id()
    await roost.admin.set_fault("capacity", action="create", times=1)
    assert (await failing(roost.one.start("robin", request_id=again))).retry_seconds
    answer = await roost.two.start("robin", request_id=again)
    assert answer.outcome == pb.START_OUTCOME_CREATED


@pytest.mark.parametrize("verb", ["stop", "end"])
async def test_other_calls_are_replayed_too(roost: World, verb: str) -> None:
    """A second stop or end with the same id does nothing again, even after the session is back."""
    session = (await roost.one.start()).session
    once = request_id()
    if verb == "stop":
        await roost.one.stop(session.session_id, request_id=once)
    else:
        await roost.one.end(session.session_id, request_id=once)
        await roost.one.undelete(session.session_id)
    await roost.one.start()
    call = roost.two.stop if verb == "stop" else roost.two.end
    again = await call(session.session_id, request_id=once)
    assert again.state == pb.Session.STATE_ACTIVE
    suspends = await roost.committed("suspend")
    assert suspends == 1


@pytest.mark.replicas(1)
@pytest.mark.parametrize("verb", ["start", "pause", "checkpoint"])
async def test_a_deleted_decision_gives_the_same_error_in_every_call(
    roost: World, database_url: str, verb: str
) -> None:
    """It is deleted while its call is running: the result of the call is unknown. The caller
    has to read the session or repeat the call.
    """
    action = {"start": "create", "pause": "suspend", "checkpoint": "exec"}[verb]
    session_id = "" if verb == "start" else (await counting(roost, 1)).session_id
    await roost.admin.set_fault("slow_before", action=action, delay_ms=30_000)
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "start": lambda: roost.one.start("robin"),
        "pause": lambda: roost.one.pause(session_id),
        "checkpoint": lambda: client(roost.one).create(session_id),
    }
    call = asyncio.create_task(failing(calls[verb]()))

    async def gone() -> bool:
        forget = "DELETE FROM decisions WHERE finish_time IS NULL RETURNING decision_id"
        return call.done() or bool(execute(database_url, forget))

    assert await eventually(gone)
    await roost.admin.clear_faults()
    failure = await call
    assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "STORAGE_UNAVAILABLE")


async def test_replays_of_a_checkpoint_are_counted(roost: World, database_url: str) -> None:
    session_id = (await counting(roost, 1)).session_id
    once = request_id()
    first = await client(roost.one).create(session_id, request_id=once)
    assert await client(roost.two).create(session_id, request_id=once) == first
    counted = execute(
        database_url, "SELECT replay_count FROM decisions WHERE method = 'CreateCheckpoint'"
    )
    assert counted == [(1,)]


@pytest.mark.replicas(1)
@pytest.mark.parametrize("verb", ["create", "restore", "fork", "pin"])
async def test_final_errors_of_checkpoint_calls_are_recorded(
    roost: World, database_url: str, verb: str
) -> None:
    """The same request id fails with the same words, though the call would succeed now. A caller
    that missed the error must not find later that the call was executed after all.
    """
    session = await counting(roost, 1)
    saved, once = client(roost.one), request_id()
    taken = await saved.create(session.session_id)
    as_it_was = "UPDATE checkpoints SET state = %s"
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "create": lambda: saved.create(session.session_id, request_id=once),
        "restore": lambda: saved.restore(session.session_id, number=2, request_id=once),
        "fork": lambda: saved.fork(taken.checkpoint_id, "robin", request_id=once),
        "pin": lambda: saved.pin(taken.checkpoint_id, request_id=once),
    }
    match verb:
        case "create":
            await roost.one.pause(session.session_id)
        case "fork" | "pin":
            execute(database_url, as_it_was, "DELETING")
    first = await failing(calls[verb]())
    match verb:
        case "create":
            await roost.one.start()
        case "restore":
            await saved.create(session.session_id)
        case "fork" | "pin":
            execute(database_url, as_it_was, "READY")
    again = await failing(calls[verb]())
    assert (again.code, again.reason) == (first.code, first.reason)
    assert first.reason in ("SESSION_STATE_CONFLICT", "CHECKPOINT_MISSING")


async def test_of_two_pins_with_one_request_id_one_is_executed(
    roost: World, database_url: str
) -> None:
    """The bodies differ, and both calls are executed before either is recorded."""
    session, checkpoints = await counting(roost, 1), client(roost.one)
    taken = [await checkpoints.create(session.session_id) for _ in range(2)]
    for statement in HELD_PINS:
        execute(database_url, statement)
    once = request_id()

    async def pin(replica: Replica, checkpoint_id: str) -> str:
        """The reason of the refusal; empty if there is none."""
        try:
            await client(replica).pin(checkpoint_id, request_id=once)
        except grpc.aio.AioRpcError as error:
            return read_failure(error).reason
        return ""

    async def both_wait() -> bool:
        ((waiting,),) = await asyncio.to_thread(execute, database_url, WAITING)
        return int(waiting) == 2

    async with await psycopg.AsyncConnection.connect(database_url) as holder:
        await holder.execute("SELECT pg_advisory_xact_lock(8)")
        pins = [
            asyncio.create_task(pin(replica, checkpoint.checkpoint_id))
            for replica, checkpoint in zip(roost.replicas, taken, strict=True)
        ]
        await eventually(both_wait)
    reasons = await asyncio.gather(*pins)
    assert sorted(reasons) == ["", "REQUEST_ID_REUSED"]
    shown = [(await checkpoints.get(each.checkpoint_id)).pinned for each in taken]
    assert shown == [not reason for reason in reasons]
