"""Lists by last activity, and the indexes of all lists.

Takes its time on a large table, and stops nobody: each batch of the backfill is a transaction of
its own, and the indexes are built beside the writes. Where it breaks off, it begins anew.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)
#: Four walks over the table, each of which fills every fourth row. The rows of a page are rewritten
#: one after another, within the room that its fill factor leaves, and so without an entry in any
#: index; one walk would move every third row to another page.
_BACKFILL = """
DO $$
<<backfill>>
DECLARE
    last uuid;
BEGIN
    <<parts>>
    FOR part IN 0..3 LOOP
        last := '00000000-0000-0000-0000-000000000000';
        <<batches>>
        LOOP
            WITH batch AS (
                SELECT session_id FROM sessions WHERE session_id > last
                ORDER BY session_id LIMIT 4000
            ), filled AS (
                UPDATE sessions s SET seen_at = s.last_active_time FROM batch b
                WHERE s.session_id = b.session_id AND uuid_hash(b.session_id) & 3 = part
                  AND s.seen_at <> s.last_active_time
            )
            SELECT session_id INTO last FROM batch ORDER BY session_id DESC LIMIT 1;
            EXIT batches WHEN last IS NULL;
            COMMIT;
        END LOOP batches;
    END LOOP parts;
END backfill $$
"""
_SESSIONS_SEEN = (
    "CREATE OR REPLACE FUNCTION sessions_seen_at() RETURNS trigger LANGUAGE plpgsql AS"
    " $$ BEGIN NEW.seen_at := NEW.last_active_time; RETURN NEW; END $$"
)
_AGENTS_SEEN = (
    "CREATE OR REPLACE FUNCTION llm_sessions_seen_at() RETURNS trigger LANGUAGE plpgsql AS"
    " $$ BEGIN NEW.seen_at := NEW.last_query_at; RETURN NEW; END $$"
)
_ON_STATE = "WHEN (OLD.state IS DISTINCT FROM NEW.state)"
_LIVE = """state COLLATE "C" IN ('STARTING', 'ACTIVE', 'PAUSING', 'PAUSED')"""
_ACTIVE = """state COLLATE "C" = 'ACTIVE'"""
_STATE = 'state COLLATE "C"'
_TENANT = 'tenant COLLATE "C"'
_USER = 'user_id COLLATE "C"'
_PROJECT = 'project_id COLLATE "C"'
_ROLE = 'agent_role COLLATE "C"'
#: Name, table, columns, predicate.
_INDEXES: list[tuple[str, str, list[str], str | None]] = [
    ("sessions_seen", "sessions", ["tenant", "seen_at", "session_id"], None),
    *(
        (f"sessions_{name}_{order}", "sessions", [*columns, time, "session_id"], where)
        for order, time in (("created", "create_time"), ("seen", "seen_at"))
        for name, columns, where in (
            ("state", [_STATE, _TENANT], None),
            ("user", [_TENANT, _USER], None),
            ("live_user", [_TENANT, _USER], _LIVE),
            ("project", [_TENANT, _PROJECT], None),
            ("live_project", [_TENANT, _PROJECT], _LIVE),
        )
    ),
    ("llm_sessions_active_time", "llm_sessions", ["tenant", "seen_at", "session_id"], None),
    *(
        (f"llm_sessions_{name}_{order}", "llm_sessions", [*columns, time, "session_id"], where)
        for order, time in (("created", "created_at"), ("seen", "seen_at"))
        for name, columns, where in (
            ("state", [_STATE, _TENANT], None),
            ("role", [_TENANT, _ROLE], None),
            ("active_role", [_TENANT, _ROLE], _ACTIVE),
        )
    ),
]


def upgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute(
            "ALTER TABLE sessions ADD COLUMN IF NOT EXISTS"
            " seen_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL"
        )
        # Sets the column also in rows that replicas of the version before write.
        # argued: sessions_seen_at: it sets a column that only the new version reads
        # argued: llm_sessions_seen_at: it sets the column to what the lag allows it to be
        op.execute(_SESSIONS_SEEN)
        op.execute(_AGENTS_SEEN)
        for table, function in (
            ("sessions", "sessions_seen_at"),
            ("llm_sessions", "llm_sessions_seen_at"),
        ):
            op.execute(
                f"CREATE OR REPLACE TRIGGER {table}_state BEFORE UPDATE OF state ON {table}"
                f" FOR EACH ROW {_ON_STATE} EXECUTE FUNCTION {function}()"
            )
        op.execute(
            "CREATE OR REPLACE TRIGGER sessions_new BEFORE INSERT ON sessions"
            " FOR EACH ROW EXECUTE FUNCTION sessions_seen_at()"
        )
        # Waits for whoever has begun to write before; nobody waits for it.
        op.execute("SET lock_timeout = 0")
        # argued: backfill: of a column that the version before does not know
        # argued: parts: so few rows at a time that nobody waits for them
        # argued: batches: the same
        op.execute(_BACKFILL)
        for name, table, columns, where in _INDEXES:
            # argued: CONCURRENTLY: an index that an unfinished build has left serves nobody
            op.drop_index(name, table, if_exists=True, postgresql_concurrently=True)
            op.create_index(
                name,
                table,
                [sa.text(column) for column in columns],
                postgresql_concurrently=True,
                postgresql_where=None if where is None else sa.text(where),
            )
        # argued: llm_sessions_seen: llm_sessions_active_time begins with the same columns
        op.drop_index(
            "llm_sessions_seen", "llm_sessions", if_exists=True, postgresql_concurrently=True
        )
        # argued: ANALYZE: it only counts
        op.execute("ANALYZE sessions (seen_at)")
    # Last, with the number of the revision: what commits by itself before it can begin anew.
    op.create_table(
        "activity_passes",
        sa.Column("subject", sa.Text, primary_key=True),
        sa.Column("due_at", _TIME, nullable=False, server_default=sa.func.now()),
        sa.Column("walk_time", _TIME),
    )
    op.execute("INSERT INTO activity_passes (subject) VALUES ('sessions'), ('agent_sessions')")


def downgrade() -> None:
    op.drop_table("activity_passes")
    op.create_index("llm_sessions_seen", "llm_sessions", ["tenant", "seen_at"])
    for name, table, _, _ in _INDEXES:
        op.drop_index(name, table)
    op.execute("DROP TRIGGER sessions_new ON sessions")
    for table in ("sessions", "llm_sessions"):
        op.execute(f"DROP TRIGGER {table}_state ON {table}")
        op.execute(f"DROP FUNCTION {table}_seen_at()")
    op.drop_column("sessions", "seen_at")
