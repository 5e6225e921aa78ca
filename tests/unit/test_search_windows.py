"""The windows and spans by which a search reads the index back in time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from session_service.storage.agent.search_query import (
    LARGE,
    LAST_SECOND,
    NEWEST,
    SMALL,
    SPANS,
    conjuncts,
    spans,
    windows,
)

TURN_IDS = st.integers(0, 2**22)
SECONDS = st.integers(-(2**30), LAST_SECOND + 2**30)


@given(TURN_IDS, TURN_IDS)
def test_the_windows_are_the_turn_ids_newest_first(since: int, through: int) -> None:
    """Without a gap; none reaches beyond the turn_ids that have its key."""
    expected = through
    for count, window in enumerate(windows(since, through)):
        assert window.high == expected
        assert since <= window.low <= window.high
        assert window.low >> window.bits == window.high >> window.bits
        assert window.bits == (SMALL if count < NEWEST else LARGE)
        expected = window.low - 1
    assert expected == min(since - 1, through)


def test_a_search_of_millions_of_turns_has_few_windows() -> None:
    assert len(list(windows(0, 2_000_000))) <= NEWEST + (2_000_000 >> LARGE) + 1


def _time(second: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=second)


@given(SECONDS, SECONDS, st.data())
def test_spans_cover_a_time_and_little_more(start: int, end: int, data: st.DataObject) -> None:
    """A time within is in exactly one of them; each overlaps the time."""
    start, end = min(start, end), max(start, end)
    found = spans(_time(start), _time(end))
    assert len(found) <= 200
    low, high = (min(max(0, second), LAST_SECOND) for second in (start, end))
    for second in (low, high, data.draw(st.integers(low, high))):
        assert sum(second >> bits == number for bits, number in found) == 1
    for bits, number in found:
        assert number << bits <= high
        assert (number + 1) << bits > low >> SPANS[0] << SPANS[0]


def test_an_open_end_is_covered_to_the_last_second() -> None:
    found = spans(_time(1_000_000_000), None)
    assert sum(LAST_SECOND >> bits == number for bits, number in found) == 1
    found = spans(None, _time(1_000_000_000))
    assert sum(0 >> bits == number for bits, number in found) == 1


def test_a_time_that_ends_before_it_begins_has_no_span() -> None:
    assert spans(_time(2_000_000_000), _time(1_000_000_000)) == []


@pytest.mark.parametrize(
    ("tsquery", "parts"),
    [
        ("", [""]),
        ("'owl'", ["'owl'"]),
        ("'owl' & 'barn' & 'owl'", ["'owl'", "'barn'"]),
        ("'owl' <-> 'barn' & 'moon'", ["'owl' <-> 'barn'", "'moon'"]),
        ("'owl' & 'barn' | 'moon'", ["'owl' & 'barn' | 'moon'"]),
        ("!'owl' & 'barn' & 'moon'", ["'barn' & !'owl'", "'moon'"]),
        ("'moon' & !( 'owl' & 'barn' )", ["'moon' & !( 'owl' & 'barn' )"]),
        ("!'owl' & !'barn'", ["!'owl' & !'barn'"]),
        ("'a & b' & 'c'' | d' & 'e\\\\'", ["'a & b'", "'c'' | d'", "'e\\\\'"]),
        (" & ".join(f"'{n}'" for n in range(9)), [" & ".join(f"'{n}'" for n in range(9))]),
    ],
)
def test_a_query_is_taken_apart_where_all_parts_must_match(tsquery: str, parts: list[str]) -> None:
    assert conjuncts(tsquery) == parts
