"""When a session's state was last saved, and when that was last tried on a schedule.

Only adds: replicas of the version before run on beside it. What they save is not noted here, so
that the next one on a schedule comes early, once.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("sessions", sa.Column("checkpoint_time", sa.DateTime(timezone=True)))
    op.add_column("sessions", sa.Column("checkpoint_try_time", sa.DateTime(timezone=True)))


def downgrade() -> None:
    op.drop_column("sessions", "checkpoint_try_time")
    op.drop_column("sessions", "checkpoint_time")
