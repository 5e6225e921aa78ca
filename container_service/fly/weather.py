"""The weather at Fly, app by app: the breakers and retry budgets of one process.

What counts, for a breaker, as an answer and as none:

- An answer is a success or a refusal of Fly's own: also 404, 409, 412, 422, 429, and the 408 of a
  wait whose state was not reached.
- No answer is a connection that was not made or broke off, 5xx, and a time-out of a short call that
  had time enough.
- Neither is: whatever became of an exec, which is the guest's; a 408 from Fly's API, which answers
  there that one machine's host does not; a long call that was cut off by its caller's deadline; a
  stranger's 4xx.
"""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from container_service.errors import CircuitOpen
from container_service.fly.breaker import Breaker, Tolerance
from container_service.fly.budget import RetryBudget

if TYPE_CHECKING:
    from container_service.fly.errors import Refusal
    from container_service.fly.transport import Call

log = logging.getLogger(__name__)

#: A short call that was given this long, in s, and got no answer tells of the provider; one that
#: was cut off sooner tells of its caller.
TIME_ENOUGH = 2.5
#: Callers that were refused come back within this many seconds after the circuit's next probe.
SPREAD = 1.0
#: Above this many apps those that are quiet are dropped: a rested one says nothing.
SWEEP_ABOVE = 1024


@dataclass(slots=True)
class Sky:
    """What is known of one app."""

    breaker: Breaker
    budget: RetryBudget

    def is_clear(self, now: float) -> bool:
        """Whether dropping it would lose nothing."""
        return self.breaker.is_idle(now) and self.budget.is_full(now)


class Weather:
    """Holds calls back where an app does not answer, and keeps repeats few. One app's state says
    nothing of another's.
    """

    def __init__(self, retry_ratio: float = 0.1, tolerance: Tolerance | None = None) -> None:
        self._ratio = retry_ratio
        self._tolerance = tolerance or Tolerance()
        self._skies: dict[str, Sky] = {}
        self._sweep_at = SWEEP_ABOVE

    def __len__(self) -> int:
        return len(self._skies)

    def check(self, call: Call, now: float) -> None:
        """Raise CircuitOpen where the call would be held back."""
        breaker = self._of(call.app, now).breaker
        self._refuse(call, breaker, breaker.delay(now), now)

    def admit(self, call: Call, now: float) -> None:
        """Let the call go that is about to be sent, or raise CircuitOpen."""
        breaker = self._of(call.app, now).breaker
        self._refuse(call, breaker, breaker.admit(now), now)

    def may_repeat(self, call: Call, now: float) -> bool:
        """Take leave to send a call once more."""
        return self._of(call.app, now).budget.spend(now)

    def told(self, call: Call, refusal: Refusal | None, asked: float, now: float) -> None:
        """Note what Fly answered: None for a success."""
        if refusal is None or is_answer(refusal):
            self._answered(call, asked, now)
        elif refusal.status >= 500:
            self.lost(call, asked, now)

    def timed_out(self, call: Call, asked: float, now: float) -> None:
        """Note that no answer came in the time that the call had."""
        if not call.long and now - asked >= TIME_ENOUGH:
            self.lost(call, asked, now)

    def lost(self, call: Call, asked: float, now: float) -> None:
        """Note that Fly cannot be reached, or gave no answer."""
        if call.action == "exec":
            return
        breaker = self._of(call.app, now).breaker
        if breaker.failed(call.subject, asked, now):
            log.warning(
                "Fly does not answer for %s: %d machines in a row, silent for %.1f s; calls are "
                "held back, but for a probe every %g s and then more rarely",
                call.app,
                breaker.tolerance.failures,
                breaker.silent(now),
                breaker.tolerance.shortest,
                extra={
                    "action": "circuit_opened",
                    "app": call.app,
                    "failures": breaker.tolerance.failures,
                    "silent_s": round(breaker.silent(now), 1),
                },
            )

    def _answered(self, call: Call, asked: float, now: float) -> None:
        sky = self._of(call.app, now)
        sky.budget.earn(now)
        closing = sky.breaker.answered(asked, now)
        if closing is not None:
            log.warning(
                "Fly answers for %s again after %.1f s: %d probes were sent and %d calls held back",
                call.app,
                closing.silent,
                closing.probes,
                closing.held_back,
                extra={
                    "action": "circuit_closed",
                    "app": call.app,
                    "silent_s": round(closing.silent, 1),
                    "probes": closing.probes,
                    "held_back": closing.held_back,
                },
            )

    def _refuse(self, call: Call, breaker: Breaker, delay: float, now: float) -> None:
        if delay > 0.0:
            raise CircuitOpen(
                f"the provider has not answered for {call.app} for {breaker.silent(now):.0f} s; "
                "nothing was sent",
                silent=breaker.silent(now),
                retry_after=delay + random.uniform(0.0, SPREAD),
            )

    def _of(self, app: str, now: float) -> Sky:
        if len(self._skies) > self._sweep_at:
            self._skies = {a: sky for a, sky in self._skies.items() if not sky.is_clear(now)}
            # Twice what is in use: sweeping costs each call a constant share.
            self._sweep_at = max(SWEEP_ABOVE, 2 * len(self._skies))
        if app not in self._skies:
            budget = RetryBudget.full(self._ratio, now)
            self._skies[app] = Sky(Breaker(self._tolerance), budget)
        return self._skies[app]


def is_answer(refusal: Refusal) -> bool:
    """Whether a failed answer shows that Fly's API is there and does its work."""
    if refusal.status == 408:
        return refusal.says("failed to reach desired state")
    return refusal.status == 429 or (refusal.status < 500 and refusal.is_fly)
