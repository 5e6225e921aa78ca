"""Transactions that only read, and whose statements all see the same rows."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from psycopg import IsolationLevel

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from session_service.storage.database import Connection, Database


@asynccontextmanager
async def snapshot(database: Database, answer: float | None = None) -> AsyncGenerator[Connection]:
    """A connection in such a transaction. The statements see the rows as they are at the first of
    them. `answer` as for `Database.connection`. Raises StorageUnavailable.
    """
    async with database.connection(answer) as connection:
        # The driver sends both with BEGIN: no round trip of their own.
        await connection.set_isolation_level(IsolationLevel.REPEATABLE_READ)
        await connection.set_read_only(True)
        try:
            async with connection.transaction():
                yield connection
        finally:
            await connection.set_isolation_level(None)
            await connection.set_read_only(None)
