"""The list of skipped tests at the end of a run of the continuous integration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tools.skipped import main

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def case(classname: str, name: str, outcome: str = "") -> str:
    """A test case as pytest reports it."""
    return f'<testcase classname="{classname}" name="{name}">{outcome}</testcase>'


NO_GHZ = '<skipped type="pytest.skip" message="no ghz"/>'
CASES = (
    case("tests.a", "test_passed"),
    case("tests.a", "test_two", NO_GHZ),
    case("tests.a", "test_one", NO_GHZ),
    case("tests.b", "test_x", '<skipped type="pytest.xfail" message="known"/>'),
    case("", "tests.c", '<skipped type="pytest.skip" message="no go"/>'),
)


def test_skipped_tests_are_listed_by_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tests.xml").write_text(f"<testsuites>{''.join(CASES)}</testsuites>")
    assert main([str(tmp_path / "tests.xml")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "Skipped tests: 3",
        "  no ghz",
        "    tests.a.test_one",
        "    tests.a.test_two",
        "  no go",
        "    tests.c",
    ]


def test_a_run_that_broke_off_before_the_tests_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "tests.xml")]) == 1
    assert capsys.readouterr().out.endswith("No test ran.\n")
