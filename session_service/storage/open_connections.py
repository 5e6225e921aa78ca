"""The open connections of a pool, so that closing the pool leaves none of them open.

The pool closes the connections that are in it. Three kinds are not in it:

- One that a call uses. gRPC's stop does not wait for the task of a cancelled call, which still
  waits until the server has cancelled its statement.
- One that is new. The pool waits for its workers, but not as long as a slow server may take.
- One that was given to a waiting call, which was cancelled before it ran. The pool's worker that
  would take it back has ended by then.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Protocol
from weakref import WeakSet

if TYPE_CHECKING:
    from collections.abc import Generator


class Connection(Protocol):
    """What is needed of a connection: `database.BoundedConnection`."""

    def hang_up(self) -> None:
        """Shut the socket down."""

    async def close(self) -> None:
        """Close it; nothing if it is closed."""


class OpenConnections:
    """The connections that a pool has opened, and which of them are in use."""

    def __init__(self) -> None:
        self._opened: WeakSet[Connection] = WeakSet()
        self._in_use: set[Connection] = set()
        self._returned = asyncio.Event()

    @contextmanager
    def using(self, connection: Connection) -> Generator[None]:
        """Mark the connection as in use until the context ends, which is after its return."""
        self._opened.add(connection)
        self._in_use.add(connection)
        try:
            yield
        finally:
            self._in_use.discard(connection)
            self._returned.set()

    async def close(self, patience: float) -> None:
        """Wait at most `patience` s until no connection is in use, then close those left open.

        Call this when the pool is closed: it lends no more connections and closes the returned
        ones. A connection that is still in use is shut down, so that a call that waits for the
        server fails at once. Such calls get `patience` s again to return it.
        """
        await self._wait_for_returns(patience)
        for connection in list(self._in_use):
            connection.hang_up()
        await self._wait_for_returns(patience)
        for connection in set(self._opened) - self._in_use:
            await connection.close()

    async def _wait_for_returns(self, patience: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                while self._in_use:
                    self._returned.clear()
                    await self._returned.wait()
