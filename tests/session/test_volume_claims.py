"""A volume belongs to one container at a time, and for a while still to a destroyed one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import grpc
import pytest

from roost.session.v1 import session_pb2 as pb
from roost.session.v1 import session_service_pb2 as rpc_pb
from tests.container.harness import failing
from tests.session.harness import World, key, world
from tests.session.saving import HOOK, client, mounting

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from local.fly.emulator import Emulator
    from local.fly.settings import Settings


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """A provider that, as Fly does, takes a while to detach a volume."""
    return replace(settings, volume_release_ms=4000)


@pytest.fixture
async def saving(emulator: Emulator, database_url: str) -> AsyncIterator[World]:
    """Replicas that save the state at every stop and destroy the container."""
    async with world(emulator, database_url, persistence="checkpoint") as running:
        yield running


async def test_a_start_waits_for_the_claim_of_a_destroyed_container(saving: World) -> None:
    """A start right after the stop restores the state, without an error."""
    session = (await saving.one.start(spec=await mounting(saving, state_hook=HOOK))).session
    await saving.click_twice(session)
    await saving.one.stop(session.session_id)
    answer = await saving.one.start()
    assert answer.outcome == pb.START_OUTCOME_RESTORED
    assert [attempt.result for attempt in answer.attempts] == [pb.ATTEMPT_RESULT_SUCCEEDED]
    assert await saving.counter(answer.session) == "2"
    assert await saving.committed("create") == 2


async def test_a_start_without_time_for_that_is_continued_by_the_next(saving: World) -> None:
    """The checkpoint is kept, and the next start restores it."""
    session = (await saving.one.start(spec=await mounting(saving, state_hook=HOOK))).session
    await saving.click_twice(session)
    await saving.one.stop(session.session_id)
    request = rpc_pb.StartSessionRequest(key=key("wren"))
    failure = await failing(saving.one.stub.StartSession(request, timeout=1))
    assert failure.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    answer = await saving.one.start()
    assert await saving.counter(answer.session) == "2"
    assert len(await client(saving.one).of()) == 1


async def test_a_volume_of_a_live_container_is_rejected_at_once(saving: World) -> None:
    """The error names the volume and is not one to retry."""
    wanted = await mounting(saving)
    first = (await saving.one.start(spec=wanted)).session
    failure = await failing(saving.one.start("robin", spec=wanted))
    assert failure.code is grpc.StatusCode.FAILED_PRECONDITION
    assert failure.reason == "PROVIDER_REFUSED"
    assert failure.metadata["container_id"] == first.container.container_id
    assert await saving.counter(first)
