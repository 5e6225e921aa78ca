"""Claims of background passes over figures: one replica at a time makes a pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from session_service.storage.database import Statement, scalar

if TYPE_CHECKING:
    from datetime import timedelta

    from session_service.storage.database import Database

_CLAIM = Statement[str](
    """
    INSERT INTO stats_progress (name, due_at) VALUES (%(name)s, now() + %(hold)s)
    ON CONFLICT (name) DO UPDATE SET due_at = excluded.due_at WHERE stats_progress.due_at <= now()
    RETURNING name
    """,
    {},
    scalar(str),
)
_RELEASE = Statement[str](
    "UPDATE stats_progress SET due_at = now() WHERE name = %(name)s RETURNING name",
    {},
    scalar(str),
)


async def claim(database: Database, name: str, hold: timedelta) -> bool:
    """Claim the pass; False if it is not due. It is due again after `hold`, also if this replica
    dies during it. Raises StorageUnavailable.
    """
    return await database.fetch_one(_CLAIM, {"name": name, "hold": hold}) is not None


async def release(database: Database, name: str) -> None:
    """Make the pass due now, because it has more to do. Raises StorageUnavailable."""
    await database.fetch_one(_RELEASE, {"name": name})
