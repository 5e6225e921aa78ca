"""Bearing with a provider that tells nothing: how long, and what is done meanwhile.

One idea in two places. Whoever watches a container bears with silence for OUTAGE_SECONDS, from when
it heard nothing itself; and where the application's circuit is open, the silence began when the
circuit says. So a short outage is ridden out, and in a long one nobody waits for his own 5 s to
learn what is known already.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, TypeVar

from container_service.errors import CircuitOpen

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from container_service.deadlines import Deadline

T = TypeVar("T")

#: How long the provider may tell nothing at all before whoever watches gives up: an outage is told
#: soon, so that the caller can say so and try again, and not at a deadline minutes away.
OUTAGE_SECONDS = 5.0


class Silence:
    """Since when the provider has told nothing."""

    def __init__(self) -> None:
        self._since: float | None = None

    def broken(self) -> None:
        """It told something."""
        self._since = None

    def too_long(self, error: Exception) -> bool:
        """Note that it told nothing again; whether that goes on for too long."""
        now = time.monotonic()
        known = now - error.silent if isinstance(error, CircuitOpen) else now
        self._since = known if self._since is None else min(self._since, known)
        return now - self._since >= OUTAGE_SECONDS


async def past_circuit(call: Callable[[], Awaitable[T]], deadline: Deadline) -> T:
    """Make a call, and again as long as an open circuit holds it back: it was never sent.

    For what is worth more than a quick answer. Raises CircuitOpen when the time is over.
    """
    while True:
        try:
            return await call()
        except CircuitOpen as held_back:
            if held_back.retry_after >= deadline.remaining():
                raise
            await asyncio.sleep(held_back.retry_after)
