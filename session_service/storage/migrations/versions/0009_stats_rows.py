"""Decisions that are there get their project while their session is; the figures' indexes.

Takes its time on a large table, and stops nobody: 100 s for a million decisions on two cores that
had five times as much to do, and no insert beside it took longer than 0.3 s. Each batch is a
transaction of its own, and the indexes are built beside the writes. Where it breaks off, it begins
anew.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_BACKFILL = """
DO $$
<<backfill>>
DECLARE
    last uuid := '00000000-0000-0000-0000-000000000000';
BEGIN
    <<batches>>
    LOOP
        WITH batch AS (
            SELECT decision_id FROM decisions WHERE decision_id > last
            ORDER BY decision_id LIMIT 10000
        ), filled AS (
            UPDATE decisions d SET project_id = s.project_id FROM batch b, sessions s
            WHERE d.decision_id = b.decision_id AND d.project_id IS NULL
              AND s.session_id = d.session_id
        )
        SELECT decision_id INTO last FROM batch ORDER BY decision_id DESC LIMIT 1;
        EXIT batches WHEN last IS NULL;
        COMMIT;
    END LOOP batches;
END backfill $$
"""
_INDEXES: dict[str, tuple[list[str], sa.TextClause | None]] = {
    "decisions_project": (["tenant", "project_id", "joined", "outcome", "create_time"], None),
    "decisions_replayed": (["tenant", "project_id", "create_time"], sa.text("replay_count > 0")),
}


def upgrade() -> None:
    with op.get_context().autocommit_block():
        # Waits for whoever has begun to write before; nobody waits for it.
        op.execute("SET lock_timeout = 0")
        # argued: backfill: of a column that the version before does not know
        # argued: batches: so many rows at a time that nobody waits for them
        op.execute(_BACKFILL)
        for name, (columns, where) in _INDEXES.items():
            # argued: decisions_project: what an unfinished build has left serves nobody
            # argued: decisions_replayed: the same
            op.drop_index(name, "decisions", if_exists=True, postgresql_concurrently=True)
            op.create_index(
                name, "decisions", columns, postgresql_concurrently=True, postgresql_where=where
            )


def downgrade() -> None:
    for name in _INDEXES:
        op.drop_index(name, "decisions")
