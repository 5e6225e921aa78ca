"""A tenant's quota of live sessions, enforced over all replicas; an end makes room."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import grpc.aio
import pytest

from roost.session.v1 import session_pb2 as pb
from session_service.storage.session.commit import Quota, QuotaReached, within_quota
from tests.container.harness import failing, read_failure
from tests.session.ageing import sql
from tests.session.harness import World, request_id, world
from tests.session.test_policies import set_tier

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from local.fly.emulator import Emulator

T = TypeVar("T")
QUOTA = 10


@pytest.fixture
async def roost(emulator: Emulator, database_url: str) -> AsyncIterator[World]:
    """Two replicas that allow ten live sessions."""
    async with world(emulator, database_url, live_sessions_per_tenant=QUOTA) as running:
        yield running


async def fill(roost: World) -> list[pb.Session]:
    """Start as many sessions as the quota allows."""
    starts = [partial(roost.replicas[n % 2].start, f"user-{n}") for n in range(QUOTA)]
    return [reply.session for reply in await asyncio.gather(*map(insist, starts))]


async def insist(call: Callable[[], Awaitable[T]]) -> T:
    """The call's answer or refusal; repeated while a busy machine cannot serve so many at once."""
    while True:
        try:
            return await call()
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            await asyncio.sleep(read_failure(error).retry_seconds or 0.1)


async def live(roost: World) -> int:
    """The number of live sessions."""
    rows = await sql(
        roost.one,
        "SELECT count(*) FROM sessions WHERE state IN ('STARTING', 'ACTIVE', 'PAUSING', 'PAUSED')",
    )
    return int(rows[0][0])


async def test_fifty_starts_at_once_at_two_replicas_make_ten_sessions(roost: World) -> None:
    starts = [partial(roost.replicas[n % 2].start, f"user-{n}") for n in range(50)]
    replies = await asyncio.gather(*map(insist, starts), return_exceptions=True)
    failures = [reply for reply in replies if isinstance(reply, BaseException)]
    assert len(failures) == 40
    assert await live(roost) == QUOTA
    assert await roost.committed("create") == QUOTA
    for error in failures:
        assert isinstance(error, grpc.aio.AioRpcError)
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_the_error_gives_the_limit_and_the_remedy(roost: World) -> None:
    sessions = await fill(roost)
    failure = await failing(roost.one.start("one-more"))
    assert failure.reason == "QUOTA_EXCEEDED"
    assert (failure.metadata["limit"], failure.metadata["source"]) == (str(QUOTA), "OPERATOR")
    assert "the operator allows" in failure.message
    assert "EndSession" in failure.message
    # A paused session counts, as the message says.
    await roost.one.pause(sessions[0].session_id)
    assert (await failing(roost.two.start("one-more"))).reason == "QUOTA_EXCEEDED"
    rows = await sql(roost.one, "SELECT error FROM decisions WHERE error IS NOT NULL")
    assert len(rows) == 2


async def test_an_end_makes_room_also_for_the_request_that_failed(roost: World) -> None:
    sessions = await fill(roost)
    same = request_id()
    await failing(roost.one.start("one-more", request_id=same))
    await roost.two.end(sessions[3].session_id)
    reply = await roost.one.start("one-more", request_id=same)
    assert reply.outcome == pb.START_OUTCOME_CREATED
    assert await live(roost) == QUOTA


async def test_a_tenant_at_its_quota_can_still_start_its_live_sessions(roost: World) -> None:
    """Reuse, resume, and FRESH, which replaces a session: none of them adds one."""
    sessions = await fill(roost)
    await roost.one.pause(sessions[0].session_id)
    assert (await roost.two.start("user-0")).outcome == pb.START_OUTCOME_RESUMED
    assert (await roost.two.start("user-1")).outcome == pb.START_OUTCOME_REUSED
    fresh = await roost.one.start("user-2", mode=pb.START_MODE_FRESH)
    assert fresh.outcome == pb.START_OUTCOME_CREATED
    assert await live(roost) == QUOTA


async def test_an_undelete_over_the_quota_fails_and_can_succeed_later(roost: World) -> None:
    sessions = await fill(roost)
    ended = sessions[0].session_id
    await roost.one.end(ended)
    another = (await roost.two.start("one-more")).session
    same = request_id()
    failure = await failing(roost.one.undelete(ended, request_id=same))
    assert failure.reason == "QUOTA_EXCEEDED"
    assert (await roost.one.get(ended)).state == pb.Session.STATE_ENDED
    assert await live(roost) == QUOTA
    await roost.one.end(another.session_id)
    back = await roost.two.undelete(ended, request_id=same)
    assert back.state == pb.Session.STATE_PAUSED
    assert await live(roost) == QUOTA


async def test_concurrent_undeletes_and_starts_take_the_last_slot_once(roost: World) -> None:
    sessions = await fill(roost)
    for session in sessions[:4]:
        await roost.one.end(session.session_id)
    calls: list[Callable[[], Awaitable[object]]] = [
        *(partial(roost.replicas[n % 2].undelete, sessions[n].session_id) for n in range(4)),
        *(partial(roost.replicas[n % 2].start, f"more-{n}") for n in range(4)),
    ]
    replies = await asyncio.gather(*map(insist, calls), return_exceptions=True)
    assert sum(isinstance(reply, BaseException) for reply in replies) == 4
    assert await live(roost) == QUOTA


async def test_concurrent_starts_of_one_key_join_and_count_once(roost: World) -> None:
    """Ten calls of one key want the last one: they share it."""
    for n in range(QUOTA - 1):
        await roost.one.start(f"user-{n}")
    starts = [partial(roost.replicas[n % 2].start, "last") for n in range(10)]
    replies = await asyncio.gather(*map(insist, starts))
    assert len({reply.session.session_id for reply in replies}) == 1


async def test_a_tenant_neither_counts_for_another_nor_waits_for_it(roost: World) -> None:
    await fill(roost)
    database = roost.one.running.database
    async with (
        database.transaction() as first,
        within_quota(first, Quota("a tenant", 1)),
        asyncio.timeout(30),
        database.transaction() as second,
        within_quota(second, Quota("another", 0)),
    ):
        pass
    with pytest.raises(QuotaReached):
        async with (
            database.transaction() as third,
            within_quota(third, Quota("default", QUOTA - 1)),
        ):
            pass


@pytest.mark.parametrize(("cap", "most", "source"), [(0, 10, "TIER"), (3, 3, "OPERATOR")])
async def test_the_smaller_of_the_tiers_and_the_operators_quota_applies(
    emulator: Emulator, database_url: str, cap: int, most: int, source: str
) -> None:
    """Starts and undeletes over it fail and name its source. Another tier makes room."""
    async with world(emulator, database_url, tier="free", live_sessions_per_tenant=cap) as roost:
        starts = [partial(roost.replicas[n % 2].start, f"user-{n}") for n in range(most)]
        await asyncio.gather(*map(insist, starts))

        async def rejects(call: Awaitable[object]) -> None:
            failure = await failing(call)
            assert (failure.reason, failure.metadata["limit"]) == ("QUOTA_EXCEEDED", str(most))
            assert failure.metadata["source"] == source
            assert failure.metadata.get("tier") == ("free" if source == "TIER" else None)
            assert ("its tier 'free' allows" in failure.message) is (source == "TIER")

        await rejects(roost.one.start("one-more"))
        # EPHEMERAL: the start replaces the session of its key, so the number stays.
        ended = (await roost.two.start("user-0")).session
        await roost.one.end(ended.session_id)
        await roost.one.start("another")
        await rejects(roost.two.undelete(ended.session_id))
        await set_tier(roost, "paid")
        if source == "TIER":
            await roost.two.undelete(ended.session_id)
            await roost.one.start("one-more")
        else:
            await rejects(roost.one.start("one-more"))
