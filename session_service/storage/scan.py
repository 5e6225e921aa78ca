"""Pages of a list, whatever the filter: bounded scans of indexes, merged.

A list is in the order of a time and an id. Each alternative of its filter is a branch: a range of
one index that has this order. Where the index serves the whole alternative (`Branch.rest` is
empty), each entry of the range is in the list. Otherwise the rest is checked row by row, and the
branch ends after SCAN entries. Its last entry is then marked, and returned also if it does not
match: all that matches up to this entry was found, and nothing is known of what follows.

So a page never costs more than SCAN entries for each branch. It ends at the first mark, perhaps
with fewer rows than it may have or none (AIP-158 allows that), and the next page continues there.

The branches are read lazily, side by side, in their common order. They must not overlap: a row that
two of them found would be listed twice.

Where few rows satisfy a condition that another index serves, `few` reads all of them instead, up to
SCAN, and sorts them. A list tries that if its scan ended before the page was full.

SCAN is a literal in the statements, and so is every state. PostgreSQL plans a prepared statement
without its parameters, and expects a LIMIT that is a parameter to return a tenth of all rows; it
would then read the whole table and sort it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import sqlalchemy as sa

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from datetime import datetime

    from session_service.storage.database import Database, Statement

T = TypeVar("T")

#: The entries of an index that one branch of a page reads at most. It is larger than a page.
SCAN = 2000

Condition = sa.ColumnElement[bool]


@dataclass(frozen=True, slots=True)
class Branch:
    """One alternative. `served`: the conditions that an index with the list's order serves.
    `rest`: the conditions that are checked for each row. `ranged`: `served` compares the time of
    the order.
    """

    served: tuple[Condition, ...]
    rest: tuple[Condition, ...] = ()
    ranged: bool = False


@dataclass(frozen=True, slots=True)
class Order:
    """The order of a list: by `time`, then by `identity`. Any: an id of any type."""

    time: sa.ColumnElement[Any]
    identity: sa.ColumnElement[Any]
    descending: bool
    bound: int = SCAN
    """The entries that a branch reads at most; a test may have few rows."""

    @property
    def most(self) -> sa.ColumnElement[int]:
        """The bound as a literal."""
        return sa.literal_column(str(self.bound), type_=sa.BigInteger())

    def by(self, time: Any, identity: Any) -> list[Any]:
        """ORDER BY these columns. Any: columns of tables and of subqueries."""
        return [each.desc() if self.descending else each for each in (time, identity)]


class Position(NamedTuple):
    """The place of a row in a list. Any: an id of any type."""

    time: datetime
    identity: Any


class Entry(NamedTuple, Generic[T]):
    """An entry of a list. `make` builds its row. `last`: a branch ended here."""

    make: Callable[[], T]
    position: Position
    matches: bool
    last: bool


class Listed(NamedTuple, Generic[T]):
    """A page, and the position after which the next one begins; None if there is no more."""

    rows: list[T]
    after: Position | None


def after_parameters(after: Position | None) -> dict[str, object]:
    """The values of the binds that `entries` and `few` need with `after=True`; {} for None."""
    return {} if after is None else {"after_time": after.time, "after_id": after.identity}


def entries(branches: Sequence[Branch], order: Order, *, after: bool) -> sa.Subquery:
    """The first `size` (a bind) entries of the branches, in order: `time`, `identity`, `matches`,
    `last`. `after`: only those after the position of the binds `after_time` and `after_id`.
    """
    parts = [sa.select(_branch(branch, order, after=after)) for branch in branches]
    merged = sa.union_all(*parts).subquery("merged") if len(parts) > 1 else parts[0].subquery()
    return (
        sa.select(merged)
        .order_by(*in_order(order, merged))
        .limit(sa.bindparam("size", type_=sa.BigInteger))
        .subquery("entry")
    )


def in_order(order: Order, entries: sa.FromClause) -> list[Any]:
    """ORDER BY for entries. A branch can end at a row that another branch lists. That row comes
    before the mark, or the page would end without it, and the next one begin after it.
    """
    return [
        *order.by(entries.c.time, entries.c.identity),
        entries.c.matches.desc().nulls_last(),
    ]


def few(
    branch: Branch, order: Order, *, after: bool
) -> tuple[sa.Subquery, sa.ColumnElement[bool], sa.Subquery]:
    """All rows of the branch, whose index has another order, if there are SCAN or less.

    The first `size` of them, as of `entries`; the condition to join them on; and a row to join them
    to. `last` of that row says that there are more than SCAN rows: then nothing is joined.
    """
    found = (
        sa.select(
            order.time.label("time"),
            order.identity.label("identity"),
            sa.and_(sa.true(), *branch.rest).label("matches"),
        )
        .where(*branch.served)
        .limit(sa.literal_column(str(order.bound + 1)))
        .cte("found")
    )
    total = (
        sa.select((sa.func.count() > order.most).label("last")).select_from(found).subquery("total")
    )
    place = Order(found.c.time, found.c.identity, order.descending)
    entry = (
        sa.select(found)
        .where(found.c.matches, *([_after(place)] if after else []))
        .order_by(*place.by(place.time, place.identity))
        .limit(sa.bindparam("size", type_=sa.BigInteger))
        .subquery("entry")
    )
    return entry, ~total.c.last, total


def _branch(branch: Branch, order: Order, *, after: bool) -> sa.Subquery:
    served = [*branch.served]
    if after:
        served += [_after(order), *([_from_time(order)] if branch.ranged else [])]
    time, identity = order.time.label("time"), order.identity.label("identity")
    if not branch.rest:
        return (
            sa.select(time, identity, sa.true().label("matches"), sa.false().label("last"))
            .where(*served)
            .order_by(*order.by(order.time, order.identity))
            .limit(order.most)
            .subquery()
        )
    place = sa.func.row_number().over(order_by=order.by(order.time, order.identity))
    scanned = (
        sa.select(time, identity, sa.and_(*branch.rest).label("matches"), place.label("place"))
        .where(*served)
        .order_by(*order.by(order.time, order.identity))
        .limit(order.most)
        .subquery()
    )
    last = scanned.c.place == order.most
    return (
        sa.select(scanned.c.time, scanned.c.identity, scanned.c.matches, last.label("last"))
        .where(scanned.c.matches | last)
        .order_by(*order.by(scanned.c.time, scanned.c.identity))
        .limit(sa.bindparam("size", type_=sa.BigInteger))
        .subquery()
    )


def _after(order: Order) -> Condition:
    """A comparison of rows, which is a range of an index."""
    here = sa.tuple_(order.time, order.identity)
    last: Any = sa.tuple_(
        sa.bindparam("after_time", type_=order.time.type),
        sa.bindparam("after_id", type_=order.identity.type),
    )
    beyond: Condition = here < last if order.descending else here > last
    return beyond


def _from_time(order: Order) -> Condition:
    """What follows from `_after` for the time alone.

    PostgreSQL begins a scan of an index at one of its ranges. Beside another condition on the time
    that may be the other condition's, and each page would read the entries of all pages before it.
    Of conditions on one column it takes the narrowest.
    """
    last: Any = sa.bindparam("after_time", type_=order.time.type)
    beyond: Condition = order.time <= last if order.descending else order.time >= last
    return beyond


def page(found: Iterable[Entry[T]], size: int) -> Listed[T]:
    """The page of up to `size` rows, of the first `size` + 1 entries."""
    rows: list[T] = []
    position: Position | None = None
    for entry in found:
        if len(rows) == size:
            return Listed(rows, position)
        if entry.matches:
            rows.append(entry.make())
        position = entry.position
        if entry.last:
            return Listed(rows, position)
    return Listed(rows, None)


def by_key(table: sa.Table, key: Condition) -> sa.FromClause:
    """The row of an entry, by the primary key. OFFSET keeps the planner from joining the table as a
    whole, which it prefers where it expects many entries.
    """
    return sa.select(table).where(key).offset(sa.literal_column("0")).lateral("listed")


async def fetch_few(
    database: Database, statement: Statement[Entry[T]], params: Mapping[str, object]
) -> list[Entry[T]]:
    """The entries of a statement of `few`. The planner may not read the whole table for them, which
    it would do if it expects that many rows have the value of the filter.
    """
    async with database.transaction() as connection:
        await connection.execute("SET LOCAL enable_seqscan = off")
        cursor = await connection.execute(statement.sql, {**statement.constants, **params})
        return [statement.make(row) for row in await cursor.fetchall()]


def page_of_few(found: Sequence[Entry[T]], size: int) -> Listed[T] | None:
    """The page of the rows of `few`; None if there were more than SCAN."""
    if any(entry.last for entry in found):
        return None
    return page([entry for entry in found if entry.matches], size)


async def read(
    database: Database,
    scanned: Statement[Entry[T]],
    others: Iterable[Statement[Entry[T]]],
    params: Mapping[str, object],
    size: int,
) -> Listed[T]:
    """The page of a scan in the list's order. If the scan ends before the page is full: that of the
    first of `others`, statements of `few`, that has all of its rows.
    """
    found = page(await database.fetch_all(scanned, params), size)
    for other in others:
        if found.after is None or len(found.rows) >= size:
            break
        whole = page_of_few(await fetch_few(database, other, params), size)
        if whole is not None:
            return whole
    return found


def making(make: Callable[[Sequence[Any]], T]) -> Callable[[Sequence[Any]], Entry[T]]:
    """Makes the entry of a row whose last four columns are those of an entry. `make` makes what is
    listed, of the others. Any: columns of every type.
    """
    return lambda row: Entry(lambda: make(row[:-4]), Position(row[-4], row[-3]), row[-2], row[-1])


def few_columns(entry: sa.Subquery, total: sa.Subquery) -> list[sa.ColumnElement[Any]]:
    """The columns of an entry of `few`. Any: columns of every type."""
    return [entry.c.time, entry.c.identity, entry.c.identity.is_not(None), total.c.last]
