"""Fly's rate limits: a token bucket per action and identifier."""

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Rate:
    """So many requests a second, and so many at once."""

    per_second: float
    burst: int


ACTION = Rate(per_second=1, burst=3)
"""Machine actions, each by machine, or by app for create and list (Fly docs: rate limits)."""

GET_MACHINE = Rate(per_second=5, burst=10)
"""Get Machine, by machine."""

DELETE_APP = Rate(per_second=100 / 60, burst=100)
"""App deletions, all together."""


class Limits:
    """Who may pass. A bucket is forgotten when it is full again, so memory follows traffic."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._buckets: dict[tuple[str, str], tuple[float, float]] = {}

    def admits(self, action: str, identifier: str, rate: Rate) -> bool:
        """Take a token if there is one."""
        now = self._now()
        key = (action, identifier)
        tokens, since = self._buckets.get(key, (float(rate.burst), now))
        tokens = min(rate.burst, tokens + (now - since) * rate.per_second)
        admitted = tokens >= 1
        self._buckets[key] = (tokens - admitted, now)
        if len(self._buckets) > 10_000:
            self._forget_idle(now)
        return admitted

    def __len__(self) -> int:
        """How many buckets are remembered."""
        return len(self._buckets)

    def _forget_idle(self, now: float) -> None:
        # A minute fills every bucket there is.
        self._buckets = {key: held for key, held in self._buckets.items() if now - held[1] < 60}
