"""Serve until a signal, and let load balancers see the end coming."""

from __future__ import annotations

import asyncio
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

SIGNALS = (signal.SIGTERM, signal.SIGINT)


async def until_signal(
    leave: Callable[[], Awaitable[None]],
    lame_duck: float,
    ready: Callable[[], None],
    told: Callable[[signal.Signals], None],
) -> None:
    """Wait for SIGTERM or SIGINT, report it to `told`, await `leave`, and wait `lame_duck` seconds,
    which a second signal cuts short. Any further signal kills the process. `ready` is called once
    signals are handled: a program that is told then that the server serves can end it.
    """
    loop = asyncio.get_running_loop()
    first, second = asyncio.Event(), asyncio.Event()
    last = False

    def kill_from_now_on() -> None:
        # At once, even if the event loop is blocked.
        nonlocal last
        last = True
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)

    def handle(number: signal.Signals) -> None:
        if last:
            # It came before `kill_from_now_on`, and lay in the loop.
            signal.raise_signal(number)
        if first.is_set() or not lame_duck:
            kill_from_now_on()
        if first.is_set():
            second.set()
            return
        # Last: a signal that is sent because of what `told` says finds all this done.
        first.set()
        told(number)

    for each in SIGNALS:
        loop.add_signal_handler(each, handle, each)
    ready()
    await first.wait()
    await leave()
    with suppress(TimeoutError):
        async with asyncio.timeout(lame_duck):
            await second.wait()
    kill_from_now_on()
