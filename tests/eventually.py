"""Wait for the effect of another process: repeat a check until it holds or time is up."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")
ROOT = Path(__file__).resolve().parent.parent
#: The most that one try and the pause after it count against a timeout, in s.
TRY_SECONDS = 2.0


@overload
async def eventually(
    fn: Callable[[], Awaitable[T]], timeout: float = ..., interval: float = ...
) -> T: ...
@overload
async def eventually(fn: Callable[[], T], timeout: float = ..., interval: float = ...) -> T: ...
async def eventually(
    fn: Callable[[], Awaitable[T] | T], timeout: float = 30.0, interval: float = 0.02
) -> T:
    """Call `fn`, plain or async, until it returns a true value, and return that.

    An AssertionError counts as "not yet"; the last one is raised after `timeout` seconds. Only for
    effects of other processes: within a process, wait for the event itself.

    A pause of more than `TRY_SECONDS` between two tries counts as that much: when the machine or
    the database stood still, what the caller waits for stood still too.
    """
    last = time.monotonic()
    spent = longest = 0.0
    tries = 0
    while True:
        now = time.monotonic()
        pause, last = now - last, now
        tries, longest, spent = tries + 1, max(longest, pause), spent + min(pause, TRY_SECONDS)
        try:
            answer = fn()
            value = await answer if inspect.isawaitable(answer) else answer
            if value:
                return value
            if spent > timeout:
                raise AssertionError(f"still {value!r} after {timeout} s")
        except AssertionError as error:
            if spent > timeout:
                error.add_note(f"{tries} tries, the longest pause between two {longest:.1f} s")
                error.add_note(waiting_tasks())
                raise
        await asyncio.sleep(interval)


def waiting_tasks() -> str:
    """Where the other tasks of this loop wait: our own lines, innermost first, and how many do so.

    The services under test run in this loop, so that this often says why nothing happened.
    """
    places: Counter[str] = Counter()
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        own: list[str] = []
        # Any: a coroutine, a generator or another awaitable, each with attributes of its own.
        inner: Any = task.get_coro()
        while inner is not None:
            frame = getattr(inner, "cr_frame", None) or getattr(inner, "gi_frame", None)
            inner = getattr(inner, "cr_await", None) or getattr(inner, "gi_yieldfrom", None)
            if frame is not None:
                code = frame.f_code
                path = Path(code.co_filename)
                if path.is_relative_to(ROOT) and ".venv" not in path.parts:
                    own.append(f"{path.relative_to(ROOT)}:{frame.f_lineno} {code.co_name}")
        if own:
            places[" < ".join(reversed(own))] += 1
    return "\n".join(f"{count} x {place}" for place, count in sorted(places.items()))
