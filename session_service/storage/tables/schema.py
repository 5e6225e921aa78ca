"""What all tables have in common: the metadata that they are in, and types that keep recurring."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

metadata = sa.MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "ck": "%(table_name)s_%(constraint_name)s",
        "fk": "%(table_name)s_%(column_0_name)s_fkey",
    }
)

UUID = postgresql.UUID(as_uuid=True)
TIME = sa.DateTime(timezone=True)


def key_columns(*, primary_key: bool = False) -> list[sa.Column[str]]:
    """The columns of a session's key."""
    names = ("tenant", "project_id", "user_id", "slot")
    return [sa.Column(name, sa.Text, nullable=False, primary_key=primary_key) for name in names]
