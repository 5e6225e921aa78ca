"""Histories that once broke a promise: faults, crashes and calls at the worst of moments."""

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
from session_service.domain import keeping
from session_service.domain.keeping import Action, Habits
from session_service.storage import due
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
    from collections.abc import AsyncIterator

    from local.fly.emulator import Emulator


@pytest.fixture
async def hasty(emulator: Emulator, database_url: str) -> AsyncIterator[World]:
    """A Roost that gives up at once what nobody comes back for."""
    async with world(emulator, database_url, abandoned_after=timedelta(0)) as running:
        yield running


async def broken_off(roost: World, database_url: str) -> tuple[pb.Session, pb.Session]:
    """The session that was to be replaced, and its successor, whose start broke off by a fault of
    our own: answered, its lease run out, and nobody waits for it.
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


@pytest.mark.parametrize("by", ["keeper", "end", "start"])
async def test_a_fresh_start_that_is_given_up_gives_back_what_it_was_to_replace(
    hasty: World, database_url: str, by: str
) -> None:
    """Whoever gives it up: the user has the session of before again, its counter as it was."""
    replaced, successor = await broken_off(hasty, database_url)
    match by:
        case "keeper":

            async def given_up() -> bool:
                kept = await hasty.one.running.background.keeper.settle()
                return kept.actions[Action.DISCARD] > 0

            assert await eventually(given_up)
        case "end":
            await hasty.one.end(successor.session_id)
        case "start":
            other = spec(env={"PLUMAGE": "brown"})
            again = await hasty.one.start(mode=pb.START_MODE_CONTINUE, spec=other)
            assert again.session.session_id == replaced.session_id
    back = await hasty.one.get(replaced.session_id)
    assert back.state == pb.Session.STATE_ACTIVE
    assert await hasty.counter(back) == "2"
    await hasty.until_state(successor.session_id, pb.Session.STATE_ENDED)


async def test_ending_what_is_being_replaced_sees_the_replacing_through(
    roost: World, database_url: str
) -> None:
    """Its successor's owner is gone: the call takes that start over, and asks no more than it must
    of the database meanwhile.
    """
    replaced, successor = await broken_off(roost, database_url)
    ended = await roost.one.end(replaced.session_id)
    assert (ended.state, ended.end_reason) == (
        pb.Session.STATE_ENDED,
        pb.END_REASON_REPLACED,
    )
    assert (await roost.one.get(successor.session_id)).state == pb.Session.STATE_ACTIVE


@pytest.fixture
async def saving(emulator: Emulator, database_url: str) -> AsyncIterator[World]:
    """A Roost that saves state at every stop, and keeps no container over it."""
    async with world(emulator, database_url, persistence="checkpoint") as running:
        yield running


async def test_what_may_be_destroyed_is_handed_to_nobody(saving: World) -> None:
    """Its state is saved and it may go, when the provider refuses: a session that ran on it again
    would lose it, and all that is done in it meanwhile, to whoever destroys what is not wanted.
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


async def test_a_checkpoint_is_the_sessions_own_whatever_is_deleted_meanwhile(
    roost: World, database_url: str
) -> None:
    """What it descends from is deleted while it is written: a loss brings back this one, and not
    what the user had rolled back from.
    """
    saved = client(roost.one)
    session = (await roost.one.start(spec=large(500_000, SLOW_MS="100"))).session
    first = await saved.create(session.session_id)
    await saved.create(session.session_id)
    await saved.restore(session.session_id, checkpoint_id=first.checkpoint_id)
    writing = asyncio.create_task(saved.create(session.session_id))

    async def begun() -> bool:
        counted = "SELECT count(*) FROM checkpoints WHERE state = 'WRITING'"
        return execute(database_url, counted) == [(1,)]

    assert await eventually(begun)
    await saved.delete(first.checkpoint_id)
    newest = await writing
    await roost.destroy_behind_our_back(await roost.one.get(session.session_id))
    execute(database_url, "UPDATE sessions SET verified_at = NULL")
    answer = await roost.one.start()
    assert answer.outcome == pb.START_OUTCOME_RESTORED
    assert answer.attempts[-1].checkpoint_number == newest.number


async def on_a_volume(roost: World) -> pb.Session:
    """A session at rest, its state saved in two snapshots: of two clicks, and of three."""
    session = (await roost.one.start(spec=await mounting(roost))).session
    await roost.click_twice(session)
    await client(roost.one).create(session.session_id)
    await roost.counter(session, "/click")
    return await roost.one.stop(session.session_id)


async def test_a_volume_of_another_checkpoint_is_never_taken_for_the_one_asked_for(
    saving: World,
) -> None:
    """A start made the newest's volume, and then no container; the older one is asked for."""
    session = await on_a_volume(saving)
    await saving.admin.set_fault("capacity", action="create", times=None)
    assert (await failing(saving.one.start())).reason == "PROVIDER_CAPACITY"
    await saving.admin.clear_faults()
    back = await client(saving.one).restore(session.session_id, number=1)
    assert await saving.counter(back.session) == "2"


async def test_a_provider_that_makes_no_volume_has_lost_no_snapshot(saving: World) -> None:
    """It refuses, for whatever reason: all stays as it is, for the next start."""
    await on_a_volume(saving)
    await saving.admin.set_fault("server_error", action="volume_create", status=422, times=None)
    assert (await failing(saving.one.start())).reason == "PROVIDER_REFUSED"
    await saving.admin.clear_faults()
    kept = await client(saving.one).of()
    assert [each.state for each in kept] == [Checkpoint.STATE_READY] * 2
    assert await saving.counter((await saving.one.start()).session) == "3"


async def test_a_deletion_that_broke_off_can_be_repeated(roost: World, database_url: str) -> None:
    """Whether it was done or not: the same call once more is a success, and not NOT_FOUND."""
    session = await counting(roost, 1)
    saved, once = client(roost.one), request_id()
    kept = await saved.create(session.session_id)
    async with await psycopg.AsyncConnection.connect(database_url) as other:
        await other.execute("LOCK TABLE decisions IN EXCLUSIVE MODE")
        failure = await failing(saved.delete(kept.checkpoint_id, request_id=once))
    assert failure.code is grpc.StatusCode.UNAVAILABLE
    await saved.delete(kept.checkpoint_id, request_id=once)
    await saved.delete(kept.checkpoint_id, request_id=once)
    assert not await saved.of()
    failure = await failing(saved.delete(kept.checkpoint_id, request_id=request_id()))
    assert failure.reason == "CHECKPOINT_MISSING"


async def test_a_fresh_start_does_not_go_on_with_what_broke_off(
    roost: World, database_url: str
) -> None:
    """A resume broke off by a fault of our own. Who asks for a fresh session gets one."""
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


async def test_who_comes_by_the_preview_while_an_idle_session_is_saved_finds_it_running(
    emulator: Emulator, database_url: str
) -> None:
    """What they do is in no checkpoint: the container stays, since its application is in use."""
    brief = {"idle_timeout": timedelta(seconds=0.4), "idle_warning": timedelta(seconds=0.1)}
    async with world(emulator, database_url, 1, persistence="checkpoint", **brief) as roost:
        wanted = large(2_000_000, SLOW_MS="60")
        wanted.activity.http_path = "/busy"
        session = (await roost.one.start(spec=wanted)).session

        async def writing() -> bool:
            await roost.one.running.background.keeper.shot()
            return bool(await client(roost.one).of())

        assert await eventually(writing)
        await roost.counter(session, "/come")
        kept = await roost.until_state(session.session_id, pb.Session.STATE_ACTIVE)
        assert await roost.committed("destroy") == 0
        assert await roost.counter(kept)


async def test_a_fork_takes_nobodys_volume(saving: World) -> None:
    """The session that was forked rests without a container, so that its volume is free: it is its
    own all the same.
    """
    session = (await saving.one.start(spec=await mounting(saving, state_hook=HOOK))).session
    await saving.click_twice(session)
    await saving.one.stop(session.session_id)
    (kept,) = await client(saving.one).of()
    failure = await failing(client(saving.one).fork(kept.checkpoint_id, "robin"))
    assert failure.reason == "CHECKPOINT_UNSUPPORTED"
    assert await saving.counter((await saving.one.start()).session) == "2"


async def test_a_hold_given_back_while_the_keeper_looks_is_not_overlooked(
    roost: World, database_url: str
) -> None:
    """The keeper read it held, and would not look again for a day."""
    session = (await roost.one.start()).session
    name = {"session_id": session.session_id, "name": "build"}
    held = rpc_pb.PutHoldRequest(**name, ttl=Duration(seconds=80_000))
    await roost.one.stub.PutHold(held, timeout=TIMEOUT)
    database = roost.one.running.database
    (claimed,) = await due.claim(database, 9, timedelta(seconds=30))
    await roost.one.stub.ReleaseHold(rpc_pb.ReleaseHoldRequest(**name), timeout=TIMEOUT)
    step = keeping.next_step(claimed, Habits())
    assert step.time is not None
    assert step.time > claimed.now + timedelta(hours=20)
    await due.defer(database, claimed.session, step.time)
    assert execute(database_url, "SELECT due_at <= now() FROM sessions") == [(True,)]
