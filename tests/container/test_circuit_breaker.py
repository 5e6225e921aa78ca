"""Retry budget, backoff, circuit breaker and app health, with `now` as an argument."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from container_service.containers.errors import (
    CircuitOpen,
    ContainerNotFound,
    OutcomeUnknown,
    ProviderUnavailable,
)
from container_service.containers.model import ContainerState
from container_service.containers.outages import OUTAGE_SECONDS, OutageTimer
from container_service.fly.app_health import (
    DROP_IDLE_ABOVE,
    MEANINGFUL_TIMEOUT,
    RETRY_SPREAD,
    AppHealthRegistry,
)
from container_service.fly.call import Call
from container_service.fly.circuit_breaker import BreakerSettings, CircuitBreaker
from container_service.fly.retry_budget import (
    BURST,
    FIRST_DELAY,
    LONGEST_DELAY,
    REFILL_PER_SECOND,
    RetryBudget,
    backoff,
)

if TYPE_CHECKING:
    from collections.abc import Callable


FIVE = BreakerSettings(failures=5)


def get(machine: str, app: str = "birds") -> Call:
    return Call("get", machine, "GET", f"apps/{app}/machines/{machine}", repeatable=True)


def opened(now: float = 100.0, settings: BreakerSettings = FIVE) -> CircuitBreaker:
    """A breaker whose circuit has just opened."""
    breaker = CircuitBreaker(settings)
    results = [breaker.record_failure(f"m{n}", now, now) for n in range(settings.failures)]
    assert results == [False] * (settings.failures - 1) + [True]
    return breaker


# --- budget and backoff ------------------------------------------------------------------------


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 5)), max_size=200), st.floats(0, 1))
def test_retries_stay_a_fraction_of_the_answers(
    history: list[tuple[bool, float]], ratio: float
) -> None:
    budget, now, repeats, answers = RetryBudget.full(ratio, 0.0), 0.0, 0, 0
    for answered, pause in history:
        now += pause
        if answered:
            budget.earn(now)
            answers += 1
        else:
            repeats += budget.spend(now)
        assert repeats <= BURST + ratio * answers + REFILL_PER_SECOND * now + 1e-6


def test_a_spent_budget_refills_with_answers_and_with_time() -> None:
    budget = RetryBudget.full(0.5, 0.0)
    assert [budget.spend(0.0) for _ in range(12)] == [True] * 10 + [False] * 2
    budget.earn(0.0)
    assert not budget.spend(0.0)
    budget.earn(0.0)
    assert budget.spend(0.0)
    assert not budget.spend(0.0)
    assert budget.spend(1 / REFILL_PER_SECOND)
    assert not budget.is_full(1 / REFILL_PER_SECOND)
    assert budget.is_full(1e6)


#: The numbers that `random.random` gives.
DRAWS = st.integers(0, 2**53 - 1).map(lambda number: number / 2**53)


@given(st.integers(1, 10_000), DRAWS)
def test_the_backoff_has_full_jitter_and_a_bound(attempt: int, draw: float) -> None:
    pause = backoff(attempt, draw)
    assert 0 <= pause <= LONGEST_DELAY
    assert backoff(attempt, 0.0) == 0.0
    assert backoff(1, draw) == draw * FIRST_DELAY
    assert backoff(attempt + 1, draw) in (LONGEST_DELAY * draw, 2 * pause)


# --- breaker -----------------------------------------------------------------------------------


def test_many_failures_of_one_machine_do_not_open_the_circuit() -> None:
    breaker = CircuitBreaker(FIVE)
    assert not any(breaker.record_failure("m", 100 + n / 10, 100 + n / 10) for n in range(1000))
    assert breaker.admit(201.0) == 0.0


def test_an_answer_restarts_the_count() -> None:
    breaker = CircuitBreaker(FIVE)
    for n in range(4):
        assert not breaker.record_failure(f"m{n}", 100.0, 100.1)
    breaker.record_answer(100.2, 100.3)
    for n in range(4):
        assert not breaker.record_failure(f"m{n}", 100.4, 100.5)
    assert breaker.record_failure("m4", 100.4, 100.5)


def test_failures_far_apart_do_not_open_the_circuit() -> None:
    breaker = CircuitBreaker(FIVE)
    assert not any(breaker.record_failure(f"m{n}", 3.0 * n, 3.0 * n) for n in range(100))


def test_an_open_circuit_admits_one_probe_per_interval() -> None:
    breaker = opened(100.0)
    assert breaker.admit(100.5) == 0.5
    assert breaker.admit(101.0) == 0.0
    assert breaker.admit(101.0) == 1.0
    assert breaker.admit(102.0) == 0.0
    summary = breaker.record_answer(102.0, 102.1)
    assert summary is not None
    assert (summary.probes, summary.rejected) == (2, 2)
    assert summary.silent_seconds == pytest.approx(2.1)
    assert breaker.admit(102.1) == 0.0
    assert not breaker.is_open


def test_an_answer_to_a_call_from_before_the_outage_does_not_close_the_circuit() -> None:
    """A wait that was sent before the outage may be answered in the middle of it."""
    breaker = opened(100.0)
    assert breaker.record_answer(99.9, 100.5) is None
    assert breaker.is_open
    # Nor does it clear the failures of calls that were sent after it.
    other = CircuitBreaker(FIVE)
    for n in range(4):
        other.record_failure(f"m{n}", 100.0, 100.1)
    other.record_answer(99.0, 100.2)
    assert other.record_failure("m4", 100.0, 100.3)


def test_a_failure_of_a_call_from_before_the_last_answer_does_not_count() -> None:
    """The timeouts of an outage arrive when the outage is long over."""
    breaker = CircuitBreaker(FIVE)
    breaker.record_answer(120.0, 120.1)
    assert not any(breaker.record_failure(f"m{n}", 100.0, 130.0) for n in range(60))


@given(st.floats(0, 10_000), st.floats(0.001, 20))
def test_a_long_outage_costs_few_probes(lasts: float, call_interval: float) -> None:
    """At most one a second in the first seconds, then less and less, down to one in ten seconds."""
    breaker, began = opened(0.0), 0.0
    lasts = min(lasts, 2000 * call_interval)
    now, probes = 0.0, []
    while now <= lasts:
        if breaker.admit(now) == 0.0:
            probes.append(now)
            breaker.record_failure("m", now, now)
        now += call_interval
    for one, other in itertools.pairwise(probes):
        assert other - one >= FIVE.probe_interval(one - began) - 1e-6
    assert len(probes) <= 4 + 12 + lasts / FIVE.longest_interval


MOVES = st.lists(
    st.tuples(
        st.sampled_from(["admit", "failed", "answered"]),
        st.integers(0, 7),
        st.floats(0, 30),
        st.floats(0, 40),
    ),
    max_size=80,
)


@given(MOVES)
def test_the_circuit_can_always_close_again(moves: list[tuple[str, int, float, float]]) -> None:
    """After any history, an answered probe closes the circuit."""
    breaker, now = CircuitBreaker(FIVE), 0.0
    for move, machine, pause, age in moves:
        now += pause
        match move:
            case "admit":
                delay = breaker.admit(now)
                assert 0 <= delay <= FIVE.longest_interval
                assert not delay or breaker.is_open
            case "failed":
                breaker.record_failure(f"m{machine}", now - age, now)
            case _:
                breaker.record_answer(now - age, now)
    now += FIVE.longest_interval
    assert breaker.admit(now) == 0.0
    breaker.record_answer(now, now)
    assert not breaker.is_open
    assert breaker.is_idle(now)


def test_probes_come_often_enough_for_a_caller_that_tolerates_an_outage() -> None:
    """A caller that tolerates 5 s without an answer must learn of the end of an outage in time."""
    breaker, patience = opened(0.0), OUTAGE_SECONDS
    probes = [t / 100 for t in range(int(patience * 100)) if breaker.admit(t / 100) == 0.0]
    gaps = [later - sooner for sooner, later in itertools.pairwise([0.0, *probes])]
    assert max(gaps) <= 1.3
    assert FIVE.probe_interval(patience) <= 1.3


def test_an_outage_begins_when_the_circuit_saw_it_begin() -> None:
    outage = OutageTimer()
    assert not outage.expired(ProviderUnavailable("503"))
    assert not outage.expired(CircuitOpen("", silent_seconds=4.0, retry_after=1.0))
    assert outage.expired(CircuitOpen("", silent_seconds=5.1, retry_after=1.0))
    assert outage.expired(ProviderUnavailable("503"))
    outage.reset()
    assert not outage.expired(ProviderUnavailable("503"))


# --- app health --------------------------------------------------------------------------------


def opened_by(record: Callable[[AppHealthRegistry, int], None], now: float) -> bool:
    """Whether fifty such records at `now` open the circuit."""
    health = AppHealthRegistry(settings=FIVE)
    for n in range(50):
        record(health, n)
    try:
        health.check(get("other"), now)
    except CircuitOpen:
        return True
    return False


def long(action: str, n: int) -> Call:
    path = f"apps/birds/machines/m{n}/{action}"
    return Call(action, f"m{n}", "POST", path, long=True)


def test_timeouts_count_if_they_were_long_enough() -> None:
    soon = 100.0 + MEANINGFUL_TIMEOUT
    assert opened_by(lambda w, n: w.record_timeout(get(f"m{n}"), 100.0, soon), soon)
    assert not opened_by(lambda w, n: w.record_timeout(get(f"m{n}"), 100.0, 100.3), 100.3)
    assert not opened_by(lambda w, n: w.record_timeout(long("wait", n), 100.0, 130.0), 130.0)


def test_failures_of_execs_do_not_count() -> None:
    assert not opened_by(lambda w, n: w.record_failure(long("exec", n), 100.0, 100.1), 100.1)
    assert opened_by(lambda w, n: w.record_failure(long("wait", n), 100.0, 100.1), 100.1)


def test_apps_are_independent_and_idle_ones_are_dropped() -> None:
    health = AppHealthRegistry(settings=FIVE)
    for n in range(10):
        health.record_failure(get(f"m{n}", "birds"), 100.0, 100.1)
    with pytest.raises(CircuitOpen) as rejected:
        health.admit(get("m", "birds"), 100.2)
    left = 1.0 - 0.1
    assert left <= rejected.value.retry_after <= left + RETRY_SPREAD
    health.admit(get("m", "fish"), 100.2)
    for number in range(3 * DROP_IDLE_ABOVE):
        health.admit(get("m", f"app{number}"), 100.3)
    assert len(health) <= DROP_IDLE_ABOVE + 1
    with pytest.raises(CircuitOpen):
        health.admit(get("m", "birds"), 100.4)


def test_an_open_circuit_is_never_not_found() -> None:
    """Callers take NOT_FOUND as evidence of loss, so CircuitOpen must not be a kind of it."""
    assert not issubclass(CircuitOpen, ContainerNotFound | OutcomeUnknown)
    assert (
        ContainerState.DESTROYED
        not in vars(CircuitOpen("", silent_seconds=1, retry_after=1)).values()
    )
