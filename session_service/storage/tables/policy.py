"""The policies of projects, the tiers of tenants and the preferences of users."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from session_service.storage.tables.schema import TIME, metadata

#: Projects' policy settings. Until `spread_until` a change is copied to live sessions.
policies = sa.Table(
    "policies",
    metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("project_id", sa.Text, primary_key=True),
    sa.Column("version", sa.BigInteger, nullable=False, server_default=sa.text("1")),
    sa.Column("setting", JSONB, nullable=False, server_default=sa.text("'{}'")),
    sa.Column("spec", JSONB),
    sa.Column("update_time", TIME, nullable=False, server_default=sa.func.now()),
    sa.Column("spread_until", TIME),
)
sa.Index(
    "policies_spread",
    policies.c.spread_until,
    postgresql_where=sa.text("spread_until IS NOT NULL"),
)

#: Tenants with a tier of their own. A tenant without a row has the operator's default tier.
tiers = sa.Table(
    "tiers",
    metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("tier", sa.Text, nullable=False),
    sa.Column("update_time", TIME, nullable=False, server_default=sa.func.now()),
    sa.Column("spread_until", TIME),
)
sa.Index(
    "tiers_spread",
    tiers.c.spread_until,
    postgresql_where=sa.text("spread_until IS NOT NULL"),
)

#: Users' preferences, which decide instead of asking the user.
user_preferences = sa.Table(
    "user_preferences",
    metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("project_id", sa.Text, primary_key=True),
    sa.Column("user_id", sa.Text, primary_key=True),
    sa.Column("preference", sa.Text, nullable=False),
    sa.Column("update_time", TIME, nullable=False, server_default=sa.func.now()),
)
