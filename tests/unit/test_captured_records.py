"""Captured log records keep nothing alive that a test has left."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


class Held:
    """Stands for a connection that could not be established."""


def test_an_exception_that_is_logged_keeps_no_locals(caplog: pytest.LogCaptureFixture) -> None:
    """Neither its own nor those of the exception that it came from."""
    held: list[weakref.ref[Held]] = []

    def inner() -> None:
        local = Held()
        held.append(weakref.ref(local))
        raise TimeoutError

    def outer() -> None:
        local = Held()
        held.append(weakref.ref(local))
        try:
            inner()
        except TimeoutError as error:
            raise OSError("no answer") from error

    try:
        outer()
    except OSError as error:
        logging.getLogger(__name__).warning("failed: %s", error)
        logging.getLogger(__name__).exception("failed")
    gc.collect()
    assert caplog.records[-2].getMessage() == "failed: no answer"
    assert len(held) == 2
    assert [reference() for reference in held] == [None, None]


async def test_a_coroutine_that_waits_with_its_exception_goes_on() -> None:
    """To empty the frame of a coroutine that waits would end it."""
    kept: list[Exception] = []
    goes_on = asyncio.Event()

    async def keeping() -> str:
        try:
            raise OSError("no answer")
        except OSError as error:
            kept.append(error)
            await goes_on.wait()
            return "went on"

    task = asyncio.create_task(keeping())
    await asyncio.sleep(0)
    logging.getLogger(__name__).warning("failed: %s", kept[0])
    goes_on.set()
    async with asyncio.timeout(30):
        assert await task == "went on"
