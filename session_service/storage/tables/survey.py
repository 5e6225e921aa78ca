"""What the sweeper keeps: whose database this is, when it looks, and what it found astray."""

from __future__ import annotations

import sqlalchemy as sa

from session_service.storage.tables.schema import TIME, UUID, metadata

#: One row: which installation of Roost this database belongs to.
installation = sa.Table(
    "installation",
    metadata,
    sa.Column("installation_id", UUID, primary_key=True),
    sa.Column("system_identifier", sa.Text, nullable=False),
    sa.Column("create_time", TIME, nullable=False, server_default=sa.func.now()),
)

#: One row per app: when its containers are to be compared with the rows next, by one replica.
sweeps = sa.Table(
    "sweeps",
    metadata,
    sa.Column("app", sa.Text, primary_key=True),
    sa.Column("due_at", TIME, nullable=False, server_default=sa.func.now()),
    sa.Column("pass_number", sa.BigInteger, nullable=False, server_default=sa.text("0")),
)

#: Containers that carry our labels and have no row: in how many passes running they were seen.
orphans = sa.Table(
    "orphans",
    metadata,
    sa.Column("app", sa.Text, primary_key=True),
    sa.Column("container_id", sa.Text, primary_key=True),
    sa.Column("pass_number", sa.BigInteger, nullable=False),
    sa.Column("pass_count", sa.BigInteger, nullable=False, server_default=sa.text("1")),
    sa.Column("first_seen_time", TIME, nullable=False, server_default=sa.func.now()),
)
