"""Figures that are kept: roll-ups of statistics, and the number of live sessions of each tenant.

Triggers append to tables of changes, in the transaction of the change, so that replicas of the
version before do so too. CREATE TRIGGER waits until the transactions that write to the table have
ended, and keeps others from writing meanwhile: it waits half a second at most, and is tried again.
Every step can be repeated.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)
_LIVE = "IN ('STARTING', 'ACTIVE', 'PAUSING', 'PAUSED')"
#: What is older than this when it changes may have been rolled up. Longer than any transaction.
_SETTLED = "now() - interval '5 minutes'"

# The bodies have no line breaks after a semicolon: tests split the migration there.
# argued: count_live_change: a new function, which a trigger of this migration calls
_COUNT_LIVE_CHANGE = (
    "CREATE OR REPLACE FUNCTION count_live_change() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
    "IF TG_OP = 'DELETE' THEN "
    "INSERT INTO live_session_changes (tenant, delta) VALUES (OLD.tenant, -1); "
    f"ELSIF NEW.state {_LIVE} THEN "
    "INSERT INTO live_session_changes (tenant, delta) VALUES (NEW.tenant, 1); "
    "ELSE INSERT INTO live_session_changes (tenant, delta) VALUES (NEW.tenant, -1); "
    "END IF; RETURN NULL; END $$"
)
# argued: note_late_decision: the same
_NOTE_LATE_DECISION = (
    "CREATE OR REPLACE FUNCTION note_late_decision() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
    "INSERT INTO stats_changes (hours, at) VALUES (1, date_trunc('hour', OLD.create_time, 'UTC')); "
    "RETURN NULL; END $$"
)
# argued: note_late_end: the same
_NOTE_LATE_END = (
    "CREATE OR REPLACE FUNCTION note_late_end() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
    "INSERT INTO stats_changes (hours, at) VALUES (1, date_trunc('hour', NEW.end_time, 'UTC')); "
    "RETURN NULL; END $$"
)
# argued: note_removed_ends: the same
_NOTE_REMOVED_ENDS = (
    "CREATE OR REPLACE FUNCTION note_removed_ends() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
    "INSERT INTO stats_changes (hours, at) "
    "SELECT DISTINCT 1, date_trunc('hour', end_time, 'UTC') FROM removed "
    f"WHERE end_time < {_SETTLED}; RETURN NULL; END $$"
)
# argued: note_late_agent_session: the same
_NOTE_LATE_AGENT_SESSION = (
    "CREATE OR REPLACE FUNCTION note_late_agent_session() RETURNS trigger LANGUAGE plpgsql AS $$ "
    "BEGIN INSERT INTO llm_stats_changes (tenant, start_time) "
    "VALUES (NEW.tenant, date_trunc('day', NEW.created_at, 'UTC')); RETURN NULL; END $$"
)
# argued: note_removed_agent_sessions: the same
_NOTE_REMOVED_AGENT_SESSIONS = (
    "CREATE OR REPLACE FUNCTION note_removed_agent_sessions() RETURNS trigger LANGUAGE plpgsql "
    "AS $$ BEGIN INSERT INTO llm_stats_changes (tenant, start_time) "
    "SELECT DISTINCT tenant, date_trunc('day', created_at, 'UTC') FROM removed "
    f"WHERE created_at < {_SETTLED}; RETURN NULL; END $$"
)
_FUNCTIONS = (
    _COUNT_LIVE_CHANGE,
    _NOTE_LATE_DECISION,
    _NOTE_LATE_END,
    _NOTE_REMOVED_ENDS,
    _NOTE_LATE_AGENT_SESSION,
    _NOTE_REMOVED_AGENT_SESSIONS,
)
#: By name and table: when, for what, and which function.
# argued: sessions_live_inserted: an insert and an update by the version before append a row too
# argued: sessions_live_updated: the same
# argued: sessions_live_deleted: the same
# argued: decisions_late: the same
# argued: session_ends_late: the same
# argued: session_ends_removed: the same
# argued: llm_sessions_late_insert: the same
# argued: llm_sessions_late_update: the same
# argued: llm_sessions_removed: the same
_TRIGGERS = {
    ("sessions_live_inserted", "sessions"): (
        "INSERT",
        f"FOR EACH ROW WHEN (NEW.state {_LIVE})",
        "count_live_change",
    ),
    ("sessions_live_updated", "sessions"): (
        "UPDATE OF state",
        f"FOR EACH ROW WHEN ((OLD.state {_LIVE}) <> (NEW.state {_LIVE}))",
        "count_live_change",
    ),
    ("sessions_live_deleted", "sessions"): (
        "DELETE",
        f"FOR EACH ROW WHEN (OLD.state {_LIVE})",
        "count_live_change",
    ),
    # A request id that is freed changes no figure.
    ("decisions_late", "decisions"): (
        "UPDATE OF outcome, joined, attempts, error, finish_time, replay_count, project_id",
        f"FOR EACH ROW WHEN (OLD.create_time < {_SETTLED})",
        "note_late_decision",
    ),
    ("session_ends_late", "session_ends"): (
        "INSERT OR UPDATE",
        f"FOR EACH ROW WHEN (NEW.end_time < {_SETTLED})",
        "note_late_end",
    ),
    ("session_ends_removed", "session_ends"): (
        "DELETE",
        "REFERENCING OLD TABLE AS removed FOR EACH STATEMENT",
        "note_removed_ends",
    ),
    ("llm_sessions_late_insert", "llm_sessions"): (
        "INSERT",
        f"FOR EACH ROW WHEN (NEW.created_at < {_SETTLED})",
        "note_late_agent_session",
    ),
    # A rewind or its undo, and an import of turns. An append sets neither column.
    ("llm_sessions_late_update", "llm_sessions"): (
        "UPDATE OF head_branch, idle_from",
        f"FOR EACH ROW WHEN (OLD.created_at < {_SETTLED})",
        "note_late_agent_session",
    ),
    ("llm_sessions_removed", "llm_sessions"): (
        "DELETE",
        "REFERENCING OLD TABLE AS removed FOR EACH STATEMENT",
        "note_removed_agent_sessions",
    ),
}
#: One statement sees one snapshot: what the trigger has appended in it is left for later. So the
#: sum is right at every moment, while sessions start and end beside it.
# argued: live_session_counts: a new table
_FIRST_COUNT = f"""
    INSERT INTO live_session_counts (tenant, live_count)
    SELECT tenant, sum(number) FROM (
        SELECT tenant, count(*) AS number FROM sessions WHERE state {_LIVE} GROUP BY tenant
        UNION ALL
        SELECT tenant, -sum(delta) FROM live_session_changes GROUP BY tenant
    ) AS part GROUP BY tenant
    ON CONFLICT (tenant) DO UPDATE SET live_count = excluded.live_count
"""


def _tables() -> None:
    op.create_table(
        "stats_rollups",
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("project_id", sa.Text, primary_key=True),
        sa.Column("hours", sa.SmallInteger, primary_key=True, autoincrement=False),
        sa.Column("start_time", _TIME, primary_key=True),
        sa.Column("figures", JSONB, nullable=False),
        if_not_exists=True,
    )
    # argued: stats_rollups_period: of a new table
    op.create_index(
        "stats_rollups_period", "stats_rollups", ["hours", "start_time"], if_not_exists=True
    )
    op.create_table(
        "stats_progress",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("due_at", _TIME, nullable=False),
        *(
            sa.Column(name, _TIME)
            for name in ("start_time", "hours_end", "days_end", "trim_time", "check_time")
        ),
        if_not_exists=True,
    )
    op.create_table(
        "stats_changes",
        sa.Column("change_id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("hours", sa.SmallInteger, nullable=False),
        sa.Column("at", _TIME, nullable=False),
        sa.Column("create_time", _TIME, nullable=False, server_default=sa.func.now()),
        if_not_exists=True,
    )
    op.create_table(
        "stats_gauges",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("counts", JSONB, nullable=False),
        sa.Column("count_time", _TIME, nullable=False, server_default=sa.func.now()),
        if_not_exists=True,
    )
    op.create_table(
        "live_session_counts",
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("live_count", sa.BigInteger, nullable=False, server_default=sa.text("0")),
        sa.Column("check_time", _TIME, nullable=False, server_default=sa.func.now()),
        if_not_exists=True,
    )
    op.create_table(
        "live_session_changes",
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("change_id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("delta", sa.SmallInteger, nullable=False),
        if_not_exists=True,
        postgresql_with={
            "autovacuum_vacuum_scale_factor": "0",
            "autovacuum_vacuum_threshold": "1000",
        },
    )


def _agent_tables() -> None:
    op.create_table(
        "llm_stats_rollups",
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("start_time", _TIME, primary_key=True),
        sa.Column("agent_role", sa.Text, primary_key=True),
        *(
            sa.Column(name, sa.BigInteger, nullable=False)
            for name in ("session_count", "turn_count", "total_tokens")
        ),
        sa.Column("lifetime", sa.Interval, nullable=False),
        *(
            sa.Column(name, sa.BigInteger, nullable=False)
            for name in ("with_turn", "with_second_turn")
        ),
        if_not_exists=True,
    )
    op.create_table(
        "llm_stats_changes",
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("change_id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("start_time", _TIME, nullable=False),
        if_not_exists=True,
    )


def upgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute("SET lock_timeout = '500ms'")
        _tables()
        _agent_tables()
        for function in _FUNCTIONS:
            op.execute(function)
        for (name, table), (event, rows, function_name) in _TRIGGERS.items():
            op.execute(
                f"CREATE OR REPLACE TRIGGER {name} AFTER {event} ON {table} {rows} "
                f"EXECUTE FUNCTION {function_name}()"
            )
        op.execute(_FIRST_COUNT)


def downgrade() -> None:
    for name, table in _TRIGGERS:
        op.execute(f"DROP TRIGGER {name} ON {table}")
    for function_name in {function_name for _, _, function_name in _TRIGGERS.values()}:
        op.execute(f"DROP FUNCTION {function_name}()")
    for table in (
        *("stats_rollups", "stats_progress", "stats_changes", "stats_gauges"),
        *("live_session_counts", "live_session_changes"),
        *("llm_stats_rollups", "llm_stats_changes"),
    ):
        op.drop_table(table)
