"""Background loops: a round that fails does not end them, and a cancellation does."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from session_service import loops


async def test_a_loop_ends_although_a_cancellation_was_dropped() -> None:
    """Before Python 3.12 `asyncio.wait_for` drops one that arrives as its awaitable succeeds."""
    began, dropped = asyncio.Event(), 0

    async def shot() -> None:
        nonlocal dropped
        began.set()
        while dropped < 2:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(60)
            dropped += 1
        await asyncio.sleep(60)

    async with asyncio.timeout(30):
        async with loops.running("stubborn", shot, every=60, cancel_again=0.01) as task:
            await began.wait()
        assert task.done()


async def test_a_round_that_fails_is_followed_by_another() -> None:
    rounds, thrice = 0, asyncio.Event()

    async def shot() -> None:
        nonlocal rounds
        rounds += 1
        if rounds == 3:
            thrice.set()
        raise ValueError("in every round")

    async with (
        asyncio.timeout(30),
        loops.running("faulty", shot, every=60, first_pause=0.001),
    ):
        await thrice.wait()


async def test_a_round_that_takes_longer_than_its_interval_says_so_while_it_runs() -> None:
    """Once for each interval; a round that ends in time says nothing."""
    reported: list[str] = []
    twice, thrice, rounds = asyncio.Event(), asyncio.Event(), 0

    def late(name: str) -> None:
        reported.append(name)
        if len(reported) == 2:
            twice.set()

    async def shot() -> None:
        nonlocal rounds
        rounds += 1
        if rounds == 1:
            await twice.wait()
        if rounds == 3:
            thrice.set()

    async with (
        asyncio.timeout(30),
        loops.running("slow", shot, every=0.01, late=late, late_after=0.02) as task,
    ):
        await thrice.wait()
        assert not task.done()
    assert set(reported) == {"slow"}

    quick: list[str] = []
    done = asyncio.Event()

    async def at_once() -> None:
        nonlocal rounds
        rounds += 1
        if rounds == 200:
            done.set()

    # A round without an await is never late, however busy the machine is.
    rounds = 0
    async with loops.running("quick", at_once, every=0.001, late_after=0.05, late=quick.append):
        await done.wait()
    assert quick == []


async def test_a_quiet_loop_runs_no_round_before_its_time() -> None:
    """Also if its first round would be sooner, and if it is woken."""
    woken, ran = asyncio.Event(), asyncio.Event()

    async def shot() -> None:
        ran.set()

    began = asyncio.get_running_loop().time()
    async with asyncio.timeout(30):
        woken.set()
        async with loops.running("quiet", shot, every=0.01, woken=woken, quiet=0.3):
            await ran.wait()
    assert asyncio.get_running_loop().time() - began >= 0.3
