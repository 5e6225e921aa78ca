"""No test module uses a private (underscore) name of another test module.

Shared helpers belong in a harness module under a public name. Otherwise a change inside one test
module breaks another one, and neither shows it.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

TESTS = Path(__file__).parents[1]
MODULES = sorted(TESTS.rglob("*.py"))


def private(name: str) -> bool:
    """Whether the name begins with an underscore and is not a dunder."""
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def private_uses(source: str) -> Iterator[str]:
    """The private names of modules below `tests` that the source imports or reads."""
    tree = ast.parse(source)
    modules: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.level or is_of_tests(node.module or "")):
            module = node.module or "."
            for alias in node.names:
                if private(alias.name):
                    yield f"{module}.{alias.name}"
                modules[alias.asname or alias.name] = f"{module}.{alias.name}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if is_of_tests(alias.name):
                    modules[alias.asname or alias.name] = alias.name
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and private(node.attr):
            owner = ast.unparse(node.value)
            if owner in modules:
                yield f"{modules[owner]}.{node.attr}"


def is_of_tests(module: str) -> bool:
    """Whether it is a module of this package."""
    return module == "tests" or module.startswith("tests.")


def test_no_private_name_of_another_test_module_is_used() -> None:
    used = {path: list(private_uses(path.read_text())) for path in MODULES}
    assert {path: names for path, names in used.items() if names} == {}


@pytest.mark.parametrize(
    "source",
    [
        "from tests.session.harness import _secret",
        "from tests.session import harness as h\nh._secret()",
        "import tests.session.harness\ntests.session.harness._secret()",
        "if True:\n    from .harness import _secret",
    ],
)
def test_a_private_use_is_found(source: str) -> None:
    assert [use.rpartition(".")[2] for use in private_uses(source)] == ["_secret"]


@pytest.mark.parametrize(
    "source",
    [
        "from tests.session.harness import shared\nshared.value",
        "from session_service.failpoints import _Armed",
        "import tests.session.harness as h\nh.__doc__",
        "class Mine:\n    def go(self):\n        return self._own",
    ],
)
def test_other_uses_are_allowed(source: str) -> None:
    assert not list(private_uses(source))
