"""Lists of agent sessions: each filter, and pairs of them, in each order."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from itertools import product
from typing import TYPE_CHECKING

from bench.million.listed.known import NEVER, NOW
from bench.million.listed.lists import scans
from bench.million.statements import Case, Form, Lookup, statements, with_defaults
from session_service.domain.agent import AgentState, SessionFilter
from session_service.storage.agent import listing

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_ACTIVE = (AgentState.ACTIVE,)
_ANY = SessionFilter()
_ROLES = {
    "usual": SessionFilter(agent_role="role-1"),
    "a thousandth": SessionFilter(agent_role="rare"),
    "only the oldest": SessionFilter(agent_role="oldest"),
    "none": SessionFilter(agent_role="nobody"),
}
_LABELS = {
    "usual": SessionFilter(labels='{"team": "t1"}'),
    "half": SessionFilter(labels='{"env": "prod"}'),
    "few": SessionFilter(labels='{"team": "t450"}'),
    "none": SessionFilter(labels='{"team": "none"}'),
}
_SINCE = {
    "a day": SessionFilter(active_since=NOW - timedelta(days=1)),
    "all": SessionFilter(active_since=NOW - timedelta(days=100)),
    "none": SessionFilter(active_since=NEVER),
}
_IDS = {
    "usual": SessionFilter(session_ids=("c20", "a1", "a7")),
    "a hundred": SessionFilter(session_ids=tuple(f"a{number}" for number in range(1, 101))),
    "none": SessionFilter(session_ids=("nobody",)),
}
_FORKED = {
    # Only the newest sessions have the role, and none of them a label.
    "none of a role of few": SessionFilter(agent_role="forked", labels='{"team": "t1"}'),
}


def _in(filters: Mapping[str, SessionFilter], *states: AgentState) -> dict[str, SessionFilter]:
    return {name: replace(each, states=states) for name, each in filters.items()}


def _pairs(
    first: Mapping[str, SessionFilter], second: Mapping[str, SessionFilter]
) -> dict[str, SessionFilter]:
    """Each filter of the one with each of the other, which sets other fields."""
    return {
        f"{one}; {other}": replace(
            first[one],
            labels=second[other].labels or first[one].labels,
            active_since=second[other].active_since or first[one].active_since,
        )
        for one, other in product(first, second)
    }


#: By name: filters of one form, with different values.
_FILTERS: dict[str, dict[str, SessionFilter]] = {
    "all": {"usual": _ANY},
    "of a role": _ROLES,
    "with labels": _LABELS,
    "active": {"usual": replace(_ANY, states=_ACTIVE)},
    "in two states": {"usual": replace(_ANY, states=(AgentState.EXPIRED, AgentState.ENDED))},
    "with a turn since": _SINCE,
    "with labels, active": _in(_LABELS, *_ACTIVE),
    "with a turn since, active": _in(_SINCE, *_ACTIVE),
    "of a role, active": _in(_ROLES, *_ACTIVE),
    "of a role, ended": _in(_ROLES, AgentState.ENDED),
    "of a role, with labels": {**_pairs(_ROLES, _LABELS), **_FORKED},
    "of a role, with a turn since": _pairs(_ROLES, _SINCE),
    "with labels, with a turn since": _pairs(_LABELS, _SINCE),
}
#: Those of `_FILTERS` that an index of another order may serve, by it.
_FEW = (
    ("with labels", "labels"),
    ("with labels, active", "labels"),
    ("of a role, with labels", "labels"),
    ("with labels, with a turn since", "labels"),
    ("with labels, with a turn since", "active_since"),
    ("with a turn since", "active_since"),
    ("with a turn since, active", "active_since"),
    ("of a role, with a turn since", "active_since"),
)
_POSITION: dict[str, object] = {
    "after_time": Lookup("SELECT now() - interval '20 days'"),
    "after_id": "a1",
}


def _form(
    name: str, filters: Mapping[str, SessionFilter], form: listing.Form, by: str = ""
) -> Form:
    order = "turn" if form.seen else "created"
    ordered = f"{'newest' if form.descending else 'oldest'} {order} first"
    more = f"{', page 2' if form.after else ''}{', with contexts' if form.context else ''}"
    checked = 1 if by else sum(bool(branch.rest) for branch in listing._branches(form))
    return Form(
        f"{name}, {f'by {by}, ' if by else ''}{ordered}{more}",
        tuple(
            Case(case, listing.filter_parameters(wanted)) for case, wanted in filters.items()
        ),
        arguments=(form, by) if by else (form,),
        values=_POSITION if form.after else {},
        limit=scans(checked),
        settings=("SET LOCAL enable_seqscan = off",) if by else (),
    )  # fmt: skip


def _made(
    filters: Mapping[str, SessionFilter], orders: Iterator[tuple[bool, bool, bool, bool]]
) -> Iterator[listing.Form]:
    wanted = next(iter(filters.values()))
    for seen, descending, after, context in orders:
        yield listing.form_of(
            wanted, seen=seen, descending=descending, after=after, context=context
        )


def _orders() -> Iterator[tuple[bool, bool, bool, bool]]:
    """By the newest turn, descending, after a position, with contexts: those that calls use."""
    yield from product((False, True), (True, False), (False, True), (False,))
    # An export.
    yield False, False, True, True


_LISTS = [
    _form(name, filters, form)
    for name, filters in _FILTERS.items()
    for form in _made(filters, _orders())
]
_LISTS_OF_FEW = [
    _form(name, filters, form, by)
    for name, filters, by in (
        *((name, _FILTERS[name], by) for name, by in _FEW),
        ("with ids", _IDS, "session_ids"),
        ("with ids, active", _in(_IDS, *_ACTIVE), "session_ids"),
    )
    for form in _made(filters, _orders())
    # In the order of the newest turn its range was scanned already.
    if not (by == "active_since" and form.seen)
]

LISTED = with_defaults(
    (
        statements("storage.agent.listing:statement", *_LISTS),
        statements("storage.agent.listing:statement_of_few", *_LISTS_OF_FEW),
    ),
    {"tenant": "default", "size": 51},
)
