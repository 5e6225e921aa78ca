"""Searches in the messages of agent sessions: each word with each filter."""

from __future__ import annotations

from datetime import timedelta
from itertools import product
from typing import Any

from bench.million.listed.agents import AGENT_DEFAULTS
from bench.million.listed.known import NOW
from bench.million.statements import (
    Form,
    Limit,
    Lookup,
    case,
    statements,
    with_defaults,
)
from session_service.storage.agent.search import RANKED
from session_service.storage.agent.search_query import (
    SearchQuery,
    search_parameters,
    windows,
)

#: As PostgreSQL reads the words. The word of rank r is in about 130 % / r of the messages.
_WORDS = {
    "a word of most": "'w1'",
    "a common word": "'w20'",
    "a word of some": "'w700'",
    "a rare word": "'w150000'",
    "an absent word": "'wnever'",
    "two words": "'w20' & 'w700'",
    "two words that are seldom together": "'w4000' & 'w5000'",
    "a common and an absent word": "'w1' & 'wnever'",
    "a common or an absent word": "'w20' | 'wnever'",
    "a common word without another": "'w20' & !'w1'",
}
#: Any: the fields have types of their own.
_NOTHING: dict[str, Any] = {
    "session_id": None,
    "agent_role": None,
    "message_roles": (),
    "from_time": None,
    "to_time": None,
}
_FILTERS: dict[str, dict[str, Any]] = {
    "everywhere": {},
    "of a role": {"agent_role": "role-1"},
    "of a rare role": {"agent_role": "rare"},
    "of a role of one old session": {"agent_role": "oldest"},
    "by users": {"message_roles": ("user",)},
    "by tools": {"message_roles": ("tool",)},
    "in a long session": {"session_id": "c50000"},
    "in a short session": {"session_id": "a7"},
    "of the last day": {"from_time": NOW - timedelta(days=1)},
    "of the first day": {"to_time": NOW - timedelta(days=79)},
}
#: A page of a search ranks at most a thousand matches, and reads the session of each.
_RANKED = Limit(pages=22_000, because="ranks a thousand matches, and reads the session of each")


#: So long that it is never over: the pages count, and not the time.
_BUDGET = timedelta(hours=1)


def _query(words: str, filters: dict[str, Any]) -> SearchQuery:
    given = {**_NOTHING, **filters}
    return SearchQuery(tenant="default", query=words, through=None, skip=0, size=51, **given)


def _steps(of: str) -> Lookup:
    """A field of the windows of a search of all turns."""
    return Lookup(
        "SELECT indexed_through FROM llm_search_state",
        lambda through: [getattr(step, of) for step in windows(0, through)],
    )


def _search(name: str, words: str, where: str, filters: dict[str, Any]) -> Form:
    query = _query(words, filters)
    values = search_parameters(query, words, 0, "english", RANKED, _BUDGET)
    steps = {"bits": _steps("bits"), "lows": _steps("low"), "highs": _steps("high")}
    return Form(
        f"{name} {where}",
        (case(),),
        of="search_statement",
        arguments=(query, words),
        values={**values, **steps},
        limit=_RANKED,
        prepared=False,
    )


_SEARCHES = tuple(
    _search(name, words, where, filters)
    for (name, words), (where, filters) in product(_WORDS.items(), _FILTERS.items())
)
_PROGRESS = Form(
    "progress",
    (
        case("all is indexed", counted=1000),
        case(
            "nothing is indexed",
            counted=1000,
            before=("UPDATE llm_search_state SET indexed_through = 0",),
            limit=Limit(pages=1_100, because="counts at most 1,000 turns"),
        ),
    ),
    of="_PROGRESS",
    values={"language": "english", "query": "w1"},
)

LISTED = with_defaults(
    (statements("storage.agent.search:search", _PROGRESS, *_SEARCHES),), AGENT_DEFAULTS
)
