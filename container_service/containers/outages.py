"""How long to tolerate a provider that does not answer.

A start, stop or wait that watches a container does not fail at the first unanswered read: it goes
on for OUTAGE_SECONDS after the last answer, so that a short outage costs the caller nothing. If the
app's circuit is open (`CircuitOpen`), the outage began when the circuit saw its first unanswered
call, not when this caller made its own first call. In a long outage each new call therefore fails
at once, instead of waiting its own 5 s for what is known already.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, TypeVar

from container_service.containers.errors import CircuitOpen

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from container_service.containers.deadlines import Deadline

T = TypeVar("T")

#: Seconds without any answer after which a watching call fails. Short, so that the caller learns
#: of an outage soon and can retry, and does not wait for a deadline that may be minutes away.
OUTAGE_SECONDS = 5.0


class OutageTimer:
    """Measures how long the provider has not answered."""

    def __init__(self) -> None:
        self._since: float | None = None

    def reset(self) -> None:
        """Record an answer."""
        self._since = None

    def expired(self, error: Exception) -> bool:
        """Record a call without an answer; True if the outage has reached OUTAGE_SECONDS."""
        now = time.monotonic()
        began = now - error.silent_seconds if isinstance(error, CircuitOpen) else now
        self._since = began if self._since is None else min(self._since, began)
        return now - self._since >= OUTAGE_SECONDS


async def retry_while_circuit_open(call: Callable[[], Awaitable[T]], deadline: Deadline) -> T:
    """Make a call; while the circuit is open, wait for its next probe and call again.

    Safe for any call, because a call that the circuit rejects was never sent. For calls whose
    success matters more than a quick error, such as the release of a lease. Raises CircuitOpen if
    the next probe comes after the deadline.
    """
    while True:
        try:
            return await call()
        except CircuitOpen as error:
            if error.retry_after >= deadline.remaining():
                raise
            await asyncio.sleep(error.retry_after)
