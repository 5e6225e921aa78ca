"""Write docs/rules.md, or with --check say what is wrong with it (exit 1): `python -m tools.rules`.

The text of each rule is that of ARCHITECTURE.md. The files of tests/mutants say where the code
holds it, which tests attack it, and with which fault a test must fail. Each name is looked up in
the sources: a symbol or test that does not exist is an error that names the rule.
"""

from __future__ import annotations

import argparse
import ast
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from tests.mutants.catalogue import Mutant, load

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

ROOT = Path(__file__).resolve().parent.parent
PAGE = Path("docs/rules.md")
HEADING = "## Rules that always hold"
INTRODUCTION = """\
# The rules, and what shows that they hold

<!-- Made by `make rules`: edit ARCHITECTURE.md and tests/mutants/*.toml instead. -->

The rules are those of [ARCHITECTURE](../ARCHITECTURE.md#rules-that-always-hold). Each is followed
by the code that holds it, the tests that attack it, and a fault that breaks it. `make mutants`
writes each fault into a copy of the code, and checks that the test which is named beside it fails
there and passes without it.
"""


class NotFound(Exception):
    """A file, symbol or test does not exist; the message ends a sentence."""


@dataclass(frozen=True)
class Place:
    """Where a symbol is defined."""

    path: Path
    """Relative to the root."""
    name: str
    lines: range


def rules_of(text: str) -> dict[int, str]:
    """The numbered rules of ARCHITECTURE.md, each as one line."""
    section = text.partition(f"\n{HEADING}\n")[2].partition("\n## ")[0]
    items = re.findall(r"^(\d+)\. (.*(?:\n {3}.*)*)", section, re.MULTILINE)
    return {int(number): " ".join(rule.split()) for number, rule in items}


def find_symbol(root: Path, named: str) -> Place:
    """The place of a `module:symbol`; the symbol may be a member of a class. Raises NotFound."""
    module, _, name = named.partition(":")
    path = Path(*module.split(".")).with_suffix(".py")
    if not name:
        raise NotFound(f"`{named}` is not of the form module:symbol")
    if not (root / path).is_file():
        raise NotFound(f"there is no file {path}")
    nodes: Sequence[ast.stmt] = _parsed((root / path).resolve()).body
    found = None
    for part in name.split("."):
        found = next((node for node in nodes if part in _defined(node)), None)
        if found is None:
            raise NotFound(f"{path} has no `{name}`")
        nodes = found.body if isinstance(found, ast.ClassDef) else ()
    assert found is not None, "a name has a part"
    return Place(path, name, range(found.lineno, (found.end_lineno or found.lineno) + 1))


def find_test(root: Path, node_id: str) -> Place:
    """The place of a test, whose parameters are ignored. Raises NotFound."""
    file, _, name = node_id.partition("::")
    place = find_symbol(root, f"{file.removesuffix('.py').replace('/', '.')}:{_bare(name)}")
    if not name.startswith("test_"):
        raise NotFound(f"`{name}` is no test")
    return place


@cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def _defined(node: ast.stmt) -> list[str]:
    """The names that a statement defines."""
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return [name]
        case ast.Assign(targets=targets):
            return [target.id for target in targets if isinstance(target, ast.Name)]
        case ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
        case _:
            return []


def _bare(test: str) -> str:
    """A test's name without its parameters."""
    return test.partition("[")[0]


def problems(root: Path, rules: Mapping[int, str], mutants: Sequence[Mutant]) -> Iterator[str]:
    """Each thing that is wrong, as a sentence that begins with the rule."""
    for number in sorted(set(rules) - {mutant.rule for mutant in mutants}):
        yield f"rule {number}: no file of tests/mutants is about it"
    for mutant in mutants:
        for problem in _problems_of(root, rules, mutant):
            yield f"rule {mutant.rule}: {mutant.source.name}: {problem}"


def _problems_of(root: Path, rules: Mapping[int, str], mutant: Mutant) -> Iterator[str]:
    if mutant.rule not in rules:
        yield "ARCHITECTURE.md has no such rule"
    if not mutant.holds:
        yield "`holds` names no code that holds the rule"
    if _bare(mutant.test) not in mutant.attacked_by:
        yield f"`attacked_by` lacks the test that must fail, {_bare(mutant.test)}"
    held: list[Place] = []
    for named in mutant.holds:
        try:
            held.append(find_symbol(root, named))
        except NotFound as error:
            yield f"`holds` names {named}, but {error}"
    for test in (*mutant.attacked_by, mutant.test):
        try:
            find_test(root, test)
        except NotFound as error:
            yield f"it names the test {test}, but {error}"
    for edit in mutant.edits:
        if not any(_within(root, place, edit.anchor) for place in held):
            yield f"the fault {edit.anchor.strip()!r} is in nothing that `holds` names"


def _within(root: Path, place: Place, anchor: str) -> bool:
    """Whether the anchor begins within the place."""
    before, found, _ = (root / place.path).read_text().partition(anchor)
    blank = len(anchor) - len(anchor.lstrip("\n"))
    return bool(found) and before.count("\n") + blank + 1 in place.lines


def render(root: Path, rules: Mapping[int, str], mutants: Sequence[Mutant]) -> str:
    """The page. Raises NotFound."""
    parts = [INTRODUCTION]
    for number, rule in sorted(rules.items()):
        mine = [mutant for mutant in mutants if mutant.rule == number]
        held = [find_symbol(root, n) for n in _each_once(m.holds for m in mine)]
        tests = [find_test(root, t) for t in _each_once(m.attacked_by for m in mine)]
        lines = [f"## Rule {number}", "", f"> {rule}", "", "Held by", ""]
        lines += [f"- {_link(place)}" for place in held]
        lines += ["", "Attacked by", ""]
        lines += [f"- {_link(place)}" for place in tests]
        for mutant in mine:
            link = f"[{mutant.source.name}](../{mutant.source.relative_to(root)})"
            name = mutant.test.partition("::")[2]
            lines += ["", f"With the fault of {link}, `{name}` fails:", "", f"> {mutant.wrong}"]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _each_once(lists: Iterator[tuple[str, ...]]) -> list[str]:
    return list(dict.fromkeys(name for names in lists for name in names))


def _link(place: Place) -> str:
    return f"`{place.name}` in [{place.path}](../{place.path})"


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Write the page, or check it. The exit status is 1 if a name is wrong or the page is stale."""
    parser = argparse.ArgumentParser(prog="python -m tools.rules", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check: bool = parser.parse_args(argv).check
    rules = rules_of((root / "ARCHITECTURE.md").read_text())
    mutants = load(root / "tests" / "mutants")
    wrong = list(problems(root, rules, mutants))
    for problem in wrong:
        print(problem)
    if wrong:
        return 1
    text, page = render(root, rules, mutants), root / PAGE
    if not check:
        page.write_text(text)
    elif not page.is_file() or page.read_text() != text:
        print(f"stale: {PAGE} (run `make rules`)")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
