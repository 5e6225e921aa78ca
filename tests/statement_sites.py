"""Finds every place of session_service that makes or sends an SQL statement, by its source.

A place is `MODULE:NAME`, without `session_service.`: the variable at the top of the module that the
statement is assigned to, or the function that makes it. `bench.million.listed` has each of them.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ROOT = Path(__file__).parents[1] / "session_service"
#: What makes a statement.
MAKERS = frozenset({"compiled", "trimming", "Statement", "_Compiled"})
#: Methods of a connection or cursor that send one.
SENDERS = frozenset({"execute", "executemany", "stream", "copy"})
#: Modules that are run by an operator, once, beside or before the services.
LEFT_OUT = ("adoption/", "storage/migrations/", "storage/migrate.py")


@dataclass(slots=True)
class Found:
    """What was found."""

    places: set[str] = field(default_factory=set)
    flags: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Of those places that are functions of keyword-only flags: the flags. Such a function makes a
    statement for each combination of them."""
    hidden: list[str] = field(default_factory=list)
    """Uses of a maker that this search cannot follow: other names for it, or itself as a value."""


def modules(root: Path = ROOT) -> Iterator[tuple[str, str]]:
    """The name and the source of each module that the services run."""
    for path in sorted(root.rglob("*.py")):
        place = path.relative_to(root).as_posix()
        if not place.startswith(LEFT_OUT):
            yield place.removesuffix(".py").replace("/", "."), path.read_text()


def search(sources: Iterable[tuple[str, str]] | None = None) -> Found:
    """Search these modules, each a name and a source, or all."""
    found = Found()
    for name, source in modules() if sources is None else sources:
        _Search(name, source, found).visit(ast.parse(source))
    return found


class _Search(ast.NodeVisitor):
    def __init__(self, module: str, source: str, found: Found) -> None:
        self._module = module
        # Other things are executed, copied and streamed in modules that have no database.
        self._has_database = "psycopg" in source or "storage.database" in source
        self._found = found
        self._scope: list[ast.AST] = []
        self._names: list[str] = []

    def visit_Assign(self, node: ast.Assign) -> None:
        """A statement of a variable."""
        self._within(node, ast.unparse(node.targets[0]))

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        """The same, with a type."""
        self._within(node, ast.unparse(node.target))

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        """A statement that a function makes or sends."""
        self._within(node, node.name)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        """The same."""
        self._within(node, node.name)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        """A method is `Class.method`."""
        self._within(node, node.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        """Another name for a maker would hide its uses."""
        for name in node.names:
            if name.name in MAKERS and name.asname not in (None, name.name):
                self._hide(node, f"{name.name} as {name.asname}")

    def visit_Call(self, node: ast.Call) -> None:
        """A use of a maker, or a statement that is sent."""
        called = node.func
        if isinstance(called, ast.Subscript):
            # `Statement[int](...)`.
            called = called.value
        name = _name(called)
        sends = isinstance(called, ast.Attribute) and name in SENDERS and node.args
        if name in MAKERS or (sends and self._has_database):
            self._add()
        if isinstance(called, ast.Attribute):
            self.visit(called.value)
        elif not isinstance(called, ast.Name):
            self.visit(called)
        for child in (*node.args, *(keyword.value for keyword in node.keywords)):
            self.visit(child)

    def visit_Name(self, node: ast.Name) -> None:
        """A maker that is not called here: it is passed on, or assigned."""
        if node.id in MAKERS - {"Statement"} and isinstance(node.ctx, ast.Load):
            self._hide(node, node.id)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        """The same, of a module."""
        if node.attr in MAKERS - {"Statement"}:
            self._hide(node, node.attr)
        self.visit(node.value)

    def _within(self, node: ast.AST, name: str) -> None:
        # Within a function a variable has no name that could be looked up: the function has.
        keeps = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        inside = any(
            isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef) for each in self._scope
        )
        named = not inside and (keeps or not self._scope)
        self._scope.append(node)
        if named:
            self._names.append(name)
        self.generic_visit(node)
        if named:
            self._names.pop()
        self._scope.pop()

    def _place(self) -> str:
        return f"{self._module}:{'.'.join(self._names)}"

    def _add(self) -> None:
        place = self._place()
        self._found.places.add(place)
        function = self._scope[0] if self._scope else None
        if isinstance(function, ast.FunctionDef):
            arguments = function.args
            if arguments.kwonlyargs and not arguments.args:
                names = tuple(argument.arg for argument in arguments.kwonlyargs)
                self._found.flags[place] = names

    def _hide(self, node: ast.AST, what: str) -> None:
        line = getattr(node, "lineno", 0)
        self._found.hidden.append(f"{self._module}:{line}: {what}")


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""
