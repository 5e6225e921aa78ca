"""Fly's rate limits: a token bucket per action and identifier."""

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Rate:
    """The rate at which a bucket refills, and how many tokens it holds."""

    per_second: float
    burst: int


ACTION = Rate(per_second=1, burst=3)
"""Each machine action, per machine; create and list per app (Fly docs: rate limits)."""

GET_MACHINE = Rate(per_second=5, burst=10)
"""Get Machine, per machine."""

DELETE_APP = Rate(per_second=100 / 60, burst=100)
"""App deletions, over all apps."""


class RateLimits:
    """The token buckets. Full buckets are dropped, so that memory does not grow without limit."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._buckets: dict[tuple[str, str], tuple[float, float]] = {}

    def allow(self, action: str, identifier: str, rate: Rate) -> bool:
        """Take a token and return True, or return False when the bucket is empty."""
        now = self._now()
        key = (action, identifier)
        tokens, since = self._buckets.get(key, (float(rate.burst), now))
        tokens = min(rate.burst, tokens + (now - since) * rate.per_second)
        admitted = tokens >= 1
        self._buckets[key] = (tokens - admitted, now)
        if len(self._buckets) > 10_000:
            self._drop_idle(now)
        return admitted

    def __len__(self) -> int:
        """How many buckets are kept."""
        return len(self._buckets)

    def _drop_idle(self, now: float) -> None:
        # Every bucket is full after a minute.
        self._buckets = {key: held for key, held in self._buckets.items() if now - held[1] < 60}
