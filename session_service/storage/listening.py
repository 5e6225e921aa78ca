"""Listening for notices of PostgreSQL (LISTEN and NOTIFY), on a connection of its own."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from session_service.storage.database import ANSWER_TIMEOUT, BoundedConnection, parameters

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

#: A listener without a notice for this long checks that the server still answers, in s.
LISTEN_CHECK_AFTER = 5.0


@asynccontextmanager
async def listening(
    url: str,
    channel: str,
    *,
    silence: float = LISTEN_CHECK_AFTER,
    answer: float = ANSWER_TIMEOUT,
) -> AsyncGenerator[AsyncGenerator[str, None], None]:
    """Listen on a channel, on a separate connection; yields an iterator over the payloads of its
    notices.

    The iterator raises psycopg.Error when the connection is lost. A loss that the network does not
    report is found within seconds: after `silence` s without a notice a statement is sent, which
    has `answer` s to be answered.
    """
    async with await BoundedConnection.connect(url, **parameters(url)) as connection:
        connection.limit = answer
        await connection.execute(f"LISTEN {channel}".encode())
        payloads = _payloads(connection, silence)
        try:
            yield payloads
        finally:
            await payloads.aclose()


async def _payloads(connection: BoundedConnection, silence: float) -> AsyncGenerator[str, None]:
    while True:
        async for notice in connection.notifies(timeout=silence):
            yield notice.payload
        # A dead connection is as silent as one without notices; a statement tells them apart.
        await connection.execute("SELECT 1")
