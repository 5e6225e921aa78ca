"""Listing sessions, a page at a time, by what a filter says."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from session_service.storage.database import Database, Statement, compiled
from session_service.storage.rows import make_record
from session_service.storage.sessions import LIVE, record_query
from session_service.storage.tables import sessions

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from uuid import UUID

    from session_service.domain.filters import Comparison
    from session_service.domain.session import Record

_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True, slots=True)
class Position:
    """Where a page ended."""

    create_time: datetime
    session_id: UUID


@dataclass(frozen=True, slots=True)
class Page:
    """Which sessions: the tenant's that satisfy all comparisons, from a position on."""

    tenant: str
    comparisons: tuple[Comparison, ...]
    descending: bool
    after: Position | None
    size: int


@lru_cache(maxsize=256)
def _statement(
    form: tuple[tuple[str, str, bool], ...], *, descending: bool, after: bool
) -> Statement[Record]:
    """The listing for filters of this form; its values are binds."""
    query = record_query().where(sessions.c.tenant == sa.bindparam("tenant"))
    for index, (name, comparison, truth) in enumerate(form):
        query = query.where(_condition(index, name, comparison, truth=truth))
    place = sa.tuple_(sessions.c.create_time, sessions.c.session_id)
    if after:
        last = sa.tuple_(
            sa.bindparam("last_time", type_=sessions.c.create_time.type),
            sa.bindparam("last_id", type_=sessions.c.session_id.type),
        )
        query = query.where(place < last if descending else place > last)
    order = [sessions.c.create_time, sessions.c.session_id]
    query = query.order_by(*(column.desc() if descending else column for column in order))
    return compiled(query.limit(sa.bindparam("size")), make_record)


def _condition(
    index: int, name: str, comparison: str, *, truth: bool
) -> sa.ColumnElement[bool] | sa.TextClause:
    if name == "live":
        return LIVE if truth else sa.text("sessions.state IN ('ENDING', 'ENDED')")
    column = sessions.c[name]
    condition: sa.ColumnElement[bool] = _OPERATORS[comparison](
        column, sa.bindparam(f"value_{index}", type_=column.type)
    )
    return condition


async def page(database: Database, wanted: Page) -> list[Record]:
    """Up to `size` sessions in order of their creation."""
    form = tuple((item.field, item.operator, item.value is True) for item in wanted.comparisons)
    statement = _statement(form, descending=wanted.descending, after=wanted.after is not None)
    params: dict[str, object] = {"tenant": wanted.tenant, "size": wanted.size}
    for index, item in enumerate(wanted.comparisons):
        params[f"value_{index}"] = item.value
    if wanted.after is not None:
        params |= {"last_time": wanted.after.create_time, "last_id": wanted.after.session_id}
    return await database.fetch_all(statement, params)
