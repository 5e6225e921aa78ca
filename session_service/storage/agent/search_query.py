"""The statement of a search: it reads the index back in time, by windows, until it has enough.

What a search costs must not depend on how many messages match. PostgreSQL finds the matches of a
word in its index all at once, so for a word that two million messages have, that takes seconds; and
no statistics tell whether a word is frequent, in general or lately. So the index `llm_search_words`
also has keys (`llm_search_keys`): numbers that say in which window of turn_ids a message is, what
its role and its agent's role are, and when its turn was appended. A scan for the words and for a
window's key reads what has both, and skips the rest.

A step looks at a large window (2^16 turns), and stops after PROBE matches. If there are no more,
that is all the window has. So a word that is rare or absent costs a scan for each large window. If
there are more, the step looks at the window's small windows (2^11 turns), the newest first. The
search ends as soon as it has one match more than are ranked. A few small windows come first, by
themselves, for words that are frequent among the newest messages.

If all words must be there, each is a condition of its own: then the scan skips from match to match
of the rarest. In one condition, it would read all messages that have the first.

A time span is covered by keys too: spans of 2^12 to 2^30 s (68 minutes to 34 years). Keys are
hashes, and those of spans and branches are coarse, so they only choose candidates; the conditions
themselves are checked in the row.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime, timedelta

#: Turn ids in a window, as a power of two. The keys in `llm_search_keys` have the same.
SMALL = 11
LARGE = 16
#: How many of the newest small windows are searched first.
NEWEST = 4
#: The most conditions on words.
CONJUNCTS = 8
#: The most matches that are taken from a large window at once.
PROBE = 1000
#: Seconds in the spans of time that have keys, as powers of two, and the last second that has one.
SPANS = (12, 14, 16, 18, 20, 22, 24, 27, 30)
LAST_SECOND = 2**32 - 1


@dataclass(frozen=True, slots=True)
class SearchQuery:
    """A page of a search. Empty or None is no condition.

    `through`: the last turn_id to search, so that later pages search the same turns as the first;
    None: up to the last that is indexed. `since`: the first turn_id to search, for the same reason.
    `skip`: the hits of earlier pages.
    """

    tenant: str
    query: str
    session_id: str | None
    agent_role: str | None
    message_roles: tuple[str, ...]
    from_time: datetime | None
    to_time: datetime | None
    through: int | None
    skip: int
    size: int
    since: int = 0


@dataclass(frozen=True, slots=True)
class Window:
    """The turn_ids from `low` to `high`, all with the key of number `low >> bits`."""

    bits: int
    low: int
    high: int


def windows(since: int, through: int) -> Iterator[Window]:
    """The turn_ids from `since` to `through`, newest first: some small windows, then large ones."""
    high = through
    count = 0
    while high >= since:
        bits = SMALL if count < NEWEST else LARGE
        low = high >> bits << bits
        yield Window(bits, max(low, since), high)
        high = low - 1
        count += 1


def spans(start: datetime | None, end: datetime | None) -> list[tuple[int, int]]:
    """Spans that cover the time from `start` to before `end`: their powers of two, and numbers.

    Large ones where they fit, so that some tens cover any time.
    """
    low = 0 if start is None else _second(start)
    high = LAST_SECOND if end is None else _second(end)
    found: list[tuple[int, int]] = []
    first, last = low >> SPANS[0], high >> SPANS[0]
    for bits, larger in zip(SPANS, (*SPANS[1:], None), strict=True):
        if larger is None:
            found += [(bits, number) for number in range(first, last + 1)]
            break
        ratio = 1 << (larger - bits)
        while first <= last and first % ratio:
            found.append((bits, first))
            first += 1
        while first <= last and (last + 1) % ratio:
            found.append((bits, last))
            last -= 1
        if first > last:
            break
        first, last = first // ratio, last // ratio
    return found


def _second(time: datetime) -> int:
    return min(max(0, int(time.timestamp() // 1)), LAST_SECOND)


#: The session to report for a match. A turn can be of many conversations (forks), or of none any
#: more (rewinds). First choice: the session whose head branch holds the turn. Else a session whose
#: lineage reaches the turn through branches that leave this one at the turn or later (`heir`):
#: preferably the session that owns the branch. No row: no session has the turn, and it is no match.
_SEEN = """
CROSS JOIN LATERAL (
    SELECT s.session_id, s.agent_role FROM llm_sessions s WHERE s.head_branch = c.branch_id
    UNION ALL
    (
        WITH RECURSIVE heir (branch_id) AS (
            SELECT b.branch_id FROM llm_branches b
            WHERE b.parent_id = c.branch_id AND b.parent_turn >= c.turn_number
            UNION ALL
            SELECT b.branch_id FROM heir JOIN llm_branches b ON b.parent_id = heir.branch_id
        )
        SELECT s.session_id, s.agent_role FROM heir
        JOIN llm_sessions s ON s.head_branch = heir.branch_id
        ORDER BY s.session_id <> (
            SELECT coalesce(o.session_id, '') FROM llm_branches o WHERE o.branch_id = c.branch_id
        ), s.session_id
        LIMIT 1
    )
    LIMIT 1
) seen
"""
#: The lineage of the one session that is searched (as `reads.lineage`), and its turn_ids.
_LINEAGE = """
segment (branch_id, parent_id, low, high) AS (
    SELECT b.branch_id, b.parent_id, b.parent_turn, s.turn_count
    FROM llm_sessions s JOIN llm_branches b ON b.branch_id = s.head_branch
    WHERE s.tenant = %(tenant)s AND s.session_id = %(session_id)s
    UNION ALL
    SELECT b.branch_id, b.parent_id, b.parent_turn, g.low
    FROM segment g JOIN llm_branches b ON b.branch_id = g.parent_id
    WHERE g.low > 0
), bounds AS MATERIALIZED (
    SELECT min(t.turn_id) AS first, max(t.turn_id) AS last
    FROM segment g CROSS JOIN LATERAL (
        SELECT t.turn_id FROM llm_turns t
        WHERE t.branch_id = g.branch_id AND t.turn_number = ANY(ARRAY[g.low + 1, g.high])
          AND g.low < g.high
        ORDER BY t.turn_number
    ) t
),
"""
#: Turns of one conversation are in the order of their turn_ids.
_IN_BOUNDS = "AND high >= (SELECT first FROM bounds) AND low <= (SELECT last FROM bounds)"
_IN_SESSION = """
JOIN segment g ON c.branch_id = g.branch_id AND c.turn_number > g.low AND c.turn_number <= g.high
CROSS JOIN (
    SELECT session_id, agent_role FROM llm_sessions
    WHERE tenant = %(tenant)s AND session_id = %(session_id)s
) seen
"""
_KEYS = "llm_search_keys(c.tenant, c.turn_id, c.branch_id, c.role, c.agent_role, c.create_time)"
#: The matches in a window. The index asks for its keys in this order: the window's list is long,
#: and is read only where the keys before it agree. Those of time come after it, because a window
#: has few times. The tenant is compared so that no other index serves: the window's key has the
#: tenant already.
_MATCHES = f"""
SELECT c.branch_id, c.turn_number, c.message_index, c.turn_id, c.create_time, c.role, c.document
FROM llm_search c
WHERE {{words}} {{filters}}
  AND {_KEYS} @> ARRAY[hashtextextended('w' || {{bits}} || '/' || %(tenant)s, {{number}})]
  {{times}}
  AND c.tenant || '' = %(tenant)s AND c.turn_id BETWEEN step.low AND step.high
"""
_ORDER = "ORDER BY turn_id DESC, message_index DESC"
#: Ends a list of windows when the time for the search is over. OFFSET 0 keeps the condition where
#: it is, so that it is checked before each window, and not for each match.
_IN_TIME = "WHERE clock_timestamp() < (SELECT until FROM asked)"
#: LIMIT reads the windows one after the other, and none after the last that is needed: LATERAL
#: makes the planner take them in their order.
_QUERY = f"""
WITH RECURSIVE {{lineage}}
asked AS MATERIALIZED (
    SELECT %(query)s::tsquery AS query,
           statement_timestamp() + %(budget)s AS until
), candidate AS MATERIALIZED (
    SELECT c.*, seen.session_id, seen.agent_role
    FROM (
        SELECT * FROM unnest(%(bits)s::int[], %(lows)s::bigint[], %(highs)s::bigint[])
            AS step (bits, low, high)
        {_IN_TIME} {{in_bounds}} OFFSET 0
    ) step
    CROSS JOIN LATERAL (
        WITH few AS MATERIALIZED (
            {{few}} LIMIT {PROBE} + 1
        )
        (SELECT * FROM few WHERE (SELECT count(*) FROM few) <= {PROBE} {_ORDER})
        UNION ALL
        SELECT found.*
        FROM (
            SELECT number
            FROM generate_series(step.high >> {SMALL}, step.low >> {SMALL}, -1) AS small (number)
            {_IN_TIME} OFFSET 0
        ) small
        CROSS JOIN LATERAL ({{many}} {_ORDER}) found
        WHERE (SELECT count(*) FROM few) > {PROBE}
    ) c
    {{seen}}
    {{of_role}}
    LIMIT %(ranked)s + 1
), newest AS (
    SELECT *, row_number() OVER ({_ORDER}) AS place FROM candidate
), best AS (
    SELECT *, ts_rank_cd(document, (SELECT query FROM asked)) AS rank
    FROM newest WHERE place <= %(ranked)s
    ORDER BY rank DESC, place LIMIT %(size)s OFFSET %(skip)s
), summary AS (
    SELECT count(*) > %(ranked)s OR clock_timestamp() >= (SELECT until FROM asked) AS cut,
           min(turn_id) FILTER (WHERE place <= %(ranked)s) AS since
    FROM newest
)
SELECT summary.cut, summary.since, hit.*
FROM summary LEFT JOIN (
    SELECT b.session_id, b.agent_role, b.turn_number, b.branch_id, b.message_index, b.role,
       left(ts_headline({{language}}, left(t.contents[b.message_index + 1], 100000),
            (SELECT query FROM asked),
            'StartSel=«,StopSel=»,MaxFragments=2,MinWords=8,MaxWords=24'), 1000) AS highlight,
       b.rank, b.create_time, b.place
    FROM best b
    JOIN llm_turns t ON t.branch_id = b.branch_id AND t.turn_number = b.turn_number
) hit ON true
ORDER BY hit.rank DESC, hit.place
"""
_LANGUAGE = "%(language)s::regconfig"
_FILTERS = {
    "session_id": f"""
  AND {_KEYS} && ARRAY(
      SELECT hashtextextended('branch', branch_id & 16383) FROM segment
  )""",
    "agent_role": f"""
  AND {_KEYS} && ARRAY[
      hashtextextended('agent/' || %(tenant)s || '/' || %(agent_role)s, 0),
      hashtextextended('agent', 0)
  ]""",
    "message_roles": f"""
  AND {_KEYS} && ARRAY(
      SELECT hashtextextended('role/' || role, 0) FROM unnest(%(message_roles)s::text[]) AS r (role)
  )
  AND c.role = ANY(%(message_roles)s)""",
}
_TIMES = {
    "spans": f"""
  AND {_KEYS} && ARRAY(
      SELECT hashtextextended('t' || bits, number)
      FROM unnest(%(span_bits)s::int[], %(span_numbers)s::bigint[]) AS s (bits, number)
  )""",
    "from_time": "AND c.create_time >= %(from_time)s",
    "to_time": "AND c.create_time < %(to_time)s",
}


#: A lexeme in the text of a tsquery; quotes and backslashes within it are doubled.
_LEXEME = re.compile(r"'(?:[^'\\]|''|\\\\)*'")


def conjuncts(tsquery: str) -> list[str]:
    """Queries of which a document must match each, in place of this one; text of a tsquery.

    Those that exclude words stay with the first that does not: alone, they match nearly everything.
    """
    plain = _LEXEME.sub(lambda found: "x" * len(found[0]), tsquery)
    depth, start = 0, 0
    parts: list[str] = []
    for place, character in enumerate(plain):
        depth += (character == "(") - (character == ")")
        if depth == 0 and character == "|":
            return [tsquery]
        if depth == 0 and character == "&":
            parts.append(tsquery[start:place].strip())
            start = place + 1
    parts.append(tsquery[start:].strip())
    wanted = list(dict.fromkeys(part for part in parts if not part.startswith("!")))
    if not wanted or len(wanted) > CONJUNCTS:
        return [tsquery]
    excluded = [part for part in parts if part.startswith("!")]
    return [" & ".join([wanted[0], *excluded]), *wanted[1:]]


def search_statement(query: SearchQuery, tsquery: str) -> str:
    """The statement for a query, and for its text as a tsquery.

    Which conditions it has depends on the number of conjuncts, and on the fields that are set.
    """
    values = {
        "session_id": query.session_id,
        "agent_role": query.agent_role,
        "message_roles": query.message_roles,
        "spans": query.from_time or query.to_time,
        "from_time": query.from_time,
        "to_time": query.to_time,
    }
    filters, times = (
        " ".join(condition for name, condition in conditions.items() if values[name])
        for conditions in (_FILTERS, _TIMES)
    )
    of_session = query.session_id is not None
    words = len(conjuncts(tsquery))
    conditions = " AND ".join(f"c.document @@ %(word{place})s::tsquery" for place in range(words))
    return _QUERY.format(
        lineage=_LINEAGE if of_session else "",
        in_bounds=_IN_BOUNDS if of_session else "",
        seen=_IN_SESSION if of_session else _SEEN,
        of_role="WHERE seen.agent_role = %(agent_role)s" if query.agent_role else "",
        few=_MATCHES.format(
            bits="step.bits",
            number="step.low >> step.bits",
            words=conditions,
            filters=filters,
            times=times,
        ),
        many=_MATCHES.format(
            bits=SMALL, number="small.number", words=conditions, filters=filters, times=times
        ),
        language=_LANGUAGE,
    )


def search_parameters(
    query: SearchQuery,
    tsquery: str,
    through: int,
    language: str,
    ranked: int,
    budget: timedelta,
) -> dict[str, Any]:
    """The statement's parameters. Any: values of every type."""
    steps = list(windows(query.since, through))
    covered = spans(query.from_time, query.to_time) if query.from_time or query.to_time else []
    return {
        "tenant": query.tenant,
        "query": tsquery,
        **{f"word{place}": word for place, word in enumerate(conjuncts(tsquery))},
        "session_id": query.session_id,
        "agent_role": query.agent_role,
        "message_roles": list(query.message_roles),
        "from_time": query.from_time,
        "to_time": query.to_time,
        "span_bits": [bits for bits, _ in covered],
        "span_numbers": [number for _, number in covered],
        "bits": [step.bits for step in steps],
        "lows": [step.low for step in steps],
        "highs": [step.high for step in steps],
        "language": language,
        "ranked": ranked,
        "budget": budget,
        "size": query.size,
        "skip": query.skip,
    }
