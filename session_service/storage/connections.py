"""Connections to PostgreSQL that never wait for ever, whatever became of the other end.

A host that vanished, a network that swallows bytes, a server that is stopped: none of them ends a
connection, and no setting of the server's can. So each wait has a limit on this side, at which the
connection is hung up: what waited fails at once, like one whose server closed it.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from psycopg.abc import PQGen

T = TypeVar("T")

#: An answer that takes longer, in s, will not come. With the pool's own wait it stays below the 8 s
#: that a caller should give a call at least.
ANSWER = 4.0
#: The same for batches in the background, whose statements the server ends after 15 s.
PATIENT = 20.0
#: A statement whose caller went away is called off at the server; that may take so long, in s.
CANCEL = 1.0
#: A listener that heard nothing for so long asks whether anybody is there, in s.
SILENCE = 5.0
#: What is pending on a connection that nobody used: some notices, then perhaps its end.
_PENDING = 16

#: Unless the address says otherwise. For a host that vanished: the kernel gives up by itself, also
#: on a connection that nobody asks anything on.
_NETWORK: dict[str, Any] = {
    "connect_timeout": 3,
    "tcp_user_timeout": 10_000,
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "application_name": "roost",
}

#: The server's side of the same. No statement waits for ever on a lock, or goes on for a caller who
#: hung up; locks of a replica that vanished in a transaction, and its connections, become free.
_SETTINGS = {
    "statement_timeout": "15s",
    "lock_timeout": "3s",
    "idle_in_transaction_session_timeout": "5s",
    "client_connection_check_interval": "1s",
    "tcp_keepalives_idle": "15s",
    "tcp_keepalives_interval": "5s",
    "tcp_keepalives_count": "3",
    # Compiling a plan takes longer than any of ours runs.
    "jit": "off",
}
#: All in one round trip: a new connection is wanted most when the network is slow.
_CONFIGURE = "SELECT " + ", ".join(
    f"set_config('{name}', '{value}', false)" for name, value in _SETTINGS.items()
)


class BoundedConnection(psycopg.AsyncConnection[tuple[Any, ...]]):
    """A connection whose every wait has an end; past it, `OperationalError` is raised."""

    limit: float | None = ANSWER
    """Seconds that one answer may take; None is for ever."""

    async def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        """Every wait of the driver's comes through here; one with a `timeout` is bounded by it."""
        if self.limit is None or timeout is not None:
            return await super().wait(gen, interval, timeout)
        watch = asyncio.get_running_loop().call_later(self.limit, self.hang_up)
        try:
            return await super().wait(gen, interval)
        finally:
            watch.cancel()

    async def cancel_safe(self, *, timeout: float = CANCEL) -> None:
        """Call the statement off at the server. The driver does so when its caller is cancelled,
        and the caller must not be held up by a server that does not answer.
        """
        try:
            await super().cancel_safe(timeout=min(timeout, CANCEL))
        except psycopg.Error:
            self.hang_up()
            raise

    def hang_up(self) -> None:
        """End it as if the server had: whoever waits for an answer fails at once.

        Not by closing it, which would pull the descriptor away from under the event loop.
        """
        with (
            suppress(OSError, psycopg.Error),
            socket.socket(fileno=os.dup(self.pgconn.socket)) as ours,
        ):
            ours.shutdown(socket.SHUT_RDWR)

    def is_gone(self) -> bool:
        """Whether the server has ended it since it was used last; asks the kernel alone."""
        try:
            poll = select.poll()
            poll.register(self.pgconn.socket, select.POLLIN)
            for _ in range(_PENDING):
                if not poll.poll(0):
                    return False
                self.pgconn.consume_input()
        except (psycopg.Error, OSError):
            return True
        return False


def network(url: str) -> dict[str, Any]:
    """What bounds a connection beside the address, which goes first. Any: numbers and text."""
    given = conninfo_to_dict(url)
    return {name: value for name, value in _NETWORK.items() if name not in given}


def parameters(url: str) -> dict[str, Any]:
    """What to connect with beside the address. Any: numbers and text, as the driver takes them."""
    return {**network(url), "autocommit": True, "prepare_threshold": 0}


async def configure(connection: BoundedConnection) -> None:
    """What every connection is told first."""
    await connection.execute(_CONFIGURE, prepare=False)


@asynccontextmanager
async def listening(url: str, channel: str) -> AsyncGenerator[AsyncGenerator[str, None], None]:
    """The payloads of a channel's notices, as they come, on a connection of its own.

    Ends with psycopg.Error when the connection does, within seconds, also where nobody told us.
    """
    async with await BoundedConnection.connect(url, **parameters(url)) as connection:
        await connection.execute(f"LISTEN {channel}".encode())
        payloads = _payloads(connection)
        try:
            yield payloads
        finally:
            await payloads.aclose()


async def _payloads(connection: BoundedConnection) -> AsyncGenerator[str, None]:
    while True:
        async for notice in connection.notifies(timeout=SILENCE):
            yield notice.payload
        # A connection whose other end is gone is silent like one on which nothing happens.
        await connection.execute("SELECT 1")
