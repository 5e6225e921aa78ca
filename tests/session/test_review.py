"""Histories that once broke a promise: faults, crashes and calls at the least convenient time."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import uuid4

import grpc
import psycopg
import pytest
from google.protobuf.duration_pb2 import Duration

from roost.session.v1 import session_pb2 as pb
from roost.session.v1 import session_service_pb2 as rpc_pb
from session_service.domain import next_action
from session_service.domain.next_action import Action, Timings
from session_service.storage.session import due
from tests.container.harness import failing
from tests.eventually import eventually
from tests.session.harness import TIMEOUT, World, request_id, spec, world
from tests.session.saving import (
    HOOK,
    Checkpoint,
    client,
    counting,
    execute,
    large,
    mounting,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from local.fly.emulator import Emulator

pytestmark = pytest.mark.replicas(1)


@pytest.fixture
async def impatient(emulator: Emulator, database_url: str) -> AsyncIterator[World]:
    """Replicas that discard an abandoned start at once."""
    async with world(emulator, database_url, abandoned_after=timedelta(0)) as running:
        yield running


async def broken_off(roost: World, database_url: str) -> tuple[pb.Session, pb.Session]:
    """A session that is being replaced, and its successor, whose start broke off by an internal
    error: its decision is answered, its lease expired, and no caller waits for it.
    """
    replaced = (await roost.one.start()).session
    await roost.click_twice(replaced)
    successor = (await roost.one.start("robin")).session
    execute(
        database_url,
        "UPDATE sessions SET state = 'ENDING', transition = 'REPLACE', prior_state = 'ACTIVE',"
        " epoch = epoch + 1, successor_id = %s, due_at = NULL WHERE session_id = %s",
        successor.session_id,
        replaced.session_id,
    )
    execute(
        database_url,
        "UPDATE sessions SET user_id = 'wren', predecessor_id = %s, state = 'STARTING',"
        " transition = 'START', prior_state = NULL, start_time = NULL, decision_id = NULL,"
        " owner = %s, lease_until = now(), deadline = now(), due_at = now(),"
        " epoch = epoch + 1 WHERE session_id = %s",
        replaced.session_id,
        uuid4(),
        successor.session_id,
    )
    execute(
        database_url,
        "UPDATE containers SET start_time = NULL WHERE session_id = %s",
        successor.session_id,
    )
    return replaced, successor


@pytest.mark.parametrize("by", ["due pass", "end", "start"])
async def test_discarding_a_fresh_start_brings_its_predecessor_back(
    impatient: World, database_url: str, by: str
) -> None:
    """The user has the earlier session again, with its counter, whichever call discards it."""
    replaced, successor = await broken_off(impatient, database_url)
    match by:
        case "due pass":

            async def given_up() -> bool:
                counts = await impatient.one.running.background.due_pass.settle()
                return counts.actions[Action.DISCARD] > 0

            assert await eventually(given_up)
        case "end":
            await impatient.one.end(successor.session_id)
        case "start":
            other = spec(env={"PLUMAGE": "brown"})
            again = await impatient.one.start(mode=pb.START_MODE_CONTINUE, spec=other)
            assert again.session.session_id == replaced.session_id
    back = await impatient.one.get(replaced.session_id)
    assert back.state == pb.Session.STATE_ACTIVE
    assert await impatient.counter(back) == "2"
    await impatient.until_state(successor.session_id, pb.Session.STATE_ENDED)


async def test_ending_a_session_that_is_being_replaced_completes_the_replacement(
    roost: World, database_url: str
) -> None:
    """Its successor's owner is gone. The call takes that start over, and polls the database no more
    often than it must meanwhile.
    """
    replaced, successor = await broken_off(roost, database_url)
    ended = await roost.one.end(replaced.session_id)
    assert (ended.state, ended.end_reason) == (
        pb.Session.STATE_ENDED,
        pb.END_REASON_REPLACED,
    )
    assert (await roost.one.get(successor.session_id)).state == pb.Session.STATE_ACTIVE


@pytest.mark.parametrize("verb", ["resume", "pause", "stop", "checkpoint"])
async def test_every_call_about_a_session_that_is_being_replaced_takes_its_successors_start_over(
    roost: World, database_url: str, verb: str
) -> None:
    """The start's owner is gone and no background pass runs: the call itself completes the start,
    and then fails since the session has ended, long before its deadline.
    """
    replaced, successor = await broken_off(roost, database_url)
    execute(
        database_url,
        "UPDATE sessions SET due_at = now() + interval '1 hour' WHERE session_id = %s",
        successor.session_id,
    )
    session_id = replaced.session_id
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "resume": lambda: roost.one.resume(session_id),
        "pause": lambda: roost.one.pause(session_id),
        "stop": lambda: roost.one.stop(session_id),
        "checkpoint": lambda: client(roost.one).create(session_id, kind=Checkpoint.KIND_VOLUME),
    }
    failure = await failing(calls[verb]())
    assert failure.reason in ("SESSION_STATE_CONFLICT", "CHECKPOINT_UNSUPPORTED")
    assert (await roost.one.get(session_id)).end_reason == pb.END_REASON_REPLACED
    assert (await roost.one.get(successor.session_id)).state == pb.Session.STATE_ACTIVE


async def test_a_start_continues_a_replacing_start_without_an_owner(
    roost: World, database_url: str
) -> None:
    replaced, successor = await broken_off(roost, database_url)
    answer = await roost.one.start()
    assert answer.session.session_id == successor.session_id
    await roost.until_state(replaced.session_id, pb.Session.STATE_ENDED)


@pytest.fixture
async def saving(emulator: Emulator, database_url: str) -> AsyncIterator[World]:
    """Replicas that save the state at every stop and destroy the container."""
    async with world(emulator, database_url, persistence="checkpoint") as running:
        yield running


async def test_no_start_returns_a_container_that_may_be_destroyed(saving: World) -> None:
    """Its state is saved and it may be destroyed, but the provider rejects that. A session that ran
    on it again would lose it, and all later work in it, to the pass that destroys unwanted ones.
    """
    session = await counting(saving, 2)
    await saving.admin.set_fault("server_error", action="destroy", status=422, times=None)
    failure = await failing(saving.one.stop(session.session_id))
    assert failure.reason == "PROVIDER_REFUSED"
    assert (await saving.one.get(session.session_id)).state == pb.Session.STATE_PAUSING
    await saving.admin.clear_faults()
    await saving.one.running.background.discarder.shot()
    answer = await saving.two.start()
    assert answer.outcome == pb.START_OUTCOME_RESTORED
    assert await saving.counter(answer.session) == "2"


async def test_a_checkpoint_becomes_the_head_although_its_parent_was_deleted(
    roost: World, database_url: str
) -> None:
    """Its parent is deleted while it is written: after a loss this checkpoint is restored, and not
    the one from which the user had rolled back.
    """
    saved = client(roost.one)
    session = (await roost.one.start(spec=large(500_000, SLOW_MS="100"))).session
    first = await saved.create(session.session_id)
    await saved.create(session.session_id)
    await saved.restore(session.session_id, checkpoint_id=first.checkpoint_id)
    writing = asyncio.create_task(saved.create(session.session_id))

    async def began() -> bool:
        counted = "SELECT count(*) FROM checkpoints WHERE state = 'WRITING'"
        return execute(database_url, counted) == [(1,)]

    assert await eventually(began)
    await saved.delete(first.checkpoint_id)
    newest = await writing
    await roost.destroy_behind_our_back(await roost.one.get(session.session_id))
    execute(database_url, "UPDATE sessions SET verified_at = NULL")
    answer = await roost.one.start()
    assert answer.outcome == pb.START_OUTCOME_RESTORED
    assert answer.attempts[-1].checkpoint_number == newest.number


async def on_a_volume(roost: World) -> pb.Session:
    """A paused session with its state saved in two snapshots: after two clicks, and after three."""
    session = (await roost.one.start(spec=await mounting(roost))).session
    await roost.click_twice(session)
    await client(roost.one).create(session.session_id)
    await roost.counter(session, "/click")
    return await roost.one.stop(session.session_id)


async def test_a_restore_never_uses_the_volume_of_another_checkpoint(
    saving: World,
) -> None:
    """A failed start left the newest snapshot's volume; the rollback asks for the older one."""
    session = await on_a_volume(saving)
    await saving.admin.set_fault("capacity", action="create", times=None)
    assert (await failing(saving.one.start())).reason == "PROVIDER_CAPACITY"
    await saving.admin.clear_faults()
    back = await client(saving.one).restore(session.session_id, number=1)
    assert await saving.counter(back.session) == "2"


async def test_a_failure_to_create_a_volume_does_not_mean_a_lost_snapshot(saving: World) -> None:
    """It rejects the call for another reason: both checkpoints stay READY for the next start."""
    await on_a_volume(saving)
    await saving.admin.set_fault("server_error", action="volume_create", status=422, times=None)
    assert (await failing(saving.one.start())).reason == "PROVIDER_REFUSED"
    await saving.admin.clear_faults()
    taken = await client(saving.one).of()
    assert [each.state for each in taken] == [Checkpoint.STATE_READY] * 2
    assert await saving.counter((await saving.one.start()).session) == "3"


async def test_a_deletion_that_broke_off_can_be_repeated(roost: World, database_url: str) -> None:
    """Whether or not it was executed, the same call again succeeds, without NOT_FOUND."""
    session = await counting(roost, 1)
    saved, once = client(roost.one), request_id()
    taken = await saved.create(session.session_id)
    async with await psycopg.AsyncConnection.connect(database_url) as other:
        await other.execute("LOCK TABLE decisions IN EXCLUSIVE MODE")
        failure = await failing(saved.delete(taken.checkpoint_id, request_id=once))
    assert failure.code is grpc.StatusCode.UNAVAILABLE
    await saved.delete(taken.checkpoint_id, request_id=once)
    await saved.delete(taken.checkpoint_id, request_id=once)
    assert not await saved.of()
    failure = await failing(saved.delete(taken.checkpoint_id, request_id=request_id()))
    assert failure.reason == "CHECKPOINT_MISSING"


@pytest.mark.replicas(2)
async def test_a_fresh_start_does_not_continue_a_resume_that_broke_off(
    roost: World, database_url: str
) -> None:
    """A resume broke off by an internal error. A fresh start creates a new session."""
    session = (await roost.one.start()).session
    await roost.click_twice(session)
    await roost.one.stop(session.session_id)
    execute(
        database_url,
        "UPDATE sessions SET state = 'STARTING', transition = 'START', prior_state = 'PAUSED',"
        " decision_id = NULL, owner = %s, lease_until = now(), deadline = now(),"
        " epoch = epoch + 1",
        uuid4(),
    )
    answer = await roost.two.start(mode=pb.START_MODE_FRESH)
    assert answer.outcome == pb.START_OUTCOME_CREATED
    assert answer.session.session_id != session.session_id
    assert await roost.counter(answer.session) == "0"


async def test_preview_traffic_while_an_idle_session_is_saved_keeps_it_running(
    emulator: Emulator, database_url: str
) -> None:
    """The user's later work is in no checkpoint: the container is kept while it is in use."""
    brief = {"idle_timeout": timedelta(seconds=0.4), "idle_warning": timedelta(seconds=0.1)}
    async with world(emulator, database_url, 1, persistence="checkpoint", **brief) as roost:
        wanted = large(2_000_000, SLOW_MS="250")
        wanted.activity.http_path = "/busy"
        session = (await roost.one.start(spec=wanted)).session

        async def writing() -> bool:
            await roost.one.running.background.due_pass.shot()
            return bool(await client(roost.one).of())

        assert await eventually(writing)
        await roost.counter(session, "/come")
        shown = await roost.until_state(session.session_id, pb.Session.STATE_ACTIVE)
        assert await roost.committed("destroy") == 0
        assert await roost.counter(shown)


async def test_a_fork_does_not_take_the_volume_of_its_origin(saving: World) -> None:
    """The forked session is paused without a container, so its volume is detached: the fork must
    not take it.
    """
    session = (await saving.one.start(spec=await mounting(saving, state_hook=HOOK))).session
    await saving.click_twice(session)
    await saving.one.stop(session.session_id)
    (taken,) = await client(saving.one).of()
    failure = await failing(client(saving.one).fork(taken.checkpoint_id, "robin"))
    assert failure.reason == "CHECKPOINT_UNSUPPORTED"
    assert await saving.counter((await saving.one.start()).session) == "2"


async def test_a_hold_released_during_a_due_pass_is_not_overlooked(
    roost: World, database_url: str
) -> None:
    """The pass read the session with its hold, and would make it due in a day."""
    session = (await roost.one.start()).session
    name = {"session_id": session.session_id, "name": "build"}
    put = rpc_pb.PutHoldRequest(**name, ttl=Duration(seconds=80_000))
    await roost.one.stub.PutHold(put, timeout=TIMEOUT)
    database = roost.one.running.database
    (claimed,) = await due.claim(database, 9, timedelta(seconds=30))
    await roost.one.stub.ReleaseHold(rpc_pb.ReleaseHoldRequest(**name), timeout=TIMEOUT)
    step = next_action.next_step(claimed, Timings())
    assert step.time is not None
    assert step.time > claimed.now + timedelta(hours=20)
    await due.defer(database, claimed.session, step.time)
    assert execute(database_url, "SELECT due_at <= now() FROM sessions") == [(True,)]
