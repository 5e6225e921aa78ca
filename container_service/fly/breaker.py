"""A circuit breaker for one Fly app: arithmetic on a `now` that is passed in.

Closed, everything goes. When so many different machines in a row got no answer, and nothing else of
the app did, the circuit opens: calls are refused here and at once. From then on one call in each
spell is let through as a probe (half-open); the first answer closes the circuit.

Different machines, since many failures on one say nothing of the app: Fly's API passes a machine's
calls on to the machine's host, and it is that host which is away then. The app itself, asked by
creates and listings, counts as one more. What is a failure and what an answer `weather` says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Tolerance:
    """When a circuit opens, and how long it stays so. Times in s."""

    failures: int = 5
    """So many different machines in a row without an answer open it."""

    window: float = 10.0
    """Failures that are further apart are no row."""

    shortest: float = 1.0
    """The first spell, until a probe may go. So short that a start which is under way, and bears
    an outage of 5 s (`outages`), hears of the outage's end in time."""

    longest: float = 10.0
    """The longest spell."""

    def spell(self, silent: float) -> float:
        """Seconds between two probes when nothing was heard for `silent` s: a fourth of that."""
        return min(self.longest, max(self.shortest, silent / 4))


@dataclass(frozen=True, slots=True)
class Closing:
    """A circuit closed: what it had cost, and saved."""

    silent: float
    """Seconds from the first call that got no answer."""
    probes: int
    held_back: int


@dataclass(frozen=True, slots=True)
class _Failure:
    asked: float
    at: float


@dataclass(slots=True)
class Breaker:
    """One app's circuit. `asked` is when a call was sent: an answer to a question from before the
    trouble says nothing of it, and a failure of one from before the last answer neither.
    """

    tolerance: Tolerance
    _failing: dict[str, _Failure] = field(default_factory=dict)
    _heard: float = -math.inf
    _silent_since: float | None = None
    """None: closed. Else when the first call was sent that got no answer."""
    _asked_last: float = -math.inf
    _next_probe: float = 0.0
    _probes: int = 0
    _held_back: int = 0

    @property
    def is_open(self) -> bool:
        """Whether calls are held back."""
        return self._silent_since is not None

    def silent(self, now: float) -> float:
        """Seconds since the first call that got no answer; 0 while closed."""
        return 0.0 if self._silent_since is None else max(0.0, now - self._silent_since)

    def delay(self, now: float) -> float:
        """Seconds until a call may go; one that may not is counted as held back."""
        left = max(0.0, self._next_probe - now) if self.is_open else 0.0
        self._held_back += left > 0.0
        return left

    def admit(self, now: float) -> float:
        """The same for a call that is about to be sent: 0 means that it goes, while open as the
        spell's probe.
        """
        if self._silent_since is None:
            return 0.0
        left = self.delay(now)
        if left > 0.0:
            return left
        self._probes += 1
        self._next_probe = now + self.tolerance.spell(self.silent(now))
        return 0.0

    def failed(self, subject: str, asked: float, now: float) -> bool:
        """Note a call that got no answer; whether that opened the circuit."""
        if asked < self._heard:
            return False
        if self.is_open:
            self._asked_last = max(self._asked_last, asked)
            return False
        self._drop_old(now)
        self._failing[subject] = _Failure(asked, now)
        if len(self._failing) < self.tolerance.failures:
            return False
        times = [failure.asked for failure in self._failing.values()]
        self._silent_since, self._asked_last = min(times), max(times)
        self._next_probe = now + self.tolerance.spell(self.silent(now))
        self._failing.clear()
        return True

    def answered(self, asked: float, now: float) -> Closing | None:
        """Note an answer; the figures if it closed the circuit."""
        self._heard = max(self._heard, asked)
        if not self.is_open:
            self._failing = {s: f for s, f in self._failing.items() if f.asked > asked}
            return None
        if asked < self._asked_last:
            return None
        closing = Closing(self.silent(now), self._probes, self._held_back)
        self._silent_since, self._probes, self._held_back = None, 0, 0
        return closing

    def is_idle(self, now: float) -> bool:
        """Whether dropping this breaker would lose nothing worth keeping."""
        self._drop_old(now)
        return not self.is_open and not self._failing

    def _drop_old(self, now: float) -> None:
        oldest = now - self.tolerance.window
        self._failing = {s: f for s, f in self._failing.items() if f.at >= oldest}
