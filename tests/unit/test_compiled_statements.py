"""Every statement of `storage` can be built: it is built only at its first use, and so an error in
a query would not show when its module is imported.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module

from session_service import storage
from session_service.storage.database import Statement
from tests.cases import each

MODULES = [
    module.name
    for module in pkgutil.walk_packages(storage.__path__, f"{storage.__name__}.")
    if ".migrations" not in module.name
]


def statements(value: object) -> Iterator[Statement[object]]:
    """The statements in the value of a module's name, and in the collections of such values."""
    if isinstance(value, Statement):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from statements(each)
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for each in value:
            yield from statements(each)


@each("module", MODULES)
def test_every_statement_can_be_built(module: str) -> None:
    for value in vars(import_module(module)).values():
        for statement in statements(value):
            assert statement.sql
            assert None not in statement.constants.values()
