"""Policies of projects, tiers of tenants, what users prefer, what they were offered and chose.

Only adds, with defaults: replicas of the version before run on beside it.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB, UUID

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_UUID = UUID(as_uuid=True)
_TIME = sa.DateTime(timezone=True)


def _key() -> list[sa.Column[str]]:
    names = ("tenant", "project_id", "user_id", "slot")
    return [sa.Column(name, sa.Text, nullable=False) for name in names]


def _now(name: str) -> sa.Column[object]:
    return sa.Column(name, _TIME, nullable=False, server_default=sa.func.now())


def _policies() -> None:
    op.create_table(
        "policies",
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("project_id", sa.Text, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False, server_default=sa.text("1")),
        sa.Column("setting", JSONB, nullable=False, server_default=sa.text("'{}'")),
        sa.Column("spec", JSONB),
        _now("update_time"),
        sa.Column("spread_until", _TIME),
        sa.PrimaryKeyConstraint("tenant", "project_id", name="policies_pkey"),
    )
    op.create_table(
        "tiers",
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("tier", sa.Text, nullable=False),
        _now("update_time"),
        sa.Column("spread_until", _TIME),
        sa.PrimaryKeyConstraint("tenant", name="tiers_pkey"),
    )
    for table in ("policies", "tiers"):
        op.create_index(
            f"{table}_spread",
            table,
            ["spread_until"],
            postgresql_where=sa.text("spread_until IS NOT NULL"),
        )


def _choices() -> None:
    op.create_table(
        "user_preferences",
        *_key()[:3],
        sa.Column("preference", sa.Text, nullable=False),
        _now("update_time"),
        sa.PrimaryKeyConstraint("tenant", "project_id", "user_id", name="user_preferences_pkey"),
    )
    op.create_table(
        "choice_tokens",
        sa.Column("token_hash", sa.LargeBinary, nullable=False),
        *_key(),
        sa.Column("choice", sa.Text, nullable=False),
        sa.Column("session_id", _UUID, nullable=False),
        sa.Column("start_count", sa.BigInteger, nullable=False),
        sa.Column("expected_continuity", sa.SmallInteger, nullable=False),
        sa.Column("checkpoint_id", _UUID),
        sa.Column("offered", JSONB, nullable=False),
        sa.Column("decision_id", _UUID),
        _now("create_time"),
        sa.Column("expire_time", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("token_hash", name="choice_tokens_pkey"),
    )
    op.create_index("choice_tokens_expire", "choice_tokens", ["expire_time"])
    op.create_table(
        "choices",
        sa.Column("decision_id", _UUID, nullable=False),
        *_key(),
        sa.Column("session_id", _UUID, nullable=False),
        sa.Column("choice", sa.Text, nullable=False),
        sa.Column("checkpoint_id", _UUID),
        sa.Column("offered", JSONB, nullable=False),
        sa.Column("asked", sa.Boolean, nullable=False),
        sa.Column("remember", sa.Boolean, nullable=False, server_default=sa.false()),
        _now("create_time"),
        sa.PrimaryKeyConstraint("decision_id", name="choices_pkey"),
    )
    op.create_index(
        "choices_key", "choices", ["tenant", "project_id", "user_id", "slot", "decision_id"]
    )
    op.create_index("choices_time", "choices", ["create_time"], postgresql_using="brin")


def upgrade() -> None:
    _policies()
    _choices()
    # argued: decisions_outcome: before the first release, no installation has rows yet
    op.create_index(
        "decisions_outcome",
        "decisions",
        ["outcome", "decision_id"],
        postgresql_where=sa.text("outcome <> 'REUSED' AND NOT joined"),
    )


def downgrade() -> None:
    op.drop_index("decisions_outcome", "decisions")
    for table in ("choices", "choice_tokens", "user_preferences", "tiers", "policies"):
        op.drop_table(table)
