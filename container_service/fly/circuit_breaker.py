"""A circuit breaker for one Fly app. Pure: `now` is an argument.

A closed breaker admits every call. It opens when calls about `failures` different machines got no
answer, and no call of the app got an answer in between. An open breaker rejects calls without
sending them, except for one probe in each interval (half-open). An answer closes it, with one
exception that follows from the order of calls.

Failures are counted by machine, because Fly's API forwards calls about a machine to the machine's
host. Many failures of one machine mean that one host is away, and say nothing about the app. Calls
about the app itself, such as creates and listings, count as one more machine. `app_health` decides
which results count as an answer and which as a failure.

Calls overlap, so each call carries the time at which it was sent. An answer does not close the
circuit if its call was sent before a call that got no answer: Fly may have accepted the earlier
call while it still worked. And a failure does not count if its call was sent before a call that got
an answer: the timeouts of an outage arrive up to half a minute late, when the outage may be long
over, and would otherwise open the circuit again. After a probe that gets no answer the circuit
stays open until the next probe, which the next interval brings. So it never stays open for good.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class BreakerSettings:
    """When a circuit opens, and how often it is probed. Times in seconds."""

    failures: int = 5
    """The circuit opens when calls about this many different machines got no answer."""

    window: float = 10.0
    """Failures that are older than this no longer count."""

    shortest_interval: float = 1.0
    """Shortest time until the first probe, and between two probes. It is so short that a start in
    progress, which tolerates an outage of 5 s (`containers.outages`), learns in time that the
    outage is over."""

    longest_interval: float = 10.0
    """Longest time between two probes."""

    def probe_interval(self, silent_seconds: float) -> float:
        """Seconds until the next probe, when no call got an answer for `silent_seconds`: a quarter
        of that time, within the two limits.
        """
        return min(self.longest_interval, max(self.shortest_interval, silent_seconds / 4))


@dataclass(frozen=True, slots=True)
class OutageSummary:
    """The figures of an outage, when the circuit closes."""

    silent_seconds: float
    """Seconds since the first call without an answer was sent."""

    probes: int
    rejected: int


@dataclass(frozen=True, slots=True)
class _Failure:
    sent_at: float
    noted_at: float


@dataclass(slots=True)
class CircuitBreaker:
    """The circuit of one app. `sent_at` is the time at which a call was sent; see the module."""

    settings: BreakerSettings
    _failures: dict[str, _Failure] = field(default_factory=dict)
    _last_answered_sent_at: float = -math.inf
    _silent_since: float | None = None
    """When the first call without an answer was sent; None while the circuit is closed."""
    _last_failed_sent_at: float = -math.inf
    _next_probe_at: float = 0.0
    _probes: int = 0
    _rejected: int = 0

    @property
    def is_open(self) -> bool:
        """Whether calls are rejected."""
        return self._silent_since is not None

    def silent_seconds(self, now: float) -> float:
        """Seconds since the first call without an answer was sent; 0 while closed."""
        return 0.0 if self._silent_since is None else max(0.0, now - self._silent_since)

    def delay(self, now: float) -> float:
        """Seconds until a call is admitted. A delay above 0 is counted as a rejection."""
        left = max(0.0, self._next_probe_at - now) if self.is_open else 0.0
        self._rejected += left > 0.0
        return left

    def admit(self, now: float) -> float:
        """Seconds until a call is admitted, as `delay`. If 0, the caller must send the call now:
        while the circuit is open, that call is the probe of this interval.
        """
        if self._silent_since is None:
            return 0.0
        left = self.delay(now)
        if left > 0.0:
            return left
        self._probes += 1
        self._next_probe_at = now + self.settings.probe_interval(self.silent_seconds(now))
        return 0.0

    def record_failure(self, subject: str, sent_at: float, now: float) -> bool:
        """Record a call without an answer; True if it opened the circuit."""
        if sent_at < self._last_answered_sent_at:
            return False
        if self.is_open:
            self._last_failed_sent_at = max(self._last_failed_sent_at, sent_at)
            return False
        self._drop_old(now)
        self._failures[subject] = _Failure(sent_at, now)
        if len(self._failures) < self.settings.failures:
            return False
        times = [failure.sent_at for failure in self._failures.values()]
        self._silent_since, self._last_failed_sent_at = min(times), max(times)
        self._next_probe_at = now + self.settings.probe_interval(self.silent_seconds(now))
        self._failures.clear()
        return True

    def record_answer(self, sent_at: float, now: float) -> OutageSummary | None:
        """Record an answer; return the figures of the outage if it closed the circuit."""
        self._last_answered_sent_at = max(self._last_answered_sent_at, sent_at)
        if not self.is_open:
            self._failures = {s: f for s, f in self._failures.items() if f.sent_at > sent_at}
            return None
        if sent_at < self._last_failed_sent_at:
            return None
        summary = OutageSummary(self.silent_seconds(now), self._probes, self._rejected)
        self._silent_since, self._probes, self._rejected = None, 0, 0
        return summary

    def is_idle(self, now: float) -> bool:
        """Whether a new breaker would behave like this one."""
        self._drop_old(now)
        return not self.is_open and not self._failures

    def _drop_old(self, now: float) -> None:
        oldest = now - self.settings.window
        self._failures = {s: f for s, f in self._failures.items() if f.noted_at >= oldest}
