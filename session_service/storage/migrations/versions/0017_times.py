"""Indexes on time that are read for the figures of the last hour.

They are built with smaller ranges, and a range is summarized as soon as it is full: without that,
all rows since the last vacuum are read for the figures of an hour.

Takes seconds on a large table, and stops nobody. Every step can be repeated.
"""

from __future__ import annotations

from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

#: The names of the indexes until revision 0016 and from now on; the tables; the columns.
_TIMES = (
    ("decisions_time", "decisions_created", "decisions", "create_time"),
    ("session_ends_time", "session_ends_ended", "session_ends", "end_time"),
    ("choices_time", "choices_created", "choices", "create_time"),
)


def upgrade() -> None:
    with op.get_context().autocommit_block():
        # Waits for whoever has begun to write before; nobody waits for it.
        op.execute("SET lock_timeout = 0")
        for old, new, table, column in _TIMES:
            # argued: decisions_created: what an unfinished build has left serves nobody
            # argued: session_ends_ended: the same
            # argued: choices_created: the same
            op.drop_index(new, table, if_exists=True, postgresql_concurrently=True)
            op.create_index(
                new,
                table,
                [column],
                postgresql_using="brin",
                postgresql_concurrently=True,
                postgresql_with={"pages_per_range": 32, "autosummarize": "on"},
            )
            # argued: decisions_time: the new index serves what it did
            # argued: session_ends_time: the same
            # argued: choices_time: the same
            op.drop_index(old, table, if_exists=True, postgresql_concurrently=True)


def downgrade() -> None:
    for old, new, table, column in _TIMES:
        op.create_index(old, table, [column], postgresql_using="brin")
        op.drop_index(new, table)
