"""How long a watch may be silent, and how long it may last."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from math import inf


class Pace:
    """The pace of one watch. Times are in seconds."""

    def __init__(self, heartbeat: float | None = None, age: float = 0.0) -> None:
        """`heartbeat`: something is to be sent after so long a silence; None: never.

        `age`: the age to which connections come; 0: any. The watch ends earlier than that, and not
        at the same time as others that began with it.
        """
        self._loop = asyncio.get_running_loop()
        self._heartbeat = heartbeat
        self._sent = -inf
        self._end = self._loop.time() + age * random.uniform(0.7, 0.9) if age else inf

    @property
    def over(self) -> bool:
        """Whether the watch has lasted as long as it may."""
        return self._loop.time() >= self._end

    @property
    def silent(self) -> bool:
        """Whether a heartbeat is due. One is due at the beginning."""
        return self._heartbeat is not None and self._loop.time() >= self._sent + self._heartbeat

    def sent(self) -> None:
        """Note that something was sent just now."""
        self._sent = self._loop.time()

    async def wait(self, event: asyncio.Event, longest: float | None = None) -> None:
        """Wait for the event, until a heartbeat is due, until the watch is over, or for `longest`
        seconds.
        """
        until = self._end
        if longest is not None:
            until = min(until, self._loop.time() + longest)
        if self._heartbeat is not None:
            until = min(until, self._sent + self._heartbeat)
        with suppress(TimeoutError):
            async with asyncio.timeout_at(None if until == inf else until):
                await event.wait()
