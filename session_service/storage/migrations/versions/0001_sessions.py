"""Sessions, their containers and decisions, and which installation this is."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB, UUID

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_UUID = UUID(as_uuid=True)
_TIME = sa.DateTime(timezone=True)


def _installation() -> None:
    op.create_table(
        "installation",
        sa.Column("installation_id", _UUID, nullable=False),
        sa.Column("system_identifier", sa.Text, nullable=False),
        sa.Column("create_time", _TIME, nullable=False, server_default=sa.func.now()),
        sa.PrimaryKeyConstraint("installation_id", name="installation_pkey"),
    )
    op.execute(
        "INSERT INTO installation (installation_id, system_identifier) "
        "SELECT gen_random_uuid(), system_identifier || '/' || oid "
        "FROM pg_control_system(), pg_database WHERE datname = current_database()"
    )


def _sessions() -> None:
    op.create_table(
        "sessions",
        sa.Column("session_id", _UUID, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("project_id", sa.Text, nullable=False),
        sa.Column("user_id", sa.Text, nullable=False),
        sa.Column("slot", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("transition", sa.Text),
        sa.Column("prior_state", sa.Text),
        sa.Column("owner", _UUID),
        sa.Column("lease_until", _TIME),
        sa.Column("deadline", _TIME),
        sa.Column("decision_id", _UUID),
        sa.Column("wish", JSONB),
        sa.Column("successor_id", _UUID),
        sa.Column("predecessor_id", _UUID),
        sa.Column("pause_depth", sa.Text),
        sa.Column("loss_untold", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("conditions", JSONB, nullable=False, server_default=sa.text("'[]'")),
        sa.Column("spec", JSONB, nullable=False),
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column("policy", JSONB, nullable=False),
        sa.Column("verified_at", _TIME),
        sa.Column("create_time", _TIME, nullable=False, server_default=sa.func.now()),
        sa.Column("start_time", _TIME),
        sa.Column("last_active_time", _TIME, nullable=False, server_default=sa.func.now()),
        sa.Column("pause_time", _TIME),
        sa.Column("end_time", _TIME),
        sa.Column("purge_time", _TIME),
        sa.Column("due_at", _TIME),
        sa.Column("start_count", sa.BigInteger, nullable=False, server_default=sa.text("0")),
        sa.Column("end_reason", sa.Text),
        sa.PrimaryKeyConstraint("session_id", name="sessions_pkey"),
        sa.CheckConstraint(
            "state IN ('STARTING', 'ACTIVE', 'PAUSING', 'PAUSED', 'ENDING', 'ENDED')",
            name=op.f("sessions_state"),
        ),
        sa.CheckConstraint(
            "transition IN ('START', 'PAUSE', 'END', 'PURGE', 'REPLACE')",
            name=op.f("sessions_transition"),
        ),
        sa.CheckConstraint(
            "(state IN ('STARTING', 'PAUSING', 'ENDING')) = (transition IS NOT NULL)",
            name=op.f("sessions_in_flight"),
        ),
        postgresql_with={"fillfactor": "70"},
    )
    op.create_index(
        "sessions_live_key",
        "sessions",
        ["tenant", "project_id", "user_id", "slot"],
        unique=True,
        postgresql_where=sa.text("state IN ('STARTING', 'ACTIVE', 'PAUSING', 'PAUSED')"),
    )
    op.create_index("sessions_tenant_created", "sessions", ["tenant", "create_time", "session_id"])
    op.create_index(
        "sessions_due", "sessions", ["due_at"], postgresql_where=sa.text("due_at IS NOT NULL")
    )


def _containers() -> None:
    op.create_table(
        "containers",
        sa.Column("session_id", _UUID, nullable=False),
        sa.Column("generation", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("app", sa.Text, nullable=False),
        sa.Column("container_id", sa.Text),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("region", sa.Text, nullable=False, server_default=""),
        sa.Column("boot_id", sa.Text),
        sa.Column("boot_time", _TIME),
        sa.Column("start_time", _TIME),
        sa.Column("cordoned", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("wanted", sa.Boolean, nullable=False, server_default=sa.true()),
        sa.Column("create_time", _TIME, nullable=False, server_default=sa.func.now()),
        sa.Column("destroy_time", _TIME),
        sa.PrimaryKeyConstraint("session_id", "generation", name="containers_pkey"),
        sa.ForeignKeyConstraint(
            ["session_id"],
            ["sessions.session_id"],
            name="containers_session_id_fkey",
            ondelete="CASCADE",
        ),
    )
    op.create_index(
        "containers_unwanted",
        "containers",
        ["session_id"],
        postgresql_where=sa.text("NOT wanted AND destroy_time IS NULL"),
    )


def _decisions() -> None:
    op.create_table(
        "decisions",
        sa.Column("decision_id", _UUID, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("session_id", _UUID),
        sa.Column("method", sa.Text, nullable=False),
        sa.Column("mode", sa.Text),
        sa.Column("rule", sa.Text, nullable=False),
        sa.Column("explanation", sa.Text, nullable=False),
        sa.Column("outcome", sa.Text),
        sa.Column("continuity", sa.SmallInteger),
        sa.Column("continuity_verified", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("joined", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("leader_decision_id", _UUID),
        sa.Column("attempts", JSONB, nullable=False, server_default=sa.text("'[]'")),
        sa.Column("error", JSONB),
        sa.Column("request_id", _UUID),
        sa.Column("request_hash", sa.LargeBinary),
        sa.Column("inputs", JSONB, nullable=False, server_default=sa.text("'{}'")),
        sa.Column("create_time", _TIME, nullable=False, server_default=sa.func.now()),
        sa.Column("finish_time", _TIME),
        sa.PrimaryKeyConstraint("decision_id", name="decisions_pkey"),
    )
    op.create_index(
        "decisions_request",
        "decisions",
        ["tenant", "method", "request_id"],
        unique=True,
        postgresql_where=sa.text("request_id IS NOT NULL"),
    )
    op.create_index("decisions_session", "decisions", ["session_id", "decision_id"])


def upgrade() -> None:
    _installation()
    _sessions()
    _containers()
    _decisions()


def downgrade() -> None:
    for table in ("decisions", "containers", "sessions", "installation"):
        op.drop_table(table)
