"""Of a container at rest: which checkpoint a pause took of it, and of which boot.

Only adds: replicas of the version before run on beside it.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import UUID

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("containers", sa.Column("saved_checkpoint_id", UUID(as_uuid=True)))
    op.add_column("containers", sa.Column("saved_start_time", sa.DateTime(timezone=True)))


def downgrade() -> None:
    op.drop_column("containers", "saved_start_time")
    op.drop_column("containers", "saved_checkpoint_id")
