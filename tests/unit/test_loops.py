"""The loops in the background: they go on whatever a round meets, and end when they are told to."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from session_service import loops

if TYPE_CHECKING:
    import pytest


async def test_a_loop_ends_also_when_a_cancellation_was_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As `asyncio.wait_for` drops one before Python 3.12, in the moment of its own success."""
    monkeypatch.setattr(loops, "TELL_AGAIN", 0.01)
    begun, dropped = asyncio.Event(), 0

    async def shot() -> None:
        nonlocal dropped
        begun.set()
        while dropped < 2:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(60)
            dropped += 1
        await asyncio.sleep(60)

    async with asyncio.timeout(10):
        async with loops.running("stubborn", shot, every=60) as task:
            await begun.wait()
        assert task.done()


async def test_a_round_that_fails_is_followed_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "FIRST_PAUSE", 0.001)
    rounds, thrice = 0, asyncio.Event()

    async def shot() -> None:
        nonlocal rounds
        rounds += 1
        if rounds == 3:
            thrice.set()
        raise ValueError("in every round")

    async with asyncio.timeout(10), loops.running("faulty", shot, every=60):
        await thrice.wait()
