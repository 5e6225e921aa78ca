"""Reading many sessions with their turns at once, for an export."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from session_service.storage.agent.tables import make_turn, turn_columns
from session_service.storage.database import Database, Statement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from session_service.domain.agent import AgentSession, Turn

#: What a turn costs in memory beside its bytes, roughly.
TURN_COST = 1024
#: `taken`: the first of the sessions, as many as fit, and at least one. `segment`: the branches
#: that their conversations run over (as `reads.lineage`, for many sessions). The answer has a row
#: with the startup context for each session that was taken, then a row for each turn. A session
#: that was purged meanwhile has a row without a startup context, and no turns: its turns may be
#: deleted already. LATERAL with ORDER BY makes the planner read each segment by the primary key of
#: llm_turns, however many rows it expects.
_TURN = [column.name for column in turn_columns()]
_READ = f"""
WITH RECURSIVE wanted AS (
    SELECT * FROM unnest(
        %(session_ids)s::text[], %(branches)s::bigint[], %(highs)s::bigint[], %(sizes)s::bigint[]
    ) WITH ORDINALITY AS w (session_id, branch_id, high, size, place)
), measured AS MATERIALIZED (
    SELECT w.place, w.branch_id, w.high, s.startup_context,
           coalesce(w.size + octet_length(s.startup_context), 0) AS size
    FROM wanted w
    LEFT JOIN llm_sessions s ON s.tenant = %(tenant)s AND s.session_id = w.session_id
), taken AS MATERIALIZED (
    SELECT * FROM (
        SELECT *, sum(size) OVER (ORDER BY place) AS through FROM measured
    ) summed
    WHERE through <= %(max_bytes)s OR place = 1
), segment (place, branch_id, parent_id, low, high) AS (
    SELECT t.place, b.branch_id, b.parent_id, b.parent_turn, t.high
    FROM taken t JOIN llm_branches b ON b.branch_id = t.branch_id
    WHERE t.startup_context IS NOT NULL AND t.high > 0
    UNION ALL
    SELECT g.place, b.branch_id, b.parent_id, b.parent_turn, g.low
    FROM segment g JOIN llm_branches b ON b.branch_id = g.parent_id
    WHERE g.low > 0
)
SELECT taken.place, taken.startup_context, {", ".join("NULL" for _ in _TURN)}
FROM taken
UNION ALL
SELECT segment.place, NULL, {", ".join(f"turn.{name}" for name in _TURN)}
FROM segment CROSS JOIN LATERAL (
    SELECT * FROM llm_turns t
    WHERE t.branch_id = segment.branch_id
      AND t.turn_number > segment.low AND t.turn_number <= segment.high
    ORDER BY t.turn_number
) turn
"""


@dataclass(slots=True)
class Conversation:
    """A session with its startup context, and the turns of the head that it has, oldest first."""

    session: AgentSession
    turns: list[Turn] = field(default_factory=list)
    complete: bool = True
    """False: the turns are larger than a read may be, and were not read."""


def _make_row(row: Sequence[Any]) -> tuple[int, str | Turn | None]:
    """The session's place, from 1, and its startup context or one of its turns."""
    return int(row[0]), row[1] if row[2] is None else make_turn(row[2:])


_CONVERSATIONS = Statement(_READ, {}, _make_row)


async def conversations(
    database: Database, sessions: Sequence[AgentSession], max_bytes: int
) -> tuple[list[Conversation], int]:
    """The first of the sessions, at least one, as far as they fit into `max_bytes`; and how many.

    The sessions are of one tenant. Each has the turns of the head that it was read with: an append
    or a rewind since then does not show. Those that were purged since then are left out.
    """
    sizes = [each.total_bytes + TURN_COST * each.turn_count for each in sessions]
    highs = [
        each.turn_count if size <= max_bytes else 0
        for each, size in zip(sessions, sizes, strict=True)
    ]
    params = {
        "tenant": sessions[0].tenant,
        "session_ids": [each.session_id for each in sessions],
        "branches": [each.head_branch for each in sessions],
        "highs": highs,
        "sizes": [size if high else 0 for size, high in zip(sizes, highs, strict=True)],
        "max_bytes": max_bytes,
    }
    taken = 0
    found: dict[int, Conversation] = {}
    turns: list[tuple[int, Turn]] = []
    for place, part in await database.fetch_all(_CONVERSATIONS, params):
        if part is None or isinstance(part, str):
            taken += 1
            if part is not None:
                session = sessions[place - 1]
                found[place] = Conversation(
                    replace(session, startup_context=part),
                    complete=session.turn_count == highs[place - 1],
                )
        else:
            turns.append((place, part))
    for place, turn in turns:
        found[place].turns.append(turn)
    for conversation in found.values():
        conversation.turns.sort(key=attrgetter("turn_number"))
    return [found[place] for place in sorted(found)], taken
