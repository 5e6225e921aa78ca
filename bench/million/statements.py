"""What an entry of the list says: which statement, with which values, and what it may read.

The values of a case are representative, or unlucky: nothing matches, everything matches, only the
oldest row matches. A value is a constant, or a `Lookup` that asks the seeded database.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from session_service.storage.database import Statement

#: The most pages that a statement may read and write for each row that it returns or writes. A
#: look-up in an index of a million rows reads four, and its row one; an inserted row has an entry
#: in each index of its table.
PAGES_PER_ROW = 40
#: So many are allowed in any case.
PAGES = 100


@dataclass(frozen=True, slots=True)
class Lookup:
    """A value that the seeded database is asked for: the only column of the only row of a query,
    with the bind `count`, the number of sessions. `made` makes the value of it; any: of every type.
    """

    sql: str
    made: Callable[[Any], object] | None = None


@dataclass(frozen=True, slots=True)
class Limit:
    """What a statement may read and write: pages for each row, or `pages` if that is more."""

    per_row: float = PAGES_PER_ROW
    pages: int = PAGES
    because: str = ""
    """Why it is not the default. A number of pages has a reason that does not depend on how many
    rows the tables hold."""

    def allowed(self, rows: int) -> float:
        """The pages that are allowed for so many rows."""
        return max(self.pages, self.per_row * rows)


DEFAULT = Limit()


@dataclass(frozen=True, slots=True)
class Case:
    """One set of values."""

    name: str
    values: Mapping[str, object] = field(default_factory=dict)
    before: tuple[str, ...] = ()
    """Statements that are executed first, in the same transaction, with the bind `count`."""
    limit: Limit | None = None
    """Instead of the form's."""


@dataclass(frozen=True, slots=True)
class Form:
    """One statement of a place: how to get it, and the cases that it is run with."""

    name: str
    cases: tuple[Case, ...]
    of: str = ""
    """The attribute of the module; empty for the name of the place."""
    arguments: tuple[object, ...] | None = None
    flags: Mapping[str, object] | None = None
    """If either is given, the attribute is a function, which is called with them."""
    path: tuple[object, ...] = ()
    """Then: attributes (text that begins with a dot), keys and indexes."""
    values: Mapping[str, object] = field(default_factory=dict)
    """Values of all its cases."""
    limit: Limit = DEFAULT
    settings: tuple[str, ...] = ()
    """What the service sets in the same transaction before it."""
    prepared: bool = True
    """Whether the service prepares it, so that PostgreSQL may choose a generic plan."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A place, and its statements; or the reason for which none is run."""

    place: str
    forms: tuple[Form, ...] = ()
    because: str = ""
    defaults: Mapping[str, object] = field(default_factory=dict)
    """Values of binds that no case gives."""


@dataclass(frozen=True, slots=True)
class Text:
    """The SQL of a form, and the values of its constants. Any: columns of every type."""

    sql: str
    constants: Mapping[str, Any]


def case(name: str = "usual", /, *, before: tuple[str, ...] = (), limit: Limit | None = None,
         **values: object) -> Case:  # fmt: skip
    """A case; the values by the names of their binds."""
    return Case(name, values, before, limit)


def statement(place: str, *cases: Case, limit: Limit = DEFAULT, prepared: bool = True) -> Listed:
    """A place with one statement. Without cases there is one, of the default values."""
    form = Form("", cases or (case(),), limit=limit, prepared=prepared)
    return Listed(place, (form,))


def statements(place: str, *forms: Form) -> Listed:
    """A place with several statements."""
    return Listed(place, forms)


def not_run(place: str, because: str) -> Listed:
    """A place whose statements are not run, for this reason."""
    return Listed(place, because=because)


def with_defaults(listed: Iterable[Listed], defaults: Mapping[str, object]) -> tuple[Listed, ...]:
    """The entries, with values for binds that their cases leave out."""
    return tuple(replace(each, defaults={**defaults, **each.defaults}) for each in listed)


def text_of(listed: Listed, form: Form) -> Text:
    """The SQL of a form. Raises AttributeError, KeyError or TypeError if it is not there."""
    module, _, name = listed.place.partition(":")
    made: Any = getattr(importlib.import_module(f"session_service.{module}"), form.of or name)
    if form.arguments is not None or form.flags is not None:
        made = made(*(form.arguments or ()), **(form.flags or {}))
    for step in form.path:
        dotted = isinstance(step, str) and step.startswith(".")
        made = getattr(made, str(step)[1:]) if dotted else made[step]
    if isinstance(made, tuple):
        return Text(*made)
    if isinstance(made, bytes):
        return Text(made.decode(), {})
    if isinstance(made, str):
        return Text(made, {})
    found: Statement[object] = made
    return Text(found.sql, found.constants)
