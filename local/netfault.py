"""A TCP relay that injects network faults between a client and its server."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from enum import StrEnum
from typing import TYPE_CHECKING, Self

from local.ports import HOST

if TYPE_CHECKING:
    from collections.abc import Callable

READ_BYTES = 64 * 1024
#: A throttled connection sends this many portions per second.
PORTIONS = 20
#: SO_LINGER with 0 s: close sends a RST, as from a host that has no such connection.
_RESET = struct.pack("ii", 1, 0)


class Network(StrEnum):
    """The state of the network between the two ends."""

    PASS = "PASS"
    """Every byte arrives, after `delay` and at `rate`."""
    CUT = "CUT"
    """Existing and new connections are reset."""
    HALF_OPEN = "HALF_OPEN"
    """Connections stay open and new ones are accepted, but no byte arrives in either direction."""


class NetFault:
    """A relay in front of `host:port` that listens on loopback as long as this context.

    A change takes effect at once, on open connections and on new ones. Bytes that arrive in
    HALF_OPEN are lost, so a connection that lost bytes is reset when HALF_OPEN ends: TCP never
    delivers a stream with a gap.
    """

    def __init__(self, port: int, host: str = HOST) -> None:
        """`host` and `port` are the server's, which need not be running yet."""
        self._upstream = (host, port)
        self._server: asyncio.Server | None = None
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self.network = Network.PASS
        self.delay = 0.0
        """Seconds by which every byte is delayed, in each direction."""
        self.rate: float | None = None
        """Bytes per second, per connection and direction; None is no limit."""

    @property
    def port(self) -> int:
        """The port on which it listens."""
        if self._server is None:
            raise RuntimeError("the relay is not running")
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def connections(self) -> int:
        """The number of open connections."""
        return len(self._links)

    def clear(self) -> None:
        """End all faults. Connections that lost bytes are reset."""
        self.delay, self.rate = 0.0, None
        self._set(Network.PASS)

    def cut(self) -> None:
        """Reset every connection, open and new, until `clear`."""
        self._set(Network.CUT)
        self.reset()

    def half_open(self) -> None:
        """Drop every byte from now on; connections stay open. `clear` or `cut` ends it."""
        self._set(Network.HALF_OPEN)

    def slow(self, delay: float) -> None:
        """Delay every byte by `delay` seconds, in each direction."""
        self.delay = delay

    def throttle(self, rate: float) -> None:
        """Limit each connection and direction to `rate` bytes per second."""
        self.rate = rate

    def reset(self) -> None:
        """Reset every open connection once; new ones are not affected."""
        for link in list(self._links):
            link.reset()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accepted, HOST, 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
        self.reset()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _set(self, network: Network) -> None:
        was, self.network = self.network, network
        if was is Network.HALF_OPEN and network is not Network.HALF_OPEN:
            for link in list(self._links):
                if link.lost_bytes:
                    link.reset()
        self._changed.set()
        self._changed = asyncio.Event()

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.network is Network.CUT:
            _reset(writer)
            return
        task = asyncio.current_task()
        assert task is not None, "a server's callback runs in a task"
        self._tasks.add(task)
        link = _Link(self, reader, writer)
        self._links.add(link)
        try:
            await link.run()
        finally:
            self._links.discard(link)
            self._tasks.discard(task)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to the server; in HALF_OPEN wait for its end first."""
        while self.network is Network.HALF_OPEN:
            await self._changed.wait()
        return await asyncio.open_connection(*self._upstream)


class _Link:
    """One relayed connection: the client's half and the server's."""

    def __init__(
        self, fault: NetFault, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._fault = fault
        self._client = (reader, writer)
        self._writers = [writer]
        self._over = asyncio.Event()
        self.lost_bytes = False
        """Whether it lost bytes in HALF_OPEN."""

    def reset(self) -> None:
        """Reset both halves and drop the bytes in transit."""
        for writer in self._writers:
            _reset(writer)
        self._over.set()

    async def run(self) -> None:
        """Relay until one end closes or the connection is reset."""
        jobs = [asyncio.create_task(self._relay()), asyncio.create_task(self._over.wait())]
        try:
            await asyncio.wait(jobs, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for job in jobs:
                job.cancel()
            await asyncio.gather(*jobs, return_exceptions=True)
            for writer in self._writers:
                writer.close()

    async def _relay(self) -> None:
        fault = self._fault
        # A connection that was accepted in HALF_OPEN is reset at its end, like one that lost bytes.
        if fault.network is Network.HALF_OPEN:
            self.lost_bytes = True
        try:
            server = await fault._connect()
        except OSError:
            self.reset()
            return
        self._writers.append(server[1])
        try:
            await asyncio.gather(
                self._pump(self._client[0], server[1]), self._pump(server[0], self._client[1])
            )
        except OSError:
            self.reset()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Relay one direction. A delayed byte does not delay the reading of those after it."""
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=256)
        sender = asyncio.create_task(self._send(queue, writer))
        loop = asyncio.get_running_loop()
        try:
            data = b"first"
            while data:
                data = await reader.read(READ_BYTES)
                put = asyncio.ensure_future(queue.put((loop.time() + self._fault.delay, data)))
                await asyncio.wait({put, sender}, return_when=asyncio.FIRST_COMPLETED)
                if sender.done():
                    put.cancel()
                    break
            await sender
        finally:
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)

    async def _send(
        self, queue: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter
    ) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due, data = await queue.get()
            await asyncio.sleep(max(0.0, due - loop.time()))
            if self._fault.network is Network.HALF_OPEN:
                self.lost_bytes = True
                if data:
                    continue
                # The end of the stream does not arrive either.
                await self._until(lambda: self._fault.network is not Network.HALF_OPEN)
            if not data:
                if writer.can_write_eof():
                    writer.write_eof()
                return
            for portion, pause in _portions(data, self._fault.rate):
                writer.write(portion)
                await writer.drain()
                await asyncio.sleep(pause)

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            await self._fault._changed.wait()


def _portions(data: bytes, rate: float | None) -> list[tuple[bytes, float]]:
    """Cut the data into portions, each with the pause after it, in s, that keeps to `rate`."""
    if rate is None:
        return [(data, 0.0)]
    size = max(1, int(rate / PORTIONS))
    cut = [data[at : at + size] for at in range(0, len(data), size)]
    return [(portion, len(portion) / rate) for portion in cut]


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with a RST: the other end sees it at once, and bytes in transit are dropped."""
    sock = writer.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
