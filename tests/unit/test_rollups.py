"""Statistics from pieces: how a span is divided, and percentiles of histograms."""

from __future__ import annotations

import math
import random
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from session_service.domain.histogram import BITS, DIGITS, GROWTH, Histogram, rank
from session_service.domain.rollups import DAY, HOUR, Progress, Tally, day_of, hour_of, pieces
from session_service.domain.stats import Latency

START = datetime(2026, 11, 1, tzinfo=UTC)
ROLLED_UP = Progress(START, START + 9 * DAY + 5 * HOUR, START + 9 * DAY)


def histogram(values: list[int]) -> Histogram:
    """The histogram of these microseconds, in the form in which PostgreSQL makes it."""
    buckets = [math.ceil(math.log(max(value, 1)) / math.log(GROWTH)) for value in values]
    lowest, highest = min(buckets), max(buckets)
    digits = [f"{buckets.count(bucket):0{DIGITS}x}" for bucket in range(highest, lowest - 1, -1)]
    return Histogram.of(lowest, "".join(digits))


@pytest.mark.parametrize("seed", range(20))
def test_percentiles_of_added_histograms_are_within_one_percent(seed: int) -> None:
    """However the values are spread over the parts."""
    dice = random.Random(seed)
    parts = [
        [int(dice.lognormvariate(12, 2)) for _ in range(dice.randrange(1, 300))]
        for _ in range(dice.randrange(1, 6))
    ]
    total = Histogram()
    for part in parts:
        total += histogram(part)
    values = sorted(value for part in parts for value in part)
    found = total.percentiles(0.5, 0.95, 0.99)
    for share, took in zip((0.5, 0.95, 0.99), found, strict=True):
        exact = values[rank(len(values), share) - 1]
        assert took / timedelta(microseconds=1) == pytest.approx(exact, rel=0.01, abs=1)


def test_an_empty_histogram_has_no_percentiles() -> None:
    assert Histogram().percentiles(0.5) == []


def test_a_bucket_counts_as_far_as_its_digits_reach() -> None:
    """No carry into the next bucket."""
    most = Histogram.of(3, "f" * DIGITS)
    assert most.percentiles(1.0) == Histogram.of(3, "1".rjust(DIGITS, "0")).percentiles(1.0)
    assert most.counts.bit_length() == 4 * BITS


def test_the_percentiles_of_one_piece_are_its_own() -> None:
    """Those of two come from their histograms."""
    latency = Latency(*(timedelta(microseconds=number) for number in (1000, 2000, 3000)))
    tally = Tally()
    tally.add(3, latency)
    tally.add_histogram(histogram([1000, 2000, 3000]))
    assert tally.started().latency == latency
    tally.add(1, latency)
    tally.add_histogram(histogram([9000]))
    found = tally.started()
    assert found.count == 4
    assert found.latency is not None
    assert found.latency.p99 / timedelta(microseconds=9000) == pytest.approx(1, rel=0.01)


def test_a_span_is_days_then_hours_then_rows() -> None:
    """From the middle of an hour to after what was rolled up."""
    start = START + timedelta(hours=22, minutes=30)
    found = pieces(start, START + 9 * DAY + 6 * HOUR, ROLLED_UP)
    assert found.days == [START + n * DAY for n in range(1, 9)]
    assert found.hours == [START + 23 * HOUR, *(START + 9 * DAY + n * HOUR for n in range(5))]
    assert found.rest == [
        (start, START + 23 * HOUR),
        (START + 9 * DAY + 5 * HOUR, START + 9 * DAY + 6 * HOUR),
    ]


def test_what_changed_is_counted_from_its_rows() -> None:
    """A late hour leaves the other hours of its day; a late day its hours."""
    late = START + 2 * DAY + 3 * HOUR
    progress = Progress(
        ROLLED_UP.start,
        ROLLED_UP.hours_end,
        ROLLED_UP.days_end,
        frozenset({late}),
        frozenset({START + 4 * DAY}),
    )
    found = pieces(START, START + 5 * DAY, progress)
    assert found.days == [START, START + DAY, START + 3 * DAY]
    assert found.rest == [(late, late + HOUR)]
    assert len(found.hours) == 23 + 24


@pytest.mark.parametrize("progress", [Progress(), Progress(START, START, START)])
def test_without_roll_ups_a_span_is_one_range(progress: Progress) -> None:
    span = (START - 200 * DAY, START + 100 * DAY)
    found = pieces(*span, progress)
    assert (found.days, found.hours) == ([], [])
    assert found.rest == [span] or found.rest == [(span[0], START), (START, span[1])]


@pytest.mark.parametrize("seed", range(50))
def test_the_pieces_cover_any_span_once(seed: int) -> None:
    """In order, and only with roll-ups that can be used."""
    dice = random.Random(seed)

    def moment() -> datetime:
        return START + timedelta(minutes=dice.randrange(-3000, 20_000))

    hours_end = hour_of(moment())
    progress = Progress(
        START,
        max(START, hours_end),
        max(START, day_of(hours_end)) if dice.random() < 0.8 else START,
        frozenset(hour_of(moment()) for _ in range(dice.randrange(4))),
        frozenset(day_of(moment()) for _ in range(dice.randrange(3))),
    )
    start, end = sorted((moment(), moment()))
    end += timedelta(minutes=1)
    found = pieces(start, end, progress)
    assert all(progress.has_day(day) for day in found.days)
    assert all(progress.has_hour(hour) for hour in found.hours)
    every = sorted(
        [(day, day + DAY) for day in found.days]
        + [(hour, hour + HOUR) for hour in found.hours]
        + found.rest
    )
    assert every[0][0] == start
    assert every[-1][1] == end
    assert all(one[1] == other[0] for one, other in pairwise(every))
