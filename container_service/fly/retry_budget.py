"""How often a failed call may be retried, and after what delay. Pure: `now` is an argument.

Retries add load to a provider in trouble, so they are limited to a fixed share of the answered
calls. Each answer adds `ratio` tokens and each retry takes one, as in gRPC's retry throttling and
the retry budgets of Google's SRE book. Each retry is delayed by exponential backoff with full
jitter, so that calls that failed together do not return together (AWS Architecture Blog:
Exponential Backoff And Jitter).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

#: The largest number of tokens, which is the number of retries that an app may make at once after
#: a quiet time.
BURST = 10.0
#: Tokens per second that are added without any answer. After an outage that used up the budget,
#: there would otherwise be no retry until calls succeed again.
REFILL_PER_SECOND = 0.1
#: Longest delay before the first retry, in seconds; it doubles with each further retry.
FIRST_DELAY = 0.2
LONGEST_DELAY = 5.0


@dataclass(slots=True)
class RetryBudget:
    """The tokens of one app: at most BURST."""

    ratio: float
    """Tokens per answered call."""

    tokens: float
    updated: float

    @classmethod
    def full(cls, ratio: float, now: float) -> RetryBudget:
        """A budget with BURST tokens."""
        return cls(ratio, BURST, now)

    def earn(self, now: float) -> None:
        """Record an answered call."""
        self._add(self.ratio, now)

    def spend(self, now: float) -> bool:
        """Take a token for one retry; False if there is none."""
        self._add(0.0, now)
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True

    def is_full(self, now: float) -> bool:
        """Whether a new budget would be equal to this one."""
        self._add(0.0, now)
        return self.tokens >= BURST

    def _add(self, earned: float, now: float) -> None:
        refilled = max(0.0, now - self.updated) * REFILL_PER_SECOND
        self.tokens = min(BURST, self.tokens + refilled + earned)
        self.updated = max(self.updated, now)


def backoff(attempt: int, draw: float) -> float:
    """Seconds to wait after failed attempt number `attempt` (from 1); `draw` is in [0, 1)."""
    return draw * min(LONGEST_DELAY, math.ldexp(FIRST_DELAY, min(attempt, 64) - 1))
