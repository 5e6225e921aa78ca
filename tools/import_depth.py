"""The longest chain of imports inside a package, and its circles: `python -m tools.import_depth`.

Every import statement counts, wherever it stands: at the top, inside a function, or under
TYPE_CHECKING, since a reader follows types as well. Exits with 1 where modules import in a circle.
"""

from __future__ import annotations

import argparse
import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

ROOT = Path(__file__).parent.parent


def modules(package: str) -> dict[str, Path]:
    """The package's modules, by their names; a folder's `__init__` has the folder's name."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if "migrations" in parts:
            continue
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(name: str, path: Path, known: Mapping[str, Path]) -> Iterator[str]:
    """The package's modules that this one imports, types included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            wanted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = _above(name, path, node.level)
            base = ".".join(filter(None, (above, node.module)))
            # A name of a package is a module of it, or else something in its `__init__`.
            wanted = [
                inner if (inner := f"{base}.{alias.name}") in known else base
                for alias in node.names
            ]
        else:
            continue
        yield from (each for each in wanted if each in known and each != name)


def _above(name: str, path: Path, level: int) -> str:
    """The package that a relative import counts from; empty for an absolute one."""
    if not level:
        return ""
    parts = name.split(".")
    return ".".join(parts[: len(parts) - level + (path.name == "__init__.py")])


def graph(package: str) -> dict[str, set[str]]:
    """Each module with those that it imports."""
    known = modules(package)
    return {name: set(imported(name, path, known)) for name, path in known.items()}


def longest(edges: Mapping[str, set[str]]) -> list[str]:
    """The longest chain, importer first. Raises CycleError, which names one circle."""
    chains: dict[str, list[str]] = {}
    for name in TopologicalSorter(edges).static_order():
        below = max((chains[each] for each in sorted(edges[name])), key=len, default=[])
        chains[name] = [name, *below]
    return max(chains.values(), key=len, default=[])


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print."""
    parser = argparse.ArgumentParser(prog="python -m tools.import_depth", description=__doc__)
    parser.add_argument("package", nargs="?", default="session_service")
    package: str = parser.parse_args(argv).package
    edges = graph(package)
    try:
        chain = longest(edges)
    except CycleError as error:
        circle: list[str] = error.args[1]
        print("a circle: " + " -> ".join(reversed(circle)))
        return 1
    print(f"{package}: {len(edges)} modules, longest chain of imports {len(chain)}, no circle")
    for name in chain:
        print(f"  {name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
