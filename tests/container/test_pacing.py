"""The token buckets, by arithmetic: no clock runs here."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from container_service.fly.pacing import DEFAULT_RATE, GET_RATE, JITTER_SECONDS, SWEEP_ABOVE, Pacing


def test_a_rested_action_has_its_burst_and_then_one_a_second() -> None:
    pacing = Pacing()
    delays = [pacing.reserve("start", "m", 100.0, 10.0) for _ in range(5)]
    assert delays == [0.0, 0.0, 0.0, 1.0 + JITTER_SECONDS, 2.0 + JITTER_SECONDS]


def test_reading_a_machine_is_faster() -> None:
    pacing = Pacing()
    delays = [pacing.reserve("get", "m", 100.0, 10.0) for _ in range(12)]
    assert delays[:10] == [0.0] * 10
    assert delays[10:] == [pytest.approx(due + JITTER_SECONDS) for due in (0.2, 0.4)]


def test_actions_and_subjects_do_not_share() -> None:
    pacing = Pacing()
    for _ in range(3):
        pacing.reserve("start", "m", 100.0, 10.0)
    assert pacing.reserve("stop", "m", 100.0, 10.0) == 0.0
    assert pacing.reserve("start", "n", 100.0, 10.0) == 0.0


def test_beyond_the_patience_nothing_is_taken() -> None:
    pacing = Pacing()
    for _ in range(3):
        pacing.reserve("start", "m", 100.0, 10.0)
    assert pacing.reserve("start", "m", 100.0, 1.0) is None
    assert pacing.reserve("start", "m", 100.0, 1.1) == 1.0 + JITTER_SECONDS


def test_who_has_no_patience_learns_when_to_come_back() -> None:
    pacing = Pacing()
    for _ in range(5):
        pacing.reserve("create", "birds", 100.0, 10.0)
    assert pacing.reserve("create", "birds", 100.0, 1.0) is None
    assert pacing.due("create", "birds", 100.0) == 3.0
    assert pacing.due("create", "fish", 100.0) == 0.0


def test_a_refusal_empties_the_bucket() -> None:
    pacing = Pacing()
    assert pacing.reserve("start", "m", 100.0, 10.0) == 0.0
    assert pacing.refused("start", "m", 100.0) == 1.0
    assert pacing.reserve("start", "m", 100.0, 10.0) == 1.0 + JITTER_SECONDS


def test_a_share_is_slower_but_never_still() -> None:
    pacing = Pacing(share=0.25)
    delays = [pacing.reserve("start", "m", 100.0, 99.0) for _ in range(3)]
    assert delays == [0.0, 4.0 + JITTER_SECONDS, 8.0 + JITTER_SECONDS]


def test_idle_buckets_are_dropped() -> None:
    pacing = Pacing()
    for number in range(10 * SWEEP_ABOVE):
        # One machine after another, a minute apart: each rests for good.
        pacing.reserve("start", f"m{number}", 60.0 * number, 1.0)
    assert len(pacing) <= SWEEP_ABOVE + 1


@given(st.lists(st.floats(0, 3), max_size=60), st.sampled_from(["get", "start"]))
def test_never_faster_than_the_rate(pauses: list[float], action: str) -> None:
    """In any span of time there are at most the burst and what came in since."""
    rate = GET_RATE if action == "get" else DEFAULT_RATE
    pacing, now, sent = Pacing(), 0.0, []
    for wait in pauses:
        now += wait
        delay = pacing.reserve(action, "m", now, 1e9)
        assert delay is not None
        sent.append(now + delay)
    assert sent == sorted(sent)
    for first, begin in enumerate(sent):
        for last in range(first, len(sent)):
            allowed = rate.burst + (sent[last] - begin) * rate.per_second
            assert last - first + 1 <= allowed + 1e-6
