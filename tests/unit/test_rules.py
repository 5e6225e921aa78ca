"""docs/rules.md is what `make rules` writes, and each name in it exists."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tools.rules import PAGE, ROOT, find_symbol, main, rules_of

if TYPE_CHECKING:
    from pathlib import Path

TOML = "tests/mutants/rule_13.toml"
HOLDS = "session_service.dispatch.call:Driver._finish"
ATTACK = "tests/session/test_joining.py::test_a_cancelled_call_does_not_undo_its_start"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A root whose documents and mutants can be changed; its code is this project's."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "docs").mkdir()
    for name in ("session_service", "container_service"):
        (tmp_path / name).symlink_to(ROOT / name)
    for folder in (ROOT / "tests").iterdir():
        if folder.is_dir() and folder.name != "mutants":
            (tmp_path / "tests" / folder.name).symlink_to(folder)
    shutil.copytree(ROOT / "tests" / "mutants", tmp_path / "tests" / "mutants")
    for name in ("ARCHITECTURE.md", str(PAGE)):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def edited(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))


def test_the_page_is_the_one_that_is_written() -> None:
    assert main(["--check"]) == 0


def test_every_rule_is_read_whole() -> None:
    rules = rules_of((ROOT / "ARCHITECTURE.md").read_text())
    assert list(rules) == list(range(1, 15))
    assert all(rule.endswith(".") for rule in rules.values())


@pytest.mark.parametrize(
    ("file", "before", "after"),
    [
        ("ARCHITECTURE.md", "does not undo work in flight", "undoes its work in flight"),
        (TOML, "is cancelled with the call", "ends with the call"),
        (TOML, f'  "{ATTACK}",\n', ""),
        (str(PAGE), "## Rule 13", "## Rule thirteen"),
    ],
)
def test_a_stale_page_fails_the_check_until_it_is_written_again(
    tree: Path, capsys: pytest.CaptureFixture[str], file: str, before: str, after: str
) -> None:
    edited(tree / file, before, after)
    assert main(["--check"], tree) == 1
    assert capsys.readouterr().out == "stale: docs/rules.md (run `make rules`)\n"
    assert main([], tree) == 0
    assert main(["--check"], tree) == 0


def test_a_page_that_is_missing_fails_the_check(tree: Path) -> None:
    (tree / PAGE).unlink()
    assert main(["--check"], tree) == 1


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (HOLDS, "session_service.dispatch.calls:Driver._finish", "there is no file"),
        (HOLDS, "session_service.dispatch.call:Driver._finished", "has no `Driver._finished`"),
        (HOLDS, "session_service.dispatch.call", "is not of the form module:symbol"),
        (f'  "{HOLDS}",\n', "", "in nothing that `holds` names"),
        (ATTACK, ATTACK.replace("joining", "join"), "there is no file tests/session/test_join.py"),
        (ATTACK, ATTACK.replace("cancelled", "canceled"), "has no `test_a_canceled_call"),
        (ATTACK, "tests/session/harness.py::world", "`world` is no test"),
    ],
)
@pytest.mark.parametrize("arguments", [[], ["--check"]])
def test_a_name_that_does_not_exist_is_reported_with_its_rule(
    tree: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    before: str,
    after: str,
    said: str,
) -> None:
    """Nothing is written then."""
    page = (tree / PAGE).read_text()
    edited(tree / TOML, before, after)
    assert main(arguments, tree) == 1
    out = capsys.readouterr().out
    assert out.startswith("rule 13: rule_13.toml: ")
    assert said in out
    assert (tree / PAGE).read_text() == page


def test_a_rule_without_a_mutant_and_a_mutant_without_a_rule_are_reported(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edited(tree / TOML, "rule = 13", "rule = 15")
    assert main(["--check"], tree) == 1
    assert capsys.readouterr().out.splitlines() == [
        "rule 13: no file of tests/mutants is about it",
        "rule 15: rule_13.toml: ARCHITECTURE.md has no such rule",
    ]


def test_the_test_of_the_mutant_attacks_the_rule(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edited(tree / TOML, '  "tests/session/test_cancellation.py', '  "tests/session/test_gone.py')
    assert main(["--check"], tree) == 1
    assert "lacks the test that must fail" in capsys.readouterr().out


@pytest.mark.parametrize(
    "named",
    [
        "session_service.storage.session.decisions:_ID_KEPT",
        "session_service.storage.session.change:Change",
        "session_service.storage.session.change:Change.advance",
        "session_service.dispatch.call:Driver.run",
        "session_service.domain.ladder:decide",
    ],
)
def test_constants_classes_members_and_functions_are_found(named: str) -> None:
    place = find_symbol(ROOT, named)
    line = (ROOT / place.path).read_text().splitlines()[place.lines.start - 1]
    assert place.name.rpartition(".")[2] in line
