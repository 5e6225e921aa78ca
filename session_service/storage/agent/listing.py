"""Pages of agent sessions, by creation or by the newest turn: see `storage/scan`.

Which index serves a filter: that of the role, and only of the role's ACTIVE sessions if no others
are asked for; else that of the state, a branch for each state; else that of the tenant. The rest is
checked row by row. If the page is not full when the scan ends, and few sessions have the labels or
had a turn lately, all of those are read by the index of the labels or of `seen_at`.

`seen_at` follows `last_query_at` at a distance (see `tables`). So the order by the newest turn, and
what is found by that index, is late by up to SEEN_LAG; no session is listed that does not match.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from session_service.domain.agent import AgentState
from session_service.storage import scan
from session_service.storage.agent.tables import (
    LISTED_AS_ACTIVE,
    llm_sessions,
    make_session,
    session_columns,
)
from session_service.storage.database import Database, Statement, compiled
from session_service.storage.scan import Branch, Condition, Entry, Listed, Order, Position
from session_service.storage.tables import SEEN_LAG
from session_service.storage.tables.schema import bytewise

if TYPE_CHECKING:
    from collections.abc import Iterator

    from session_service.domain.agent import AgentSession, SessionFilter

_ROW = llm_sessions.c
_TENANT: Condition = _ROW.tenant == sa.bindparam("tenant")
_ALL = frozenset(AgentState)
_ACTIVE = frozenset({AgentState.ACTIVE})


class Form(NamedTuple):
    """The form of a list: the names of the filter's fields that are set, whose values are binds;
    the states; order and columns. `seen`: by the newest turn. `context`: with startup contexts.
    """

    names: frozenset[str]
    states: frozenset[AgentState]
    seen: bool
    descending: bool
    after: bool
    context: bool
    bound: int = scan.SCAN

    @property
    def order(self) -> Order:
        """The list's order."""
        time = _ROW.seen_at if self.seen else _ROW.created_at
        return Order(time, _ROW.session_id, self.descending, self.bound)


def filter_parameters(wanted: SessionFilter) -> dict[str, object]:
    """The values of the filter's fields that are set, by the names of their binds."""
    values: dict[str, object] = {
        "agent_role": wanted.agent_role,
        "labels": wanted.labels,
        "active_since": wanted.active_since,
        "session_ids": list(wanted.session_ids),
    }
    return {name: value for name, value in values.items() if value}


def form_of(
    wanted: SessionFilter,
    *,
    seen: bool = False,
    descending: bool = True,
    after: bool = False,
    context: bool = False,
    bound: int = scan.SCAN,
) -> Form:
    """The form of a list with this filter."""
    names = frozenset(filter_parameters(wanted))
    return Form(names, frozenset(wanted.states) or _ALL, seen, descending, after, context, bound)


def _condition(name: str) -> Condition:
    since = sa.bindparam("active_since", type_=_ROW.last_query_at.type)
    return {
        "agent_role": _ROW.agent_role == sa.bindparam("agent_role"),
        "labels": _ROW.labels.contains(sa.bindparam("labels", type_=JSONB)),
        "active_since": _ROW.last_query_at >= since,
        "session_ids": _ROW.session_id
        == sa.any_(sa.bindparam("session_ids", type_=ARRAY(sa.Text))),
    }[name]


def _seen_since() -> Condition:
    since = sa.bindparam("active_since", type_=_ROW.seen_at.type)
    return _ROW.seen_at >= since - SEEN_LAG


def _in(states: frozenset[AgentState]) -> list[Condition]:
    """The state is one of these literals, if not any."""
    if states == _ALL:
        return []
    listed = ", ".join(f"'{state}'" for state in AgentState if state in states)
    return [sa.literal_column(f"(llm_sessions.state IN ({listed}))", type_=sa.Boolean())]


def _branches(form: Form) -> Iterator[Branch]:
    """The branches of the scan in the list's order."""
    rest = [_condition(name) for name in sorted(form.names - {"agent_role"})]
    ranges = [_seen_since()] if form.seen and "active_since" in form.names else []
    tenant = sa.bindparam("tenant", type_=sa.Text)
    if "agent_role" in form.names:
        role = sa.bindparam("agent_role", type_=sa.Text)
        served = [bytewise(_ROW.tenant) == tenant, bytewise(_ROW.agent_role) == role, *ranges]
        if form.states == _ACTIVE:
            active = sa.literal_column(f"(llm_sessions.{LISTED_AS_ACTIVE})", type_=sa.Boolean())
            yield Branch((*served, active), tuple(rest), ranged=bool(ranges))
        else:
            yield Branch(tuple(served), (*rest, *_in(form.states)), ranged=bool(ranges))
    elif form.states == _ALL:
        yield Branch((_ROW.tenant == tenant, *ranges), tuple(rest), ranged=bool(ranges))
    else:
        for state in AgentState:
            if state in form.states:
                is_state = bytewise(_ROW.state) == sa.literal_column(f"'{state}'")
                served = [is_state, bytewise(_ROW.tenant) == tenant, *ranges]
                yield Branch(tuple(served), tuple(rest), ranged=bool(ranges))


def _few(form: Form, by: str) -> Branch:
    """The rows that the index of `by` finds, which has another order than the list."""
    rest = [_condition(name) for name in sorted(form.names)]
    # The index of the labels has no tenant: to name it would offer other indexes.
    served = {
        "labels": [_condition("labels")],
        "active_since": [_TENANT, _seen_since()],
        "session_ids": [_TENANT, _condition("session_ids")],
    }[by]
    return Branch(tuple(served), (_TENANT, *rest, *_in(form.states)))


_make = scan.making(make_session)


def _joined(entry: sa.Subquery) -> Condition:
    return (_ROW.tenant == sa.bindparam("tenant")) & (_ROW.session_id == entry.c.identity)


@lru_cache(maxsize=256)
def statement(form: Form) -> Statement[Entry[AgentSession]]:
    """The scan in the list's order."""

    def build() -> sa.Select[Any]:
        entry = scan.entries(list(_branches(form)), form.order, after=form.after)
        row = scan.by_key(llm_sessions, _joined(entry))
        return (
            sa.select(*session_columns(row, context=form.context), *entry.c)
            .select_from(entry.join(row, sa.true()))
            .order_by(*scan.in_order(form.order, entry))
        )

    return compiled(build, _make)


@lru_cache(maxsize=256)
def statement_of_few(form: Form, by: str) -> Statement[Entry[AgentSession]]:
    """All rows that have the labels, that had a turn lately, or that have the ids."""

    def build() -> sa.Select[Any]:
        entry, on, total = scan.few(_few(form, by), form.order, after=form.after)
        row = scan.by_key(llm_sessions, _joined(entry))
        return (
            sa.select(*session_columns(row, context=form.context), *scan.few_columns(entry, total))
            .select_from(total.outerjoin(entry, on).outerjoin(row, sa.true()))
            .order_by(*form.order.by(entry.c.time, entry.c.identity))
        )

    return compiled(build, _make)


async def page(
    database: Database,
    tenant: str,
    wanted: SessionFilter,
    after: Position | None,
    size: int,
    *,
    seen: bool = False,
    descending: bool = True,
    context: bool = False,
    bound: int = scan.SCAN,
) -> Listed[AgentSession]:
    """A page of up to `size` sessions; with `context`, their startup contexts too. The cost of a
    page has a bound (see `storage/scan`). So a page may have fewer than `size` sessions, or none,
    although more follow: it then has a position to continue from.
    """
    form = form_of(
        wanted,
        seen=seen,
        descending=descending,
        after=after is not None,
        context=context,
        bound=bound,
    )
    params = {
        **filter_parameters(wanted),
        **scan.after_parameters(after),
        "tenant": tenant,
        "size": size + 1,
    }
    if "session_ids" in form.names:
        named = scan.page_of_few(
            await scan.fetch_few(database, statement_of_few(form, "session_ids"), params), size
        )
        if named is not None:
            return named
    # In the order of `seen_at` its range was scanned already.
    others = [
        statement_of_few(form, by)
        for by in ("labels", "active_since")
        if by in form.names and not (by == "active_since" and seen)
    ]
    return await scan.read(database, statement(form), others, params, size)


async def pages(
    database: Database,
    tenant: str,
    wanted: SessionFilter,
    after: Position | None,
    size: int,
    *,
    context: bool = False,
) -> Listed[AgentSession]:
    """The next `size` sessions in order of creation, oldest first, by as many pages as it takes."""
    rows: list[AgentSession] = []
    while True:
        found = await page(
            database, tenant, wanted, after, size - len(rows), descending=False, context=context
        )
        rows += found.rows
        after = found.after
        if after is None or len(rows) == size:
            return Listed(rows, after)
