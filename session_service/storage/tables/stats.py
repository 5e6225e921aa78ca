"""Figures that background passes keep: roll-ups of statistics, and counts of live sessions."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from session_service.storage.tables.schema import TIME, metadata

#: One row per period of `hours` (1 or 24, in UTC), tenant and project with something to count:
#: what `GetSessionStats` would count in it, in the form of `storage.session.stats_sql`. The empty
#: project id stands for all projects.
stats_rollups = sa.Table(
    "stats_rollups",
    metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("project_id", sa.Text, primary_key=True),
    sa.Column("hours", sa.SmallInteger, primary_key=True, autoincrement=False),
    sa.Column("start_time", TIME, primary_key=True),
    sa.Column("figures", JSONB, nullable=False),
)
#: By period: to replace its roll-ups, and to delete those past their retention.
sa.Index("stats_rollups_period", stats_rollups.c.hours, stats_rollups.c.start_time)

#: One row per background pass over figures: when the next one is due, which one replica claims, and
#: how far it is. `trim_time`: rows before it may have been deleted by retention.
stats_progress = sa.Table(
    "stats_progress",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("due_at", TIME, nullable=False),
    sa.Column("start_time", TIME),
    sa.Column("hours_end", TIME),
    sa.Column("days_end", TIME),
    sa.Column("trim_time", TIME),
    sa.Column("check_time", TIME),
)

#: Periods whose rows changed after they could have been rolled up. Triggers append to it, in the
#: transaction of the change. The roll-up of such a period is not used until it is made again.
stats_changes = sa.Table(
    "stats_changes",
    metadata,
    sa.Column("change_id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("hours", sa.SmallInteger, nullable=False),
    sa.Column("at", TIME, nullable=False),
    sa.Column("create_time", TIME, nullable=False, server_default=sa.func.now()),
)

#: The number of live sessions of each tenant, without the changes that are still in
#: `live_session_changes`.
live_session_counts = sa.Table(
    "live_session_counts",
    metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("live_count", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    sa.Column("check_time", TIME, nullable=False, server_default=sa.func.now()),
)
#: One row for each session that became live (1) or ceased to be (-1). A trigger on `sessions`
#: appends to it, and a background pass adds the rows to `live_session_counts`. No two transactions
#: that start or end sessions write the same row, so none waits for another one.
live_session_changes = sa.Table(
    "live_session_changes",
    metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("change_id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("delta", sa.SmallInteger, nullable=False),
    # Every row is deleted soon after its insert. Without frequent vacuums, a count would pass over
    # thousands of deleted entries of the index.
    postgresql_with={"autovacuum_vacuum_scale_factor": "0", "autovacuum_vacuum_threshold": "1000"},
)

#: One row: gauges that cost a read of all live sessions, as of `count_time`.
stats_gauges = sa.Table(
    "stats_gauges",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("counts", JSONB, nullable=False),
    sa.Column("count_time", TIME, nullable=False, server_default=sa.func.now()),
)
