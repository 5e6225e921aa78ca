"""Loops in the background: thin shells around a single shot, which never end by themselves."""

from __future__ import annotations

import asyncio
import logging
import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

_log = logging.getLogger(__name__)
#: The first pause after a round that failed, in s; doubled each time, up to the usual pause.
FIRST_PAUSE = 0.5
#: A loop that was told to end and did not is told again after so long, in s.
TELL_AGAIN = 1.0


@asynccontextmanager
async def running(
    name: str,
    shot: Callable[[], Awaitable[object]],
    *,
    every: float,
    woken: asyncio.Event | None = None,
    rest: float = 0.0,
) -> AsyncGenerator[asyncio.Task[None]]:
    """Run `shot` every so many seconds, and soon after `woken` is set, while the context is open.

    `rest` is the least pause between two rounds. A round that fails is logged, and tried again
    after a pause that grows.
    """
    task = asyncio.create_task(_repeat(name, shot, every, woken, rest), name=name)
    try:
        yield task
    finally:
        await end({task})


async def end(tasks: set[asyncio.Task[None]]) -> None:
    """Cancel the tasks, and return when all have ended.

    Once is not always enough: before Python 3.12 `asyncio.wait_for`, which the pool uses, drops a
    cancellation that comes in the moment in which what it waited for is there.
    """
    while left := {task for task in tasks if not task.done()}:
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=TELL_AGAIN)


async def _repeat(
    name: str,
    shot: Callable[[], Awaitable[object]],
    every: float,
    woken: asyncio.Event | None,
    rest: float,
) -> None:
    failures = 0
    while True:
        try:
            await shot()
            failures = 0
        except Exception as error:  # noqa: BLE001  # whatever a round meets, the next one comes
            failures += 1
            _log.warning(
                "%s: a round failed, the %d. in a row: %s",
                name,
                failures,
                error,
                exc_info=error if _log.isEnabledFor(logging.DEBUG) else None,
                extra={"action": name, "failures": failures},
            )
        await _pause(every, woken, rest, failures)


async def _pause(every: float, woken: asyncio.Event | None, rest: float, failures: int) -> None:
    """Wait for the next round; a little askew, so that replicas don't keep step."""
    askew = random.uniform(0.9, 1.1)
    if failures:
        await asyncio.sleep(min(FIRST_PAUSE * 2 ** min(failures - 1, 20), every) * askew)
        return
    await asyncio.sleep(rest)
    if woken is None:
        await asyncio.sleep(max(0.0, every - rest) * askew)
        return
    try:
        async with asyncio.timeout(every * askew):
            await woken.wait()
    except TimeoutError:
        pass
    woken.clear()
