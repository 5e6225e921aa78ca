"""An index of live sessions by their age.

Only adds: replicas of the version before run on beside it.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # argued: sessions_live_created: before the first release, no installation has rows yet
    op.create_index(
        "sessions_live_created",
        "sessions",
        ["create_time"],
        postgresql_where=sa.text("state IN ('STARTING', 'ACTIVE', 'PAUSING', 'PAUSED')"),
    )


def downgrade() -> None:
    op.drop_index("sessions_live_created", "sessions")
