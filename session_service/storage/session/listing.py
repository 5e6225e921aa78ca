"""Pages of sessions, by creation or by last activity, for every filter: see `storage/scan`.

Which index serves an alternative of the filter:

| the alternative says | index |
| --- | --- |
| a user | that of the user; of live sessions only, if only live states are asked for |
| else a project | that of the project, likewise |
| else a state, or `live` | that of the state, a branch for each state |
| none of these | that of the tenant |

Times in the order of the list are ranges of the index. The rest is checked row by row. If the page
is not full when the scan ends, and few sessions have a `last_active_time` that the filter allows,
all of those are read by the index of `seen_at`.

The order by last activity is that of `seen_at`, which follows `last_active_time` with a delay (see
`tables/session`). So this order, and a comparison of `last_active_time` in it, is late by up to
`SEEN_LAG`; a session is never listed that does not match.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import sqlalchemy as sa

from session_service.domain.filters import TEXTS
from session_service.domain.states import LIVE, State
from session_service.storage import scan
from session_service.storage.database import Statement, compiled
from session_service.storage.scan import Branch, Condition, Entry, Listed, Order, Position
from session_service.storage.session import reads
from session_service.storage.session.reads import make_record
from session_service.storage.tables import SEEN_LAG, containers, sessions
from session_service.storage.tables.schema import bytewise
from session_service.storage.tables.session import LISTED_AS_LIVE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from session_service.domain.filters import Alternative
    from session_service.domain.session import Record
    from session_service.storage.database import Database

_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_ALL = frozenset(State)
#: The texts that have indexes, in the order in which they are chosen: the most selective first.
_INDEXED = ("user_id", "project_id")


@dataclass(frozen=True, slots=True)
class Page:
    """Up to `size` sessions of the tenant that satisfy one of the alternatives, after a position.

    `seen`: in the order of last activity instead of creation.
    """

    tenant: str
    alternatives: tuple[Alternative, ...]
    seen: bool
    descending: bool
    after: Position | None
    size: int
    bound: int = scan.SCAN


class _Form(NamedTuple):
    """An alternative with the names of binds in place of its values.

    Equal values of one field have the same bind, and different values have different ones.
    """

    states: frozenset[State]
    texts: tuple[tuple[str, str], ...]
    times: tuple[tuple[str, str, str], ...]

    def excludes(self, other: _Form) -> bool:
        """Whether no session can satisfy both."""
        mine, theirs = dict(self.texts), dict(other.texts)
        both = mine.keys() & theirs.keys()
        return not self.states & other.states or any(mine[name] != theirs[name] for name in both)


def forms(alternatives: Sequence[Alternative]) -> tuple[tuple[_Form, ...], dict[str, object]]:
    """The forms of the alternatives that can be satisfied, and the values of their binds.

    Alternatives that differ only in their states become one.
    """
    names: dict[tuple[str, object], str] = {}
    states: dict[tuple[Any, Any], frozenset[State]] = {}
    for alternative in alternatives:
        texts: dict[str, object] = {}
        times: dict[tuple[str, str, str], None] = {}
        wanted = _ALL
        possible = True
        for item in alternative:
            if item.field == "state":
                wanted &= {State(str(item.value))}
            elif item.field == "live":
                wanted &= LIVE if item.value else _ALL - LIVE
            elif item.field in TEXTS:
                possible &= texts.setdefault(item.field, item.value) == item.value
            else:
                times[item.field, item.operator, _bind(names, item.field, item.value)] = None
        if possible and wanted:
            bound = [(name, _bind(names, name, value)) for name, value in sorted(texts.items())]
            key = (tuple(bound), tuple(sorted(times)))
            states[key] = states.get(key, frozenset()) | wanted
    found = tuple(_Form(wanted, *key) for key, wanted in states.items())
    return found, {name: value for (_, value), name in names.items()}


def _bind(names: dict[tuple[str, object], str], field: str, value: object) -> str:
    return names.setdefault((field, value), f"value_{len(names)}")


def _in(states: frozenset[State]) -> Condition:
    """The state is one of these literals."""
    listed = ", ".join(f"'{state}'" for state in State if state in states)
    return sa.literal_column(f"(sessions.state IN ({listed}))", type_=sa.Boolean())


def _is(state: State) -> Condition:
    """The one state, for its index."""
    return bytewise(sessions.c.state) == sa.literal_column(f"'{state}'")


def _compare(field: str, comparison: str, bind: str) -> Condition:
    column = sessions.c[field]
    condition: Condition = _OPERATORS[comparison](column, sa.bindparam(bind, type_=column.type))
    return condition


def _whole(form: _Form) -> Condition:
    """All conditions of the alternative."""
    conditions = [_compare(name, "=", bind) for name, bind in form.texts]
    conditions += [_compare(*each) for each in form.times]
    if form.states != _ALL:
        conditions.append(_in(form.states))
    return sa.and_(sa.true(), *conditions)


def _branches(all_forms: Sequence[_Form], *, seen: bool) -> Iterator[Branch]:
    for number, form in enumerate(all_forms):
        # What an earlier alternative lists, this one must not list again.
        earlier = [~_whole(each) for each in all_forms[:number] if not each.excludes(form)]
        ranges, unserved = _times(form, seen=seen)
        for served, rest in _by_index(form):
            yield Branch((*served, *ranges), (*rest, *unserved, *earlier), ranged=bool(ranges))


def _by_index(form: _Form) -> Iterator[tuple[list[Condition], list[Condition]]]:
    """For each branch: the conditions that its index serves, and the rest. See the table above."""
    tenant = sa.bindparam("tenant", type_=sa.Text)
    chosen = next((name for name in _INDEXED if name in dict(form.texts)), None)
    rest = [_compare(name, "=", bind) for name, bind in form.texts if name != chosen]
    if chosen is None and form.states == _ALL:
        yield [sessions.c.tenant == tenant], rest
    elif chosen is None:
        for state in State:
            if state in form.states:
                yield [_is(state), bytewise(sessions.c.tenant) == tenant], rest
    else:
        text = sa.bindparam(dict(form.texts)[chosen], type_=sa.Text)
        served = [bytewise(sessions.c.tenant) == tenant, bytewise(sessions.c[chosen]) == text]
        if form.states <= LIVE:
            served.append(sa.literal_column(f"(sessions.{LISTED_AS_LIVE})", type_=sa.Boolean()))
        if form.states not in (_ALL, LIVE):
            rest.append(_in(form.states))
        yield served, rest


def _times(form: _Form, *, seen: bool) -> tuple[list[Condition], list[Condition]]:
    """The index ranges that the comparisons of times give, and what is left to check."""
    ranges: list[Condition] = []
    rest: list[Condition] = []
    for field, comparison, bind in form.times:
        if field == "create_time" and not seen:
            ranges.append(_compare(field, comparison, bind))
            continue
        rest.append(_compare(field, comparison, bind))
        if field == "last_active_time" and seen:
            # `seen_at` is earlier than `last_active_time` or equal to it.
            value = sa.bindparam(bind, type_=sessions.c.seen_at.type)
            if comparison in (">", ">=", "="):
                ranges.append(sessions.c.seen_at >= value - SEEN_LAG)
            if comparison in ("<", "<=", "="):
                ranges.append(sessions.c.seen_at <= value)
    return ranges, rest


def _select(
    entries: sa.FromClause, entry: sa.Subquery, *columns: sa.ColumnElement[Any]
) -> sa.Select[Any]:
    """The records of the sessions of the entries, and these columns."""
    row = scan.by_key(sessions, sessions.c.session_id == entry.c.identity)
    joined = entries.outerjoin(row, sa.true()).outerjoin(
        containers,
        (containers.c.session_id == row.c.session_id)
        & (containers.c.generation == row.c.generation),
    )
    return sa.select(*reads.record_columns(row), *columns).select_from(joined)


_make = scan.making(make_record)


@lru_cache(maxsize=256)
def statement(
    all_forms: tuple[_Form, ...],
    *,
    seen: bool,
    descending: bool,
    after: bool,
    bound: int = scan.SCAN,
) -> Statement[Entry[Record]]:
    """The statement for a page of a filter of these forms."""

    def build() -> sa.Select[Any]:
        time = sessions.c.seen_at if seen else sessions.c.create_time
        order = Order(time, sessions.c.session_id, descending, bound)
        entry = scan.entries(list(_branches(all_forms, seen=seen)), order, after=after)
        return _select(entry, entry, *entry.c).order_by(*scan.in_order(order, entry))

    return compiled(build, _make)


@lru_cache(maxsize=64)
def statement_of_few(
    form: _Form, *, descending: bool, after: bool, bound: int = scan.SCAN
) -> Statement[Entry[Record]]:
    """All sessions whose last activity is in the range of the filter, in order of creation."""

    def build() -> sa.Select[Any]:
        order = Order(sessions.c.create_time, sessions.c.session_id, descending, bound)
        ranges, _ = _times(form, seen=True)
        tenant = sessions.c.tenant == sa.bindparam("tenant", type_=sa.Text)
        branch = Branch((tenant, *ranges), (_whole(form),))
        entry, on, total = scan.few(branch, order, after=after)
        columns = scan.few_columns(entry, total)
        return _select(total.outerjoin(entry, on), entry, *columns).order_by(
            *order.by(entry.c.time, entry.c.identity)
        )

    return compiled(build, _make)


def parameters(wanted: Page, values: Mapping[str, object]) -> dict[str, object]:
    """The binds of the page's statement."""
    own = {"tenant": wanted.tenant, "size": wanted.size + 1}
    return {**values, **own, **scan.after_parameters(wanted.after)}


async def page(database: Database, wanted: Page) -> Listed[Record]:
    """The page. Its cost is bounded (see `storage/scan`), so it may have fewer sessions than match,
    or none, and still a position to continue from.
    """
    all_forms, values = forms(wanted.alternatives)
    if not all_forms:
        return Listed([], None)
    after = wanted.after is not None
    params = parameters(wanted, values)
    scanned = statement(
        all_forms,
        seen=wanted.seen,
        descending=wanted.descending,
        after=after,
        bound=wanted.bound,
    )
    others = []
    of_activity = any(field == "last_active_time" for field, *_ in all_forms[0].times)
    if of_activity and not wanted.seen and len(all_forms) == 1:
        few = statement_of_few(
            all_forms[0], descending=wanted.descending, after=after, bound=wanted.bound
        )
        others.append(few)
    return await scan.read(database, scanned, others, params, wanted.size)
