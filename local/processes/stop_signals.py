"""SIGINT and SIGTERM as an asyncio event."""

from __future__ import annotations

import asyncio
import signal
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@asynccontextmanager
async def stop_requested() -> AsyncGenerator[asyncio.Event, None]:
    """Yield an event that the first SIGINT or SIGTERM sets. A second one ends the process."""
    loop = asyncio.get_running_loop()
    event = asyncio.Event()

    def ask() -> None:
        event.set()
        restore()

    def restore() -> None:
        for signal_ in SIGNALS:
            loop.remove_signal_handler(signal_)
            # asyncio would restore Python's handler, whose KeyboardInterrupt prints a traceback.
            signal.signal(signal_, signal.SIG_DFL)

    before = {signal_: signal.getsignal(signal_) for signal_ in SIGNALS}
    for signal_ in SIGNALS:
        loop.add_signal_handler(signal_, ask)
    try:
        yield event
    finally:
        restore()
        for signal_, handler in before.items():
            signal.signal(signal_, handler)
