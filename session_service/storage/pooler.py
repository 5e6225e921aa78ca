"""A pooler between us and PostgreSQL, such as PgBouncer: what it does to sessions of the database.

A pooler that pools transactions gives every transaction another server connection. What belongs to
a connection is then somebody else's: a prepared statement, a LISTEN, a setting, an advisory lock.
Two clients that prepare under the same name run each other's statements, without an error. So such
a pooler serves the pool only, without prepared statements, and all else goes to the server itself.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import psycopg

from session_service.storage.database import LIMITS, BoundedConnection, network
from session_service.storage.refusals import DatabaseRefused

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

#: How often two clients are compared. A pooler gives a transaction the server connection that was
#: used last, so the first comparison finds it, unless other clients come between.
COMPARED = 5
_BACKEND = b"SELECT pg_backend_pid()"
#: The cluster and the database, as `storage.installation` has them.
_IDENTITY = (
    b"SELECT system_identifier || '/' || oid FROM pg_control_system(), pg_database"
    b" WHERE datname = current_database()"
)
_UNLIMITED = b"SELECT name FROM pg_settings WHERE name = ANY(%s) AND setting = '0' ORDER BY name"


async def pools_transactions(url: str) -> bool:
    """Whether two clients of the address use the same server connection in turn.

    Raises psycopg.OperationalError, also if the pooler has no server connection for the second one
    in time.
    """
    async with _connected(url) as one, _connected(url) as other:
        backend = await _backend(one)
        for _ in range(COMPARED):
            if await _backend(other) == backend or await _backend(one) != backend:
                return True
    return False


async def check_direct(url: str) -> None:
    """Check that the address keeps a server connection for each client, as LISTEN and migrations
    need it. Raises DatabaseRefused, and psycopg.OperationalError.
    """
    async with _connected(url) as connection:
        pooled = await _backend(connection) != connection.info.backend_pid
    if pooled and await pools_transactions(url):
        raise DatabaseRefused(
            "the address leads to a pooler that pools transactions: set ROOST_DATABASE_DIRECT_URL "
            "to PostgreSQL's own address, or let the pooler pool sessions"
        )


def check_direct_of(connection: psycopg.Connection, url: str) -> None:
    """The same for the address of a connection that there is already. Blocks; must not run in a
    thread with an event loop.
    """
    # The server's own greeting has the number of its process. A pooler makes up another one.
    if connection.execute(_BACKEND).fetchone() != (connection.info.backend_pid,):
        asyncio.run(check_direct(url))


async def check_pooled(url: str, direct: str) -> Sequence[str]:
    """Check that both addresses lead to the same database, and that the pooler allows
    transactions. Returns the limits that its server connections lack.

    Raises DatabaseRefused, and psycopg.OperationalError.
    """
    async with _connected(direct) as connection:
        here = await _value(connection, _IDENTITY)
    async with _connected(url) as connection:
        if await _value(connection, _IDENTITY) != here:
            raise DatabaseRefused("it and ROOST_DATABASE_DIRECT_URL lead to two databases")
        cursor = await connection.execute(_UNLIMITED, [list(LIMITS)])
        lacking = [str(row[0]) for row in await cursor.fetchall()]
        try:
            async with connection.transaction():
                await connection.execute(_BACKEND)
        except psycopg.OperationalError as error:
            if "statement pooling" not in str(error):
                raise
            raise DatabaseRefused(
                "the address leads to a pooler that pools statements: let it pool transactions, or "
                "sessions"
            ) from None
    return lacking


@asynccontextmanager
async def _connected(url: str) -> AsyncGenerator[BoundedConnection]:
    async with await BoundedConnection.connect(
        url, autocommit=True, prepare_threshold=None, **network(url)
    ) as connection:
        yield connection


async def _backend(connection: BoundedConnection) -> int:
    return int(await _value(connection, _BACKEND))


async def _value(connection: BoundedConnection, query: bytes) -> Any:
    """The one value of a query. Any: a number or a text."""
    row = await (await connection.execute(query)).fetchone()
    assert row is not None
    return row[0]
