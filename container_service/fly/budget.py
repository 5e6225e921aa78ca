"""How often a call may be repeated, and after how long: arithmetic on what is passed in.

A provider in trouble must not get more calls for it. As in gRPC's retry throttling and the retry
budgets of Google's SRE book, answers earn what repeats spend, so that repeats stay a fixed part of
the calls whatever goes wrong; and each repeat comes after a pause of full jitter, so that those who
failed together do not come again together (AWS Architecture Blog: Exponential Backoff And Jitter).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

#: Repeats that an application has in hand after a rest.
BURST = 10.0
#: What comes in by itself, a second: after an outage nobody has to earn the first repeat back.
TRICKLE = 0.1
#: The longest pause before the first repeat, in s; it doubles with each.
FIRST_PAUSE = 0.2
LONGEST_PAUSE = 5.0


@dataclass(slots=True)
class RetryBudget:
    """Repeats that may still be made: at most BURST, `ratio` more for each answer."""

    ratio: float
    tokens: float
    updated: float

    @classmethod
    def full(cls, ratio: float, now: float) -> RetryBudget:
        """A budget that nobody has spent of."""
        return cls(ratio, BURST, now)

    def earn(self, now: float) -> None:
        """Note an answer."""
        self._add(self.ratio, now)

    def spend(self, now: float) -> bool:
        """Take leave for one repeat; False where there is none."""
        self._add(0.0, now)
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True

    def is_full(self, now: float) -> bool:
        """Whether dropping this budget would lose nothing."""
        self._add(0.0, now)
        return self.tokens >= BURST

    def _add(self, earned: float, now: float) -> None:
        came_in = max(0.0, now - self.updated) * TRICKLE
        self.tokens = min(BURST, self.tokens + came_in + earned)
        self.updated = max(self.updated, now)


def backoff(attempt: int, draw: float) -> float:
    """Seconds to pause after a failed attempt, counted from 1; `draw` is from 0 to below 1."""
    return draw * min(LONGEST_PAUSE, math.ldexp(FIRST_PAUSE, min(attempt, 64) - 1))
