"""Whether Fly answers for an app: one circuit breaker and one retry budget for each app.

The result of a call counts as follows:

- An answer: a success, or an error response by Fly itself. That includes 404, 409, 412, 422 and
  429, and the 408 of a wait whose state was not reached.
- A failure: a connection that was refused or broke, a 5xx, and a timeout of a short call that had
  at least MEANINGFUL_TIMEOUT.
- Neither: any failure of an exec, which may be the guest's; another 408, by which Fly's API says
  that the host of one machine did not answer; a long call that the caller's deadline cut off; a 4xx
  that is not in Fly's format, such as that of a proxy on the way.
"""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from container_service.containers.errors import CircuitOpen
from container_service.fly.circuit_breaker import BreakerSettings, CircuitBreaker
from container_service.fly.retry_budget import RetryBudget

if TYPE_CHECKING:
    from container_service.fly.call import Call
    from container_service.fly.errors import ErrorResponse

log = logging.getLogger(__name__)

#: Seconds. A short call without an answer for so long is a failure of the provider. If a call ended
#: sooner without an answer, its caller's deadline was too short to prove that.
MEANINGFUL_TIMEOUT = 2.5
#: Seconds. The retry time in a rejection is a random time within this span after the next probe.
RETRY_SPREAD = 1.0
#: If there are more apps than this, the idle ones are dropped (`AppHealth.is_idle`).
DROP_IDLE_ABOVE = 1024


@dataclass(slots=True)
class AppHealth:
    """The state of one app."""

    breaker: CircuitBreaker
    budget: RetryBudget

    def is_idle(self, now: float) -> bool:
        """Whether the state equals that of a new app, so that nothing is lost if it is dropped."""
        return self.breaker.is_idle(now) and self.budget.is_full(now)


class AppHealthRegistry:
    """The state of all apps that this process calls. Apps do not affect each other."""

    def __init__(self, retry_ratio: float = 0.1, settings: BreakerSettings | None = None) -> None:
        """`retry_ratio`: retries per answered call."""
        self._ratio = retry_ratio
        self._settings = settings or BreakerSettings()
        self._apps: dict[str, AppHealth] = {}
        self._drop_idle_above = DROP_IDLE_ABOVE

    def __len__(self) -> int:
        return len(self._apps)

    def check(self, call: Call, now: float) -> None:
        """Raise CircuitOpen if the circuit would reject the call now."""
        breaker = self._of(call.app, now).breaker
        self._reject(call, breaker, breaker.delay(now), now)

    def admit(self, call: Call, now: float) -> None:
        """Admit a call that is sent at once, perhaps as a probe; raise CircuitOpen otherwise."""
        breaker = self._of(call.app, now).breaker
        self._reject(call, breaker, breaker.admit(now), now)

    def may_retry(self, call: Call, now: float) -> bool:
        """Take a token of the retry budget; False if there is none."""
        return self._of(call.app, now).budget.spend(now)

    def record_response(
        self, call: Call, error: ErrorResponse | None, sent_at: float, now: float
    ) -> None:
        """Record a response; `error` is None for a success."""
        if error is None or is_answer(error):
            self._record_answer(call, sent_at, now)
        elif error.status >= 500:
            self.record_failure(call, sent_at, now)

    def record_timeout(self, call: Call, sent_at: float, now: float) -> None:
        """Record that the call timed out."""
        if not call.long and now - sent_at >= MEANINGFUL_TIMEOUT:
            self.record_failure(call, sent_at, now)

    def record_failure(self, call: Call, sent_at: float, now: float) -> None:
        """Record that Fly could not be reached or did not answer."""
        if call.action == "exec":
            return
        breaker = self._of(call.app, now).breaker
        if breaker.record_failure(call.subject, sent_at, now):
            log.warning(
                "Fly does not answer for app %s: %d machines in a row, for %.1f s. Calls now fail"
                " without being sent, except for a probe every %g s, later less often",
                call.app,
                breaker.settings.failures,
                breaker.silent_seconds(now),
                breaker.settings.shortest_interval,
                extra={
                    "action": "circuit_opened",
                    "app": call.app,
                    "failures": breaker.settings.failures,
                    "silent_s": round(breaker.silent_seconds(now), 1),
                },
            )

    def _record_answer(self, call: Call, sent_at: float, now: float) -> None:
        health = self._of(call.app, now)
        health.budget.earn(now)
        outage = health.breaker.record_answer(sent_at, now)
        if outage is not None:
            log.warning(
                "Fly answers again for app %s after %.1f s: %d probes were sent and %d calls"
                " rejected",
                call.app,
                outage.silent_seconds,
                outage.probes,
                outage.rejected,
                extra={
                    "action": "circuit_closed",
                    "app": call.app,
                    "silent_s": round(outage.silent_seconds, 1),
                    "probes": outage.probes,
                    "rejected": outage.rejected,
                },
            )

    def _reject(self, call: Call, breaker: CircuitBreaker, delay: float, now: float) -> None:
        if delay > 0.0:
            silent_seconds = breaker.silent_seconds(now)
            raise CircuitOpen(
                f"the provider has not answered for app {call.app} for {silent_seconds:.0f} s, so"
                " this call was not sent: retry later",
                silent_seconds=silent_seconds,
                retry_after=delay + random.uniform(0.0, RETRY_SPREAD),
            )

    def _of(self, app: str, now: float) -> AppHealth:
        if len(self._apps) > self._drop_idle_above:
            self._apps = {a: health for a, health in self._apps.items() if not health.is_idle(now)}
            # Twice the number in use, so that the cost of this loop is constant per call.
            self._drop_idle_above = max(DROP_IDLE_ABOVE, 2 * len(self._apps))
        if app not in self._apps:
            budget = RetryBudget.full(self._ratio, now)
            self._apps[app] = AppHealth(CircuitBreaker(self._settings), budget)
        return self._apps[app]


def is_answer(error: ErrorResponse) -> bool:
    """Whether an error response shows that Fly's API works."""
    if error.status == 408:
        return error.mentions("failed to reach desired state")
    return error.status == 429 or (error.status < 500 and error.is_fly)
