"""Values to write that the database itself is to fill in: its time, and what the row holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import timedelta


@dataclass(frozen=True, slots=True)
class Now:
    """The database's time at the commit's transaction, plus a span."""

    after: timedelta | None = None


@dataclass(frozen=True, slots=True)
class Plus:
    """What the column holds, plus a number."""

    amount: int = 1


NOW = Now()
Shape = tuple[tuple[str, str], ...]


def shape(values: Mapping[str, object]) -> Shape:
    """What kind of value each column gets: statements are compiled once per shape."""
    return tuple(sorted((name, _kind(value)) for name, value in values.items()))


def _kind(value: object) -> str:
    if isinstance(value, Now):
        return "now" if value.after is None else "later"
    return "plus" if isinstance(value, Plus) else "given"


def expressions(table: sa.Table, form: Shape, prefix: str) -> dict[str, sa.ColumnElement[Any]]:
    """Each column's right-hand side, binds named `prefix` + column. Any: columns of every type."""
    made: dict[str, sa.ColumnElement[Any]] = {}
    for name, kind in form:
        column = table.c[name]
        bind: sa.BindParameter[Any] = sa.bindparam(prefix + name, type_=column.type)
        if kind == "now":
            made[name] = sa.func.now()
        elif kind == "later":
            made[name] = sa.func.now() + sa.bindparam(prefix + name, type_=sa.Interval)
        else:
            made[name] = column + bind if kind == "plus" else bind
    return made


def parameters(values: Mapping[str, object], prefix: str) -> dict[str, object]:
    """The binds' values, by the names that `expressions` gave them."""
    return dict(_binds(values, prefix))


def _binds(values: Mapping[str, object], prefix: str) -> Iterable[tuple[str, object]]:
    for name, value in values.items():
        if isinstance(value, Now):
            if value.after is not None:
                yield prefix + name, value.after
        else:
            yield prefix + name, value.amount if isinstance(value, Plus) else value
