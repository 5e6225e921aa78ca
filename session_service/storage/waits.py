"""How long starts took lately, for whoever is to choose between them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from session_service.domain.session import Outcome
from session_service.storage.database import compiled
from session_service.storage.tables import decisions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from session_service.storage.database import Database

#: So many of the newest decisions with an outcome say how long it takes.
SAMPLE = 50
#: Reuses are looked for among so many of the newest decisions.
NEWEST = 2000
_REUSED: sa.ColumnElement[str] = sa.literal_column("'REUSED'")
_STARTS = ("StartSession", "ResumeSession")


def _sample(outcome: Outcome) -> sa.Select[Any]:
    """How long the newest starts with this outcome took, in ms."""
    if outcome is Outcome.REUSED:
        # In no index, since they are most: among the newest decisions, or not at all.
        ids = decisions.c.decision_id.desc()
        rows: sa.FromClause = (
            sa.select(decisions).order_by(ids).limit(NEWEST).subquery("newest_decisions")
        )
    else:
        rows = decisions
    took = sa.func.extract("epoch", rows.c.finish_time - rows.c.create_time) * 1000
    sample = (
        sa.select(took.label("took"))
        .where(
            rows.c.outcome == sa.literal_column(f"'{outcome}'"),
            # In the words of the index, so that it is used.
            *([] if outcome is Outcome.REUSED else [rows.c.outcome != _REUSED]),
            sa.not_(rows.c.joined),
            rows.c.method.in_([sa.literal_column(f"'{method}'") for method in _STARTS]),
        )
        .order_by(rows.c.decision_id.desc())
        .limit(SAMPLE)
        .subquery(f"sample_{outcome.lower()}")
    )
    median: sa.ColumnElement[Any] = sa.func.percentile_disc(0.5).within_group(sample.c.took)
    word: sa.ColumnElement[Any] = sa.literal_column(f"'{outcome}'")
    return sa.select(word, sa.cast(median, sa.BigInteger))


_WAITS = compiled(
    sa.union_all(*(_sample(outcome) for outcome in Outcome)),
    lambda row: (Outcome(row[0]), row[1]),
)


async def by_outcome(database: Database) -> Mapping[Outcome, int]:
    """The median of what the newest starts took, in ms, by outcome; of those that there were."""
    rows = await database.fetch_all(_WAITS, {})
    return {outcome: took for outcome, took in rows if took is not None}
