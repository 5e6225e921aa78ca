"""What users were offered, and what they chose."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from session_service.storage.tables.schema import TIME, UUID, key_columns, metadata

#: What was offered, one row a candidate, by the SHA-256 of its token: the token itself is nowhere.
choice_tokens = sa.Table(
    "choice_tokens",
    metadata,
    sa.Column("token_hash", sa.LargeBinary, primary_key=True),
    *key_columns(),
    sa.Column("choice", sa.Text, nullable=False),
    sa.Column("session_id", UUID, nullable=False),
    sa.Column("start_count", sa.BigInteger, nullable=False),
    sa.Column("expected_continuity", sa.SmallInteger, nullable=False),
    sa.Column("checkpoint_id", UUID),
    sa.Column("offered", JSONB, nullable=False),
    sa.Column("decision_id", UUID),
    sa.Column("create_time", TIME, nullable=False, server_default=sa.func.now()),
    sa.Column("expire_time", TIME, nullable=False),
)
sa.Index("choice_tokens_expire", choice_tokens.c.expire_time)

#: What was chosen of what, by the decision that did it: asked for, or by a kept preference.
choices = sa.Table(
    "choices",
    metadata,
    sa.Column("decision_id", UUID, primary_key=True),
    *key_columns(),
    sa.Column("session_id", UUID, nullable=False),
    sa.Column("choice", sa.Text, nullable=False),
    sa.Column("checkpoint_id", UUID),
    sa.Column("offered", JSONB, nullable=False),
    sa.Column("asked", sa.Boolean, nullable=False),
    sa.Column("remember", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("create_time", TIME, nullable=False, server_default=sa.func.now()),
)
sa.Index(
    "choices_key",
    choices.c.tenant,
    choices.c.project_id,
    choices.c.user_id,
    choices.c.slot,
    choices.c.decision_id,
)
sa.Index("choices_time", choices.c.create_time, postgresql_using="brin")
