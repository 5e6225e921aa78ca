"""After all is quiet: nothing is half saved any more, once the janitor has passed."""

from __future__ import annotations

import asyncio
from time import monotonic

import psycopg

from session_service.storage.database import Database
from session_service.vault.retention import Retention

#: What is still being written, or withdrawn; and pieces of what is not READY.
_HALF = """
SELECT user_id, checkpoint_id::text || ', number ' || number || ', is ' || state AS line
FROM checkpoints WHERE state NOT IN ('READY', 'FAILED')
UNION
SELECT c.user_id, c.checkpoint_id::text || ', number ' || c.number || ', is ' || c.state
       || ' and has pieces'
FROM checkpoints c JOIN checkpoint_chunks USING (checkpoint_id) WHERE c.state <> 'READY'
"""


async def half_saved(url: str, patience: float) -> list[tuple[str, str]]:
    """The key and a line of each checkpoint that is left half saved, or half deleted.

    Janitors pass once a minute, and schedules go on: ours passes until nothing is left, for at most
    `patience` s.
    """
    until = monotonic() + patience
    async with Database(url, max_size=2) as database:
        retention = Retention(database, None)
        while True:
            await retention.shot()
            found = await _look(url)
            if not found or monotonic() > until:
                return found
            await asyncio.sleep(0.1)


async def _look(url: str) -> list[tuple[str, str]]:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        rows = await (await connection.execute(_HALF)).fetchall()
    return [(str(key), str(line)) for key, line in rows]
