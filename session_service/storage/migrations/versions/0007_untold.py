"""How much may be claimed of a session that lost something while nobody was there.

Only adds: replicas of the version before run on beside it, and claim files where only a new
container is.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("sessions", sa.Column("untold_continuity", sa.SmallInteger))


def downgrade() -> None:
    op.drop_column("sessions", "untold_continuity")
