"""Lists of sessions: each filter that the contract documents, usual pairs of them, and OR."""

from __future__ import annotations

from datetime import timedelta
from itertools import product
from typing import TYPE_CHECKING

from bench.million.listed.known import ALWAYS, DEFAULTS, ENDED, NEVER, NOW
from bench.million.statements import (
    DEFAULT,
    Case,
    Form,
    Limit,
    Lookup,
    statements,
    with_defaults,
)
from session_service.domain.filters import ALTERNATIVES, parse
from session_service.storage.scan import SCAN
from session_service.storage.session import listing

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

#: The pages of a scan for each of its entries: its row, and now and then a page of the index.
_PER_ENTRY = 1.15


def scans(count: int) -> Limit:
    """The limit of a page that checks the rows of so many branches."""
    if not count:
        return DEFAULT
    return Limit(
        pages=round(count * SCAN * _PER_ENTRY) + 51 * 10,
        because=f"checks up to {SCAN} rows of each of {count} branches",
    )


def _time(moment: datetime) -> str:
    return f'"{moment.isoformat()}"'


_HOUR, _DAY = _time(NOW - timedelta(hours=1)), _time(NOW - timedelta(days=1))
_OLD, _NEVER, _ALWAYS = _time(NOW - timedelta(days=79)), _time(NEVER), _time(ALWAYS)
#: By name: filters of one form, with different values.
_FILTERS: dict[str, dict[str, str]] = {
    "all": {"usual": ""},
    "of a user": {
        "usual": 'user_id = "u7"',
        "a hundredth of all": 'user_id = "u0"',
        "nothing matches": 'user_id = "nobody"',
        "only the oldest matches": 'user_id = "oldest"',
    },
    "of a project": {
        "usual": 'project_id = "project-1"',
        "half of all": 'project_id = "nest"',
        "few": 'project_id = "project-900"',
        "nothing matches": 'project_id = "nowhere"',
    },
    "of a user of a project": {
        "usual": 'project_id = "nest" AND user_id = "u0"',
        "nothing matches": 'project_id = "nest" AND user_id = "nobody"',
        "none of many": 'project_id = "nowhere" AND user_id = "u0"',
        "only the oldest matches": 'project_id = "nest" AND user_id = "oldest"',
    },
    "in the state of most": {"usual": "state = ENDED"},
    "in a state of some": {"usual": "state = ACTIVE"},
    "in a state of the oldest": {"usual": "state = PAUSING"},
    "in a state of none": {"usual": "state = STARTING"},
    "live": {"usual": "live = true"},
    "not live": {"usual": "live = false"},
    "at a slot": {
        "nearly all": 'slot = "default"',
        "only the oldest match": 'slot = "attic"',
        "nothing matches": 'slot = "nothing"',
    },
    "created since": {
        "an hour": f"create_time >= {_HOUR}",
        "nothing matches": f"create_time >= {_NEVER}",
        "everything matches": f"create_time >= {_ALWAYS}",
    },
    "created before": {
        "only the oldest": f"create_time < {_OLD}",
        "nothing matches": f"create_time < {_ALWAYS}",
    },
    "active since": {
        "an hour": f"last_active_time >= {_HOUR}",
        "nothing matches": f"last_active_time >= {_NEVER}",
        "everything matches": f"last_active_time >= {_ALWAYS}",
    },
    "not active since": {
        "a day": f"last_active_time < {_DAY}",
        "only the oldest match": f"last_active_time < {_OLD}",
        "nothing matches": f"last_active_time < {_ALWAYS}",
    },
    "created and active within": {
        "a day": f"create_time >= {_DAY} AND last_active_time < {_HOUR}",
        "nothing matches": f"create_time >= {_HOUR} AND last_active_time < {_OLD}",
    },
    "of a user, in a state": {
        "usual": 'user_id = "u0" AND state = ENDED',
        "nothing matches": 'user_id = "nobody" AND state = ENDED',
    },
    "of a user, in a state of few": {
        "usual": 'user_id = "u7" AND state = PAUSED',
        "nearly nothing matches": 'user_id = "u0" AND state = PAUSED',
    },
    "of a project, in a state": {
        "usual": 'project_id = "nest" AND state = PAUSED',
        "nothing matches": 'project_id = "nowhere" AND state = PAUSED',
    },
    "of a project, in a state of none": {"usual": 'project_id = "nest" AND state = ENDING'},
    "of a project, live": {
        "usual": 'project_id = "nest" AND live = true',
        "nothing matches": 'project_id = "nowhere" AND live = true',
    },
    "of a project, at a slot": {
        "usual": 'project_id = "nest" AND slot = "default"',
        "nothing matches": 'project_id = "nest" AND slot = "attic-2"',
    },
    "of a project, active since": {
        "an hour": f'project_id = "nest" AND last_active_time >= {_HOUR}',
        "nothing matches": f'project_id = "nest" AND last_active_time >= {_NEVER}',
    },
    "live, not active since": {
        "a day": f"live = true AND last_active_time < {_DAY}",
        "only the oldest match": f"live = true AND last_active_time < {_OLD}",
    },
    "of a user or another": {
        "usual": 'user_id = "u7" OR user_id = "u8"',
        "many and none": 'user_id = "u0" OR user_id = "nobody"',
    },
    "of a project or of a user": {
        "usual": 'project_id = "nest" OR user_id = "u7"',
        "all of one are of the other": 'project_id = "nest" OR user_id = "u0"',
        "nothing matches": 'project_id = "nowhere" OR user_id = "nobody"',
    },
    "in a state or another": {"usual": "state = ACTIVE OR state = PAUSING"},
    "of a project or in a state": {
        "usual": 'project_id = "project-1" OR state = ACTIVE',
        "nearly all of both": 'project_id = "nest" OR state = ACTIVE',
    },
    "of a project, in a state or active since": {
        "usual": f'project_id = "nest" AND (state = ACTIVE OR last_active_time >= {_HOUR})',
        "nothing matches": f'project_id = "nowhere" AND (state = ACTIVE OR'
        f" last_active_time >= {_HOUR})",
    },
    "at a slot or active since": {
        "only the oldest match": f'slot = "attic" OR last_active_time >= {_NEVER}',
    },
    "of as many slots as a filter may have": {
        "only the oldest match": " OR ".join(
            ['slot = "attic"', *(f'slot = "none-{n}"' for n in range(1, ALTERNATIVES))]
        ),
    },
    "of as many users as a filter may have": {
        "usual": " OR ".join(f'user_id = "u{n}"' for n in range(ALTERNATIVES)),
    },
}


def _forms(name: str, filters: Mapping[str, str]) -> Iterator[Form]:
    """The statements of a filter in each order, for its first page and for a later one."""
    read = {case: listing.forms(parse(text)) for case, text in filters.items()}
    found = {forms for forms, _ in read.values()}
    assert len(found) == 1, f"{name}: filters of {len(found)} forms"
    (forms,) = found
    for seen, descending, after in product((False, True), (True, False), (False, True)):
        branches = list(listing._branches(forms, seen=seen))
        checked = sum(bool(branch.rest) for branch in branches)
        order = "last active" if seen else "created"
        ordered = f"{'newest' if descending else 'oldest'} {order} first"
        # A page is followed by another one only if something is in its range.
        ranged = after and any(branch.ranged for branch in branches)
        yield Form(
            f"{name}, {ordered}{', page 2' if after else ''}",
            tuple(
                Case(case, values)
                for case, (_, values) in read.items()
                if not (ranged and case == "nothing matches")
            ),
            arguments=(forms,),
            flags={"seen": seen, "descending": descending, "after": after},
            values=_position(filters, ranged=ranged) if after else {},
            limit=scans(checked),
        )


def _few(name: str, filters: Mapping[str, str]) -> Iterator[Form]:
    """The statements that read all sessions whose last activity the filter allows."""
    read = {case: listing.forms(parse(text)) for case, text in filters.items()}
    ((form,), _) = next(iter(read.values()))
    for descending, after in product((True, False), repeat=2):
        yield Form(
            f"{name}, {'newest' if descending else 'oldest'} first{', page 2' if after else ''}",
            tuple(Case(case, values) for case, (_, values) in read.items()),
            arguments=(form,),
            flags={"descending": descending, "after": after},
            values=_position(filters, ranged=False) if after else {},
            limit=scans(1),
            settings=("SET LOCAL enable_seqscan = off",),
        )


def _position(filters: Mapping[str, str], *, ranged: bool) -> dict[str, object]:
    """A position that is in the range of every filter, or in the middle."""
    age = "20 days"
    if ranged:
        age = "30 minutes" if any(">=" in text for text in filters.values()) else "79 days 6 hours"
    return {"after_time": Lookup(f"SELECT now() - interval '{age}'"), "after_id": ENDED}


_LISTS = [form for name, filters in _FILTERS.items() for form in _forms(name, filters)]
_OF_ACTIVITY = (
    *("active since", "not active since", "created and active within"),
    *("of a project, active since", "live, not active since"),
)
_LISTS_OF_FEW = [form for name in _OF_ACTIVITY for form in _few(name, _FILTERS[name])]

LISTED = with_defaults(
    (
        statements("storage.session.listing:statement", *_LISTS),
        statements("storage.session.listing:statement_of_few", *_LISTS_OF_FEW),
    ),
    {"tenant": DEFAULTS["tenant"], "size": DEFAULTS["size"]},
)
