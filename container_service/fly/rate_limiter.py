"""Token buckets that keep calls within Fly's rate limits. Pure: `now` is an argument.

Fly limits each action on each machine, and on each app for actions without a machine: one call a
second with a burst of three, and for reads of a machine five a second with a burst of ten (Fly
docs: Machines API, rate limits).
"""

from __future__ import annotations

from dataclasses import dataclass

#: Above this number of buckets, full ones are dropped: a new bucket would be equal.
DROP_FULL_ABOVE = 1024

#: Seconds by which a delayed call is sent later than the limit allows. Fly counts arrivals: a call
#: that travels a little faster than the one before it would otherwise arrive too early.
JITTER_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Rate:
    """A rate limit: calls per second, and calls at once after a quiet time."""

    per_second: float
    burst: float

    def share(self, fraction: float) -> Rate:
        """The part of the limit for one of several replicas; its burst is at least one."""
        return Rate(self.per_second * fraction, max(1.0, self.burst * fraction))


DEFAULT_RATE = Rate(per_second=1.0, burst=3.0)
GET_RATE = Rate(per_second=5.0, burst=10.0)


@dataclass(slots=True)
class TokenBucket:
    """The tokens of one action on one subject. Negative while calls wait for reserved tokens."""

    rate: Rate
    tokens: float
    updated: float

    @classmethod
    def full(cls, rate: Rate, now: float) -> TokenBucket:
        """A bucket with a full burst."""
        return cls(rate, rate.burst, now)

    def refill(self, now: float) -> None:
        """Add the tokens of the time since the last update."""
        gained = max(0.0, now - self.updated) * self.rate.per_second
        self.tokens = min(self.rate.burst, self.tokens + gained)
        self.updated = max(self.updated, now)

    def delay(self, now: float) -> float:
        """Seconds until the next token is available. Takes none."""
        self.refill(now)
        return max(0.0, (1.0 - self.tokens) / self.rate.per_second)

    def take(self, now: float) -> None:
        """Take a token, or reserve a future one; later callers get later tokens."""
        self.refill(now)
        self.tokens -= 1.0

    def drain(self, now: float) -> None:
        """Drop the available tokens, as another process has used them; reservations remain."""
        self.refill(now)
        self.tokens = min(self.tokens, 0.0)

    def is_full(self, now: float) -> bool:
        """Whether a new bucket would be equal to this one."""
        self.refill(now)
        return self.tokens >= self.rate.burst


class RateLimiter:
    """The token buckets of one process."""

    def __init__(self, share: float = 1.0) -> None:
        """`share`: the part of Fly's limits that this process may use."""
        self._rates = {"get": GET_RATE.share(share)}
        self._default = DEFAULT_RATE.share(share)
        self._buckets: dict[tuple[str, str], TokenBucket] = {}
        self._drop_full_above = DROP_FULL_ABOVE

    def __len__(self) -> int:
        return len(self._buckets)

    def reserve(self, action: str, subject: str, now: float, max_delay: float) -> float | None:
        """Take a token; return the seconds to wait before the call. First come, first served.

        Returns None, and takes nothing, if that would be more than `max_delay`.
        """
        bucket = self._bucket(action, subject, now)
        wait = bucket.delay(now)
        delay = wait + JITTER_SECONDS if wait else 0.0
        if delay > max_delay:
            return None
        bucket.take(now)
        return delay

    def delay(self, action: str, subject: str, now: float) -> float:
        """Seconds until the next such call may be sent, unless another takes the token first."""
        return self._bucket(action, subject, now).delay(now)

    def record_rejection(self, action: str, subject: str, now: float) -> float:
        """Record a 429 from Fly; return the seconds until the next such call may be sent."""
        bucket = self._bucket(action, subject, now)
        bucket.drain(now)
        return bucket.delay(now)

    def _bucket(self, action: str, subject: str, now: float) -> TokenBucket:
        if len(self._buckets) > self._drop_full_above:
            self._drop_full(now)
        key = (action, subject)
        if key not in self._buckets:
            self._buckets[key] = TokenBucket.full(self._rates.get(action, self._default), now)
        return self._buckets[key]

    def _drop_full(self, now: float) -> None:
        self._buckets = {k: b for k, b in self._buckets.items() if not b.is_full(now)}
        # Twice the number in use, so that the cost of this loop is constant per call.
        self._drop_full_above = max(DROP_FULL_ABOVE, 2 * len(self._buckets))
