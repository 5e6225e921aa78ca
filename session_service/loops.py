"""Background loops: each repeats one coroutine function until it is cancelled."""

from __future__ import annotations

import asyncio
import logging
import random
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

_log = logging.getLogger(__name__)
#: The first pause after a round that failed, in s; doubled each time, up to the usual pause.
FIRST_PAUSE = 0.5
#: A replica that starts serves its first callers before its housework, by this time in s.
AFTER_START = 5.0
#: A task that has not ended is cancelled again after this time, in s.
CANCEL_AGAIN = 1.0


@asynccontextmanager
async def running(
    name: str,
    run_round: Callable[[], Awaitable[object]],
    *,
    every: float,
    woken: asyncio.Event | None = None,
    min_pause: float = 0.0,
    after: float = 0.0,
    quiet: float = 0.0,
    first_pause: float = FIRST_PAUSE,
    cancel_again: float = CANCEL_AGAIN,
    late: Callable[[str], None] | None = None,
    late_after: float | None = None,
) -> AsyncGenerator[asyncio.Task[None]]:
    """Run `run_round` while the context is open: about every `every` s, and when `woken` is set.

    `min_pause` is the shortest pause between two rounds, in s. The first round begins after about
    `after` s, or after `every` s if that is sooner, but not in the first `quiet` s. A round that
    fails is logged; the next one follows after `first_pause` s, doubled with each failure in a row,
    up to `every`.

    `late` is called with the name each time that a round has run for another `late_after` s, by
    default `every`: while it runs, so that a round that never ends is noticed too.
    """
    if late is not None:
        run_round = _reporting(run_round, partial(late, name), late_after or every)
    first = max(quiet, min(after, every) * _jitter())
    repeating = _repeat(name, run_round, every, woken, min_pause, first_pause, first)
    task = asyncio.create_task(repeating, name=name)
    try:
        yield task
    finally:
        await end({task}, cancel_again)


async def end(tasks: set[asyncio.Task[None]], cancel_again: float = CANCEL_AGAIN) -> None:
    """Cancel the tasks, and return when all of them have ended.

    One cancellation is not always enough. Before Python 3.12 `asyncio.wait_for`, which the
    connection pool uses, swallows a cancellation that arrives at the same moment as the awaited
    result. The task then continues as if it had not been cancelled, so it is cancelled again every
    `cancel_again` seconds until it has ended.
    """
    while left := {task for task in tasks if not task.done()}:
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=cancel_again)


def _reporting(
    run_round: Callable[[], Awaitable[object]], late: Callable[[], None], interval: float
) -> Callable[[], Awaitable[object]]:
    """The same round, which reports that it is late after each `interval` s."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        timer = loop.call_later(interval, lambda: report())

        def report() -> None:
            nonlocal timer
            timer = loop.call_later(interval, report)
            late()

        try:
            await run_round()
        finally:
            timer.cancel()

    return run


async def _repeat(
    name: str,
    run_round: Callable[[], Awaitable[object]],
    every: float,
    woken: asyncio.Event | None,
    min_pause: float,
    first_pause: float,
    first: float,
) -> None:
    await asyncio.sleep(first)
    failures = 0
    while True:
        try:
            await run_round()
        except Exception as error:  # noqa: BLE001  # no failure of a round may end the loop
            failures += 1
            _log.warning(
                "%s: a round failed (%d in a row): %s",
                name,
                failures,
                error,
                exc_info=error if _log.isEnabledFor(logging.DEBUG) else None,
                extra={"action": name, "failures": failures},
            )
            pause = min(first_pause * 2 ** min(failures - 1, 20), every)
            await asyncio.sleep(pause * _jitter())
        else:
            failures = 0
            await _wait(every, woken, min_pause)


async def _wait(every: float, woken: asyncio.Event | None, min_pause: float) -> None:
    """Wait for the next round after one that succeeded."""
    await asyncio.sleep(min_pause)
    if woken is None:
        await asyncio.sleep(max(0.0, every * _jitter() - min_pause))
        return
    try:
        async with asyncio.timeout(every * _jitter()):
            await woken.wait()
    except TimeoutError:
        pass
    woken.clear()


def _jitter() -> float:
    """A factor near 1: the rounds of replicas that started together drift apart."""
    return random.uniform(0.9, 1.1)
