"""Bringing a database to this version's tables: at start, or by command.

Safe with any number of replicas starting at once: an advisory lock lets one through at a time, and
the rest find nothing left to do.
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config

#: Any number that other users of the database do not take; spells "roost".
LOCK = 0x726F6F7374


def engine_url(url: str) -> str:
    """The address as SQLAlchemy wants it, for any postgresql:// address."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.partition("+")[0] not in ("postgresql", "postgres"):
        raise ValueError("must begin with postgresql://")
    return f"postgresql+psycopg://{rest}"


def upgrade(url: str, revision: str = "head") -> None:
    """Apply what is missing, blocking until done. Raises sqlalchemy.exc.OperationalError."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    engine = sa.create_engine(engine_url(url), poolclass=sa.NullPool)
    try:
        with engine.connect() as connection:
            config.attributes["connection"] = connection
            connection.execute(sa.text("SELECT pg_advisory_lock(:lock)"), {"lock": LOCK})
            # The lock is the connection's, not the transaction's: a migration may commit in parts.
            connection.commit()
            command.upgrade(config, revision)
            connection.commit()
    finally:
        engine.dispose()
