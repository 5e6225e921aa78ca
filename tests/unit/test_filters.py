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
        (
            Comparison("project_id", "=", 'a "b"'),
            Comparison("state", "=", "ACTIVE"),
            Comparison("live", "=", True),
            Comparison("create_time", ">=", datetime(2026, 1, 31, tzinfo=UTC)),
        ),
    )
    assert parse("  ") == ((),)


def users(text: str) -> list[str]:
    """The values of each alternative, joined."""
    return ["".join(str(item.value) for item in each) for each in parse(text)]


def test_or_binds_tighter_than_and_as_in_aip_160() -> None:
    """Parentheses group; equal comparisons of an alternative count once."""
    u = "user_id"
    assert users(f"{u} = a OR {u} = b OR {u}=c") == ["a", "b", "c"]
    assert users(f"{u} = a AND {u} = b OR {u} = c") == ["ab", "ac"]
    assert users(f"({u} = a AND {u} = b) OR {u} = c") == ["ab", "c"]
    assert users(f"({u}=a OR {u}=b) AND ({u}=c OR {u}=d)") == ["ac", "ad", "bc", "bd"]
    assert users(f"(({u} = a)) AND {u} = a") == ["a"]
    assert users(f'{u} = "x OR y" AND {u} = ORT') == ["x OR yORT"]


def test_the_alternatives_are_limited() -> None:
    """An AND of ORs has the product of theirs; the error says what counts."""
    ten = " OR ".join(f"user_id = u{number}" for number in range(10))
    assert len(parse(ten)) == 10
    for text in (
        f"{ten} OR user_id = v",
        f"{ten} AND slot = a OR slot = b",
        "(" * 11 + "slot = a" + ")" * 11,
    ):
        with pytest.raises(BadFilter, match=r"at most 10 alternatives|deeper than 10"):
            parse(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("colour = red", "no field colour"),
        ("colour < 3", "no field colour"),
        ("project_id > a", "by = only"),
        ("state = SLEEPING", "knows the states"),
        ("live = maybe", "true or false"),
        ("create_time > yesterday", "needs a time"),
        ("create_time > 2026-01-31", "time zone"),
        ("project_id = a user_id = b", "no AND or OR"),
        ("project_id = a OR", "no comparison"),
        ("(project_id = a", "no closing parenthesis"),
        ("project_id = a)", "no AND or OR"),
        ("()", "no comparison"),
        ("project_id", "no comparison"),
        ("project_id = a AND", "no comparison"),
        ('project_id = "' + "a" * 2000 + '"', "at most"),
    ],
)
def test_an_unreadable_filter_fails_with_the_supported_forms(text: str, says: str) -> None:
    """The error gives the position and the supported forms."""
    with pytest.raises(BadFilter, match=says):
        parse(text)


@given(st.text(max_size=200))
def test_any_text_is_parsed_or_rejected(text: str) -> None:
    """No other error is raised."""
    with suppress(BadFilter):
        parse(text)
