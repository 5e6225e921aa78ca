"""Keeps calls within Fly's rate limits: token buckets, as arithmetic on a `now` that is passed in.

Fly limits each action on each machine, and on each app for what has no machine yet: one a second
with a burst of three; reading a machine is five a second with a burst of ten (Fly docs: Machines
API, rate limits).
"""

from __future__ import annotations

from dataclasses import dataclass

#: Above this many buckets those that are full again are dropped: a full bucket says nothing.
SWEEP_ABOVE = 1024


#: How much later than the earliest moment a call that has to wait goes out. Fly counts arrivals:
#: without it one that is a little faster on its way than the one before would be refused.
JITTER_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Rate:
    """So many calls a second, and so many at once after a rest."""

    per_second: float
    burst: float

    def share(self, fraction: float) -> Rate:
        """The part of the rate that one of several replicas takes; a burst of one is the least."""
        return Rate(self.per_second * fraction, max(1.0, self.burst * fraction))


DEFAULT_RATE = Rate(per_second=1.0, burst=3.0)
GET_RATE = Rate(per_second=5.0, burst=10.0)


@dataclass(slots=True)
class Bucket:
    """Tokens for one action on one subject; below zero they are promised ahead."""

    rate: Rate
    tokens: float
    updated: float

    @classmethod
    def full(cls, rate: Rate, now: float) -> Bucket:
        """A bucket that has rested."""
        return cls(rate, rate.burst, now)

    def refill(self, now: float) -> None:
        """Add what has come in since the last look."""
        gained = max(0.0, now - self.updated) * self.rate.per_second
        self.tokens = min(self.rate.burst, self.tokens + gained)
        self.updated = max(self.updated, now)

    def delay(self, now: float) -> float:
        """Seconds from now until the next token is there; nothing is taken."""
        self.refill(now)
        return max(0.0, (1.0 - self.tokens) / self.rate.per_second)

    def take(self, now: float) -> None:
        """Take a token, there or promised: who comes later waits behind."""
        self.refill(now)
        self.tokens -= 1.0

    def drain(self, now: float) -> None:
        """Somebody else has used up the tokens: none is left, but promises stand."""
        self.refill(now)
        self.tokens = min(self.tokens, 0.0)

    def is_full(self, now: float) -> bool:
        """Whether dropping this bucket would lose nothing."""
        self.refill(now)
        return self.tokens >= self.rate.burst


class Pacing:
    """The buckets of one process, made when needed and dropped when full again."""

    def __init__(self, share: float = 1.0) -> None:
        self._rates = {"get": GET_RATE.share(share)}
        self._default = DEFAULT_RATE.share(share)
        self._buckets: dict[tuple[str, str], Bucket] = {}
        self._sweep_at = SWEEP_ABOVE

    def __len__(self) -> int:
        return len(self._buckets)

    def reserve(self, action: str, subject: str, now: float, patience: float) -> float | None:
        """Take a token; return the seconds to wait before the call, in the order of asking.

        None, and nothing taken, when that is longer than `patience`.
        """
        bucket = self._bucket(action, subject, now)
        due = bucket.delay(now)
        delay = due + JITTER_SECONDS if due else 0.0
        if delay > patience:
            return None
        bucket.take(now)
        return delay

    def due(self, action: str, subject: str, now: float) -> float:
        """Seconds until one more such call could go, if nobody else asks meanwhile."""
        return self._bucket(action, subject, now).delay(now)

    def refused(self, action: str, subject: str, now: float) -> float:
        """Note that Fly refused a call for its rate; return the seconds until the next may go."""
        bucket = self._bucket(action, subject, now)
        bucket.drain(now)
        return bucket.delay(now)

    def _bucket(self, action: str, subject: str, now: float) -> Bucket:
        if len(self._buckets) > self._sweep_at:
            self._sweep(now)
        key = (action, subject)
        if key not in self._buckets:
            self._buckets[key] = Bucket.full(self._rates.get(action, self._default), now)
        return self._buckets[key]

    def _sweep(self, now: float) -> None:
        self._buckets = {k: b for k, b in self._buckets.items() if not b.is_full(now)}
        # Twice what is in use: sweeping costs each call a constant share, however many there are.
        self._sweep_at = max(SWEEP_ABOVE, 2 * len(self._buckets))
