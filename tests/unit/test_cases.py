"""Many cases in one test: each is tried, and each failure names its case."""

from __future__ import annotations

import pytest

from tests.cases import each


def test_every_case_is_tried_and_every_failure_named() -> None:
    tried: list[tuple[int, str]] = []

    @each("number, text", [(1, "a"), (2, "b"), (3, "c")])
    def odd(number: int, text: str, fixture: str) -> None:
        tried.append((number, text))
        assert fixture == "there"
        assert number != 2

    with pytest.raises(ExceptionGroup, match="1 of 3 cases failed") as failed:
        odd(fixture="there")
    assert tried == [(1, "a"), (2, "b"), (3, "c")]
    (failure,) = failed.value.exceptions
    assert failure.__notes__ == ["case: {'number': 2, 'text': 'b'}"]


@each("first", "ab")
@each("second", "cd")
async def test_cases_combine_and_fixtures_are_passed(
    first: str, second: str, request: pytest.FixtureRequest
) -> None:
    pairs = request.session.__dict__.setdefault("pairs", [])
    pairs.append(first + second)
    assert pairs == ["ac", "ad", "bc", "bd"][: len(pairs)]


def test_a_case_that_is_skipped_is_not_a_failure() -> None:
    @each("number", [1])
    def skipped(number: int) -> None:
        pytest.skip(str(number))

    with pytest.raises(pytest.skip.Exception):
        skipped()
