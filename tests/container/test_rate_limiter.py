"""The token buckets, with `now` as an argument."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from container_service.fly.rate_limiter import (
    DEFAULT_RATE,
    DROP_FULL_ABOVE,
    GET_RATE,
    JITTER_SECONDS,
    RateLimiter,
)


def test_a_new_bucket_has_its_burst_and_then_one_call_a_second() -> None:
    limiter = RateLimiter()
    delays = [limiter.reserve("start", "m", 100.0, 10.0) for _ in range(5)]
    assert delays == [0.0, 0.0, 0.0, 1.0 + JITTER_SECONDS, 2.0 + JITTER_SECONDS]


def test_reads_of_a_machine_have_a_higher_rate() -> None:
    limiter = RateLimiter()
    delays = [limiter.reserve("get", "m", 100.0, 10.0) for _ in range(12)]
    assert delays[:10] == [0.0] * 10
    assert delays[10:] == [pytest.approx(due + JITTER_SECONDS) for due in (0.2, 0.4)]


def test_actions_and_subjects_have_separate_buckets() -> None:
    limiter = RateLimiter()
    for _ in range(3):
        limiter.reserve("start", "m", 100.0, 10.0)
    assert limiter.reserve("stop", "m", 100.0, 10.0) == 0.0
    assert limiter.reserve("start", "n", 100.0, 10.0) == 0.0


def test_a_call_that_would_wait_too_long_takes_no_token() -> None:
    limiter = RateLimiter()
    for _ in range(3):
        limiter.reserve("start", "m", 100.0, 10.0)
    assert limiter.reserve("start", "m", 100.0, 1.0) is None
    assert limiter.reserve("start", "m", 100.0, 1.1) == 1.0 + JITTER_SECONDS


def test_the_delay_until_the_next_call_can_be_read() -> None:
    limiter = RateLimiter()
    for _ in range(5):
        limiter.reserve("create", "birds", 100.0, 10.0)
    assert limiter.reserve("create", "birds", 100.0, 1.0) is None
    assert limiter.delay("create", "birds", 100.0) == 3.0
    assert limiter.delay("create", "fish", 100.0) == 0.0


def test_a_rejection_drains_the_bucket() -> None:
    limiter = RateLimiter()
    assert limiter.reserve("start", "m", 100.0, 10.0) == 0.0
    assert limiter.record_rejection("start", "m", 100.0) == 1.0
    assert limiter.reserve("start", "m", 100.0, 10.0) == 1.0 + JITTER_SECONDS


def test_a_share_has_a_lower_rate_and_a_burst_of_at_least_one() -> None:
    limiter = RateLimiter(share=0.25)
    delays = [limiter.reserve("start", "m", 100.0, 99.0) for _ in range(3)]
    assert delays == [0.0, 4.0 + JITTER_SECONDS, 8.0 + JITTER_SECONDS]


def test_full_buckets_are_dropped() -> None:
    limiter = RateLimiter()
    for number in range(10 * DROP_FULL_ABOVE):
        # One machine after another, a minute apart, and never used again.
        limiter.reserve("start", f"m{number}", 60.0 * number, 1.0)
    assert len(limiter) <= DROP_FULL_ABOVE + 1


@given(st.lists(st.floats(0, 3), max_size=60), st.sampled_from(["get", "start"]))
def test_calls_never_exceed_the_rate(pauses: list[float], action: str) -> None:
    """In any interval there are at most the burst and the tokens of the interval."""
    rate = GET_RATE if action == "get" else DEFAULT_RATE
    limiter, now, sent = RateLimiter(), 0.0, []
    for wait in pauses:
        now += wait
        delay = limiter.reserve(action, "m", now, 1e9)
        assert delay is not None
        sent.append(now + delay)
    assert sent == sorted(sent)
    for first, begin in enumerate(sent):
        for last in range(first, len(sent)):
            allowed = rate.burst + (sent[last] - begin) * rate.per_second
            assert last - first + 1 <= allowed + 1e-6
