"""The number of statements of each call, including its transition: at most the number given here.

BEGIN and COMMIT are not counted, nor are statements of other tasks of the replica. Every call has a
request id.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from roost.session.v1 import session_pb2 as pb
from tests.session.harness import request_id, world
from tests.session.saving import client, counting, hooked
from tests.session.tracing import Trace, Tracer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable

    from local.fly.emulator import Emulator
    from tests.session.harness import World


async def count(tracer: Tracer, call: Awaitable[object]) -> int:
    """Count and print the statements of the call and of the transition that it leaves behind."""
    with tracer.tracing_next(Trace()) as trace:
        await call
        await trace.settled()
    for number, statement in enumerate(trace.statements, start=1):
        print(number, " ".join(statement.split())[:160])
    return len(trace.statements)


@pytest.fixture
async def saving(tracer: Tracer, emulator: Emulator, database_url: str) -> AsyncIterator[World]:
    """Replicas that save the state at a stop and destroy the container. Their leases are too long
    to be renewed in a test.
    """
    lease = timedelta(seconds=30)
    async with world(emulator, database_url, persistence="checkpoint", lease=lease) as running:
        yield running


async def test_a_create(traced: World, tracer: Tracer) -> None:
    assert await count(tracer, traced.one.start(request_id=request_id())) <= 13


async def test_a_reuse(traced: World, tracer: Tracer) -> None:
    await traced.one.start()
    assert await count(tracer, traced.one.start(request_id=request_id())) <= 1


async def test_a_resume(traced: World, tracer: Tracer) -> None:
    session_id = (await traced.one.start()).session.session_id
    await traced.one.pause(session_id)
    call = traced.one.resume(session_id, request_id=request_id())
    assert await count(tracer, call) <= 10


async def test_the_tour_shows_every_module_of_a_resume(traced: World, tracer: Tracer) -> None:
    """docs/tour.md links to each. The first resume compiles statements, and is not traced."""
    session_id = (await traced.one.start()).session.session_id
    await traced.one.pause(session_id)
    await traced.one.resume(session_id)
    await traced.one.pause(session_id)
    with tracer.tracing_next(Trace("session_service")) as trace:
        await traced.one.resume(session_id, request_id=request_id())
        await trace.settled()
    assert "session_service.bring_up.runner" in trace.modules
    tour = (Path(__file__).parents[2] / "docs" / "tour.md").read_text()
    links = {module: f"(../{module.replace('.', '/')}.py)" for module in trace.modules}
    assert [module for module, link in links.items() if link not in tour] == []


async def test_a_fresh_start(traced: World, tracer: Tracer) -> None:
    """At most 16 until its answer, and one for the outcome of the old session's end."""
    await traced.one.start()
    call = traced.one.start(mode=pb.START_MODE_FRESH, request_id=request_id())
    assert await count(tracer, call) <= 17


async def test_a_stop(traced: World, tracer: Tracer) -> None:
    session_id = (await traced.one.start()).session.session_id
    assert await count(tracer, traced.one.stop(session_id, request_id=request_id())) <= 9


async def test_a_stop_that_saves(saving: World, tracer: Tracer) -> None:
    session_id = (await saving.one.start(spec=hooked())).session.session_id
    assert await count(tracer, saving.one.stop(session_id, request_id=request_id())) <= 19


async def test_an_end(traced: World, tracer: Tracer) -> None:
    session_id = (await traced.one.start()).session.session_id
    assert await count(tracer, traced.one.end(session_id, request_id=request_id())) <= 8


async def test_an_undelete(traced: World, tracer: Tracer) -> None:
    session_id = (await traced.one.start()).session.session_id
    await traced.one.end(session_id)
    assert await count(tracer, traced.one.undelete(session_id, request_id=request_id())) <= 7


async def test_a_checkpoint(traced: World, tracer: Tracer) -> None:
    session_id = (await counting(traced, 1)).session_id
    call = client(traced.one).create(session_id, request_id=request_id())
    assert await count(tracer, call) <= 11


async def test_a_restore(traced: World, tracer: Tracer) -> None:
    session_id = (await counting(traced, 1)).session_id
    saved = client(traced.one)
    taken = await saved.create(session_id)
    call = saved.restore(session_id, number=taken.number, request_id=request_id())
    assert await count(tracer, call) <= 28


async def test_a_fork(traced: World, tracer: Tracer) -> None:
    session_id = (await counting(traced, 1)).session_id
    saved = client(traced.one)
    taken = await saved.create(session_id)
    call = saved.fork(taken.checkpoint_id, "robin", request_id=request_id())
    assert await count(tracer, call) <= 19


async def test_a_replay(traced: World, tracer: Tracer) -> None:
    """At another replica, which knows of the first call only from its rows."""
    session_id = (await traced.one.start()).session.session_id
    once = request_id()
    await traced.one.stop(session_id, request_id=once)
    assert await count(tracer, traced.two.stop(session_id, request_id=once)) <= 4
