"""Waiting for what another process does: look again until it is so, or until time is up."""

from __future__ import annotations

import asyncio
import inspect
import time
from typing import TYPE_CHECKING, TypeVar, overload

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")


@overload
async def eventually(
    fn: Callable[[], Awaitable[T]], timeout: float = ..., interval: float = ...
) -> T: ...
@overload
async def eventually(fn: Callable[[], T], timeout: float = ..., interval: float = ...) -> T: ...
async def eventually(
    fn: Callable[[], Awaitable[T] | T], timeout: float = 15.0, interval: float = 0.02
) -> T:
    """Call `fn`, plain or async, until it returns something true, and return that.

    An AssertionError counts as "not yet"; the last one is raised when `timeout` seconds are over.
    For process borders only: inside a process, wait for the event itself.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            answer = fn()
            value = await answer if inspect.isawaitable(answer) else answer
            if value:
                return value
            if time.monotonic() > deadline:
                raise AssertionError(f"still {value!r} after {timeout} s")
        except AssertionError:
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(interval)
