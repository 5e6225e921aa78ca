"""The mutants: for each rule that always holds one fault, and the test that must fail with it.

A mutant is a file `rule_NN.toml`: the number of the rule, the fault in one sentence, the test, and
one or more edits. An edit replaces an anchor: a fragment of code that occurs exactly once in the
code of both services, in any file. So a mutant still works after modules move. If an anchor no
longer exists, `tests/unit/test_mutants.py` fails: then write the same fault into the current code.

The file also lists the code that holds the rule (`holds`, as `module:symbol`) and the tests that
attack it (`attacked_by`). `tools/rules.py` makes docs/rules.md of them.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
SERVICES = ("session_service", "container_service")


class AnchorLost(Exception):
    """An anchor does not occur exactly once."""


@dataclass(frozen=True)
class Edit:
    """A fragment of code, and its replacement."""

    anchor: str
    replacement: str

    def place(self, root: Path) -> Path:
        """The file below `root` that has the anchor. Raises AnchorLost."""
        found = [
            path
            for service in SERVICES
            for path in sorted((root / service).rglob("*.py"))
            for _ in range(path.read_text().count(self.anchor))
        ]
        if len(found) != 1:
            where = ", ".join(str(path.relative_to(root)) for path in found) or "nowhere"
            raise AnchorLost(f"{self.anchor.strip()!r} occurs {len(found)} times: {where}")
        return found[0]


@dataclass(frozen=True)
class Mutant:
    """A fault that breaks a rule."""

    rule: int
    wrong: str
    test: str
    edits: tuple[Edit, ...]
    source: Path
    """The file that describes it."""
    holds: tuple[str, ...]
    """The code that holds the rule, each as `module:symbol`; the fault is in one of them."""
    attacked_by: tuple[str, ...]
    """The tests that attack the rule, each as a node id without parameters."""

    def applied(self, root: Path) -> dict[Path, str]:
        """The text with the fault, of each file below `root` that changes. Raises AnchorLost."""
        texts: dict[Path, str] = {}
        for edit in self.edits:
            path = edit.place(root)
            text = texts.get(path, path.read_text())
            texts[path] = text.replace(edit.anchor, edit.replacement)
        return texts


def load(folder: Path = FOLDER) -> list[Mutant]:
    """Every mutant of the folder, in the order of the rules."""
    return [_read(path) for path in sorted(folder.glob("*.toml"))]


def _read(path: Path) -> Mutant:
    given = tomllib.loads(path.read_text())
    edits = tuple(Edit(each["anchor"], each["replacement"]) for each in given["edit"])
    holds, attacked_by = tuple(given.get("holds", ())), tuple(given.get("attacked_by", ()))
    return Mutant(given["rule"], given["wrong"], given["test"], edits, path, holds, attacked_by)
