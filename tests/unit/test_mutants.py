"""The mutants of `make mutants` still fit the code: a quick test that each anchor is found."""

from __future__ import annotations

import ast

import pytest

from tests.mutants.catalogue import FOLDER, Mutant, load

ROOT = FOLDER.parent.parent
MUTANTS = load()


def test_each_rule_has_its_mutant() -> None:
    assert [mutant.rule for mutant in MUTANTS] == list(range(1, 15))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"rule_{mutant.rule}")
def test_a_mutant_fits_the_code(mutant: Mutant) -> None:
    """Each anchor occurs exactly once, the mutant is valid Python, and its test exists."""
    for path, text in mutant.applied(ROOT).items():
        assert text != path.read_text()
        compile(text, str(path), "exec")
    file, _, name = mutant.test.partition("::")
    tree = ast.parse((ROOT / file).read_text())
    functions = ast.FunctionDef | ast.AsyncFunctionDef
    names = {node.name for node in ast.walk(tree) if isinstance(node, functions)}
    assert name.partition("[")[0] in names
