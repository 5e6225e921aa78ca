"""The filter of ListSessions."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from session_service.domain.filters import BadFilter, Comparison, parse


def test_comparisons_are_joined_by_and() -> None:
    """Text quoted or plain, states with or without their prefix, times with a zone."""
    found = parse(
        'project_id = "a \\"b\\"" AND state=STATE_ACTIVE AND live = true'
        ' AND create_time >= "2026-01-31T00:00:00Z"'
    )
    assert found == (
        Comparison("project_id", "=", 'a "b"'),
        Comparison("state", "=", "ACTIVE"),
        Comparison("live", "=", True),
        Comparison("create_time", ">=", datetime(2026, 1, 31, tzinfo=UTC)),
    )
    assert parse("  ") == ()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("colour = red", "no field colour"),
        ("project_id > a", "by = only"),
        ("state = SLEEPING", "knows the states"),
        ("live = maybe", "true or false"),
        ("create_time > yesterday", "needs a time"),
        ("create_time > 2026-01-31", "time zone"),
        ("project_id = a OR user_id = b", "no AND"),
        ("project_id", "no comparison"),
        ("project_id = a AND", "no comparison"),
        ('project_id = "' + "a" * 2000 + '"', "at most"),
    ],
)
def test_what_cannot_be_read_is_told_with_what_would_do(text: str, says: str) -> None:
    """The caller hears where, and what the filter can do."""
    with pytest.raises(BadFilter, match=says):
        parse(text)


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    """Nothing else comes of it."""
    with suppress(BadFilter):
        parse(text)
