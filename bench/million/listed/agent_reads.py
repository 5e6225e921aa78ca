"""Reads of conversations."""

from __future__ import annotations

from itertools import product

from bench.million.listed.agents import AGENT_DEFAULTS
from bench.million.seed_agents import LONG_BRANCH, SET_ASIDE
from bench.million.statements import (
    Form,
    Limit,
    Lookup,
    case,
    statements,
    with_defaults,
)

_LARGEST = LONG_BRANCH + 50_000
_MAKER = "storage.agent.reads:_session_and_turns"
_NO_LIMIT = 2**62
_PLACES = (
    case(session_id="c20", branch_id=LONG_BRANCH + 20, last=10),
    case("short", session_id="a7", branch_id=7, last=1),
    case("the beginning of 50,000", session_id="c50000", branch_id=_LARGEST, last=3),
    case("the middle of 50,000", session_id="c50000", branch_id=_LARGEST, last=25_000),
    case("the end of 50,000", session_id="c50000", branch_id=_LARGEST, last=49_990),
    case("forked", session_id="f51", branch_id=300_000_051, last=1),
    case("rewound", session_id="a100", branch_id=SET_ASIDE + 100, last=1),
    case("none", session_id="nobody", branch_id=1, last=None),
)
_PAGES = tuple(
    Form(
        f"page, descending={descending}, of_branch={of_branch}",
        _PLACES,
        of="_page",
        flags={"descending": descending, "of_branch": of_branch},
        values={"high": None, "max_bytes": 3 * 1024 * 1024, "size": 20},
    )
    for descending, of_branch in product((False, True), repeat=2)
)
#: A search by halves probes 16 turns of 50,000.
_PROBED = Limit(pages=150, because="probes as many turns as the turn count has binary digits")
_CONVERSATIONS = ("c20", "a7", "c0", "c5000", "c50000", "f51", "nobody")
_CONTEXTS = tuple(
    Form(
        f"context, by_tokens={by_tokens}, estimates={estimates}",
        tuple(
            case(f"{words} of {session}", session_id=session, last_turns=turns, max_tokens=tokens)
            for session in _CONVERSATIONS
            for words, turns, tokens in (
                ("20 turns", 20, _NO_LIMIT),
                ("5,000 tokens", _NO_LIMIT, 5_000),
            )
        ),
        of="_context",
        flags={"by_tokens": by_tokens, "estimates": estimates},
        values={"max_bytes": 3 * 1024 * 1024},
        limit=_PROBED,
    )
    for by_tokens, estimates in product((False, True), repeat=2)
)
_UNSEEN = Form(
    "unseen",
    (
        case("all is seen", session_id="c50000", branch=_LARGEST, after=50_000),
        case("a few", session_id="c50000", branch=_LARGEST, after=49_990),
        case("all is new", session_id="c50000", branch=None, after=0),
        case("rewound", session_id="a100", branch=SET_ASIDE + 100, after=4),
        case("none", session_id="nobody", branch=None, after=0),
    ),
    of="_UNSEEN",
    values={"size": 100, "max_bytes": 4 * 1024 * 1024},
)
_SHORT = Lookup(
    "SELECT array_agg('a' || n ORDER BY n) FROM generate_series(1, least(500, %(count)s)) AS n"
)
_BRANCHES = Lookup("SELECT array_agg(n) FROM generate_series(1, least(500, %(count)s)) AS n")
_TWOS = Lookup("SELECT array_agg(2) FROM generate_series(1, least(500, %(count)s)) AS n")
_SIZES = Lookup("SELECT array_agg(400) FROM generate_series(1, least(500, %(count)s)) AS n")
#: What an export reads at once.
_EXPORTED = (
    case(session_ids=_SHORT, branches=_BRANCHES, highs=_TWOS, sizes=_SIZES),
    case(
        "of a long session",
        session_ids=["c50000"],
        branches=[_LARGEST],
        highs=[15_000],
        sizes=[4_000_000],
    ),
    case(
        "of forks",
        session_ids=["f51", "f151"],
        branches=[300_000_051, 300_000_151],
        highs=[2, 2],
        sizes=[400, 400],
    ),
    case("purged meanwhile", session_ids=["nobody"], branches=[1], highs=[2], sizes=[400]),
    case("without turns", session_ids=["c0"], branches=[LONG_BRANCH], highs=[0], sizes=[0]),
)

LISTED = with_defaults(
    (
        statements(_MAKER, *_PAGES, *_CONTEXTS, _UNSEEN),
        statements(
            "storage.agent.export:_CONVERSATIONS",
            Form("", _EXPORTED, values={"max_bytes": 4 * 1024 * 1024}),
        ),
    ),
    AGENT_DEFAULTS,
)
