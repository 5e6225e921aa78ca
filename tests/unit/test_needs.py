"""Tests that need a program ask `needs` for it, and a missing one skips them with the way out."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.needs import needs

TESTS = Path(__file__).parents[1]
MODULES = sorted(path for path in TESTS.rglob("*.py") if path != TESTS / "needs.py")


def looks_for_programs(source: str) -> list[str]:
    """The lines that look for a program by themselves."""
    return [
        ast.unparse(node)
        for node in ast.walk(ast.parse(source))
        if (isinstance(node, ast.Attribute) and node.attr == "which")
        or (isinstance(node, ast.ImportFrom) and any(a.name == "which" for a in node.names))
    ]


def test_no_test_looks_for_a_program_by_itself() -> None:
    found = {path: looks_for_programs(path.read_text()) for path in MODULES}
    assert {path: lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "source", ["import shutil\nshutil.which('nginx')", "from shutil import which"]
)
def test_a_search_is_found(source: str) -> None:
    assert looks_for_programs(source)


def test_a_program_that_is_there_is_returned() -> None:
    assert Path(needs("unshare")).name == "unshare"


def test_a_missing_program_skips_the_test_and_names_the_target(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tools.fetch.SBIN", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(pytest.skip.Exception, match=r"no haproxy .*`make tools` fetches it"):
        needs("haproxy")


def test_a_program_that_is_not_in_the_table_is_an_error() -> None:
    with pytest.raises(KeyError):
        needs("emacs")
