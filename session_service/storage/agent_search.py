"""Finding messages by their words.

A frequent word matches more than can be ranked while somebody waits. So only the newest matches
are ranked: few of a rare word, which its index finds, and of a frequent one as many as come first
when reading back in time. The price of both is bounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime, timedelta

    from session_service.storage.database import Database

#: How many matches are ranked.
RANKED = 1000
#: How many turns that are not indexed yet are counted.
COUNTED = 1000

#: The session that a candidate is part of: the one that its branch is the head of, else its own
#: session or whichever shares it, by way of a branch that leaves it later.
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
#: The one session's turns.
_LINEAGE = """
segment (branch_id, parent_id, low, high) AS (
    SELECT b.branch_id, b.parent_id, b.parent_turn, s.turn_count
    FROM llm_sessions s JOIN llm_branches b ON b.branch_id = s.head_branch
    WHERE s.tenant = %(tenant)s AND s.session_id = %(session_id)s
    UNION ALL
    SELECT b.branch_id, b.parent_id, b.parent_turn, g.low
    FROM segment g JOIN llm_branches b ON b.branch_id = g.parent_id
),
"""
_IN_SESSION = """
JOIN segment g ON c.branch_id = g.branch_id AND c.turn_number > g.low AND c.turn_number <= g.high
JOIN llm_sessions seen ON seen.tenant = %(tenant)s AND seen.session_id = %(session_id)s
"""
_QUERY = """
WITH RECURSIVE {lineage}
candidate AS MATERIALIZED (
    SELECT c.branch_id, c.turn_number, c.message_index, c.create_time, c.role, c.document,
           seen.session_id, seen.agent_role
    FROM llm_search c {seen}
    WHERE c.tenant = %(tenant)s AND c.turn_id <= %(through)s AND c.document @@ {query} {filters}
    ORDER BY c.create_time DESC, c.branch_id DESC, c.turn_number DESC, c.message_index DESC
    LIMIT %(ranked)s + 1
), newest AS (
    SELECT *, row_number() OVER (
        ORDER BY create_time DESC, branch_id DESC, turn_number DESC, message_index DESC
    ) AS place, count(*) OVER () AS total FROM candidate
), best AS (
    SELECT *, ts_rank_cd(document, {query}) AS rank FROM newest WHERE place <= %(ranked)s
    ORDER BY rank DESC, place LIMIT %(size)s OFFSET %(skip)s
)
SELECT b.session_id, b.agent_role, b.turn_number, b.branch_id, b.message_index, b.role,
       left(ts_headline({language}, left(t.contents[b.message_index + 1], 100000), {query},
                        'StartSel=«,StopSel=»,MaxFragments=2,MinWords=8,MaxWords=24'), 1000),
       b.rank, b.create_time, b.total
FROM best b
JOIN llm_turns t ON t.branch_id = b.branch_id AND t.turn_number = b.turn_number
ORDER BY b.rank DESC, b.place
"""
_LANGUAGE = "%(language)s::regconfig"
_TSQUERY = f"websearch_to_tsquery({_LANGUAGE}, %(query)s)"
_FILTERS = {
    "agent_role": "AND seen.agent_role = %(agent_role)s",
    "message_roles": "AND c.role = ANY(%(message_roles)s)",
    "from_time": "AND c.create_time >= %(from_time)s",
    "to_time": "AND c.create_time < %(to_time)s",
}
_INDEX = """
SELECT state.indexed_through, pending.count,
       CASE WHEN pending.count > 0
            THEN now() - greatest(pending.oldest, state.indexed_at) ELSE interval '0' END
FROM llm_search_state state
CROSS JOIN LATERAL (
    SELECT count(*), min(create_time) AS oldest FROM (
        SELECT create_time FROM llm_turns
        WHERE turn_id > state.indexed_through AND tenant = %(tenant)s
        ORDER BY turn_id LIMIT %(counted)s
    ) turn
) pending
"""


@dataclass(frozen=True, slots=True)
class Search:
    """What to find. `through` None: in all that is indexed, which the answer tells."""

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


@dataclass(frozen=True, slots=True)
class Hit:
    """A message that was found."""

    session_id: str
    agent_role: str
    turn_number: int
    branch_id: int
    message_index: int
    role: str
    highlight: str
    rank: float
    create_time: datetime
    total: int


@dataclass(frozen=True, slots=True)
class Found:
    """What was found within the turns up to `through`; and what is not indexed yet."""

    hits: list[Hit]
    through: int
    unindexed: int
    lag: timedelta

    @property
    def older_left_out(self) -> bool:
        """Whether more match than are ranked."""
        return bool(self.hits) and self.hits[0].total > RANKED


def statement(wanted: Search) -> tuple[str, dict[str, Any]]:
    """The query and its parameters. Any: values of every type."""
    params: dict[str, Any] = {
        "agent_role": wanted.agent_role,
        "message_roles": list(wanted.message_roles),
        "from_time": wanted.from_time,
        "to_time": wanted.to_time,
    }
    filters = " ".join(_FILTERS[name] for name, value in params.items() if value)
    of_session = wanted.session_id is not None
    query = _QUERY.format(
        lineage=_LINEAGE if of_session else "",
        seen=_IN_SESSION if of_session else _SEEN,
        query=_TSQUERY,
        language=_LANGUAGE,
        filters=filters,
    )
    params |= {
        "tenant": wanted.tenant,
        "session_id": wanted.session_id,
        "query": wanted.query,
        "ranked": RANKED,
        "size": wanted.size,
        "skip": wanted.skip,
    }
    return query, params


async def search(database: Database, language: str, wanted: Search) -> Found:
    """The messages that match, best first."""
    query, params = statement(wanted)
    async with database.connection() as connection:
        cursor = await connection.execute(
            _INDEX.encode(), {"tenant": wanted.tenant, "counted": COUNTED}
        )
        state: Sequence[Any] | None = await cursor.fetchone()
        if state is None:
            raise AssertionError("the migration made the row")
        through = state[0] if wanted.through is None else wanted.through
        # Not prepared: which index is best depends on how frequent the words are.
        cursor = await connection.execute(
            query.encode(), params | {"through": through, "language": language}, prepare=False
        )
        hits = [Hit(*row) for row in await cursor.fetchall()]
    return Found(hits, through, state[1], state[2])
