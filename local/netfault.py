"""A TCP relay whose network can be made bad on demand: put it between a client and its server."""

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
#: A throttled link sends its share in so many portions per second.
PORTIONS = 20
#: SO_LINGER on, for 0 s: the close is a reset, as of a host that forgot the connection.
_RESET = struct.pack("ii", 1, 0)


class Weather(StrEnum):
    """How the network between the two ends is."""

    PASS = "PASS"
    """Every byte arrives, after the link's `delay` and at its `rate`."""
    CUT = "CUT"
    """Connections are reset, and new ones are, too."""
    HALF_OPEN = "HALF_OPEN"
    """Connections stand and new ones are accepted, but no byte arrives, in neither direction."""


class NetFault:
    """A relay in front of `host:port`, listening on loopback as long as this context.

    Its switches work at once, on the connections that stand as well as on new ones. What a
    connection lost in HALF_OPEN is lost: it is reset when the weather changes, since a stream with
    a hole in it is worse than none.
    """

    def __init__(self, port: int, host: str = HOST) -> None:
        """`host` and `port` are the server's; it need not be up."""
        self._upstream = (host, port)
        self._server: asyncio.Server | None = None
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self.weather = Weather.PASS
        self.delay = 0.0
        """Seconds that every byte is late, each way."""
        self.rate: float | None = None
        """Bytes per second, each way and connection; None is as fast as it goes."""

    @property
    def port(self) -> int:
        """Where it listens."""
        if self._server is None:
            raise RuntimeError("the relay does not run")
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def connections(self) -> int:
        """How many connections stand."""
        return len(self._links)

    def clear(self) -> None:
        """Good weather: everything passes, at once. Connections that lost bytes are reset."""
        self.delay, self.rate = 0.0, None
        self._set(Weather.PASS)

    def cut(self) -> None:
        """Reset every connection, and refuse new ones until `clear`."""
        self._set(Weather.CUT)
        self.reset()

    def half_open(self) -> None:
        """Swallow every byte from now on; connections stand. `clear` or `cut` ends it."""
        self._set(Weather.HALF_OPEN)

    def slow(self, delay: float) -> None:
        """Let every byte arrive `delay` seconds later, each way."""
        self.delay = delay

    def throttle(self, rate: float) -> None:
        """Let through at most `rate` bytes per second, each way and connection."""
        self.rate = rate

    def reset(self) -> None:
        """Reset every connection once; new ones are served as the weather is."""
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

    def _set(self, weather: Weather) -> None:
        was, self.weather = self.weather, weather
        if was is Weather.HALF_OPEN and weather is not Weather.HALF_OPEN:
            for link in list(self._links):
                if link.holed:
                    link.reset()
        self._changed.set()
        self._changed = asyncio.Event()

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.weather is Weather.CUT:
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
        """To the server; in HALF_OPEN only once that is over."""
        while self.weather is Weather.HALF_OPEN:
            await self._changed.wait()
        return await asyncio.open_connection(*self._upstream)


class _Link:
    """One connection, both halves."""

    def __init__(
        self, fault: NetFault, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._fault = fault
        self._client = (reader, writer)
        self._writers = [writer]
        self._over = asyncio.Event()
        self.holed = False
        """Whether it lost bytes."""

    def reset(self) -> None:
        """Reset both halves, whatever is on its way."""
        for writer in self._writers:
            _reset(writer)
        self._over.set()

    async def run(self) -> None:
        """Relay until an end closes, or it is reset."""
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
        # An empty read tells the end of a half; a client that says nothing is not connected for.
        if fault.weather is Weather.HALF_OPEN:
            self.holed = True
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
        """One direction. A delayed byte does not hold up the reading of those behind it."""
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
            if self._fault.weather is Weather.HALF_OPEN:
                self.holed = True
                if data:
                    continue
                # The end of a connection does not get through either.
                await self._until(lambda: self._fault.weather is not Weather.HALF_OPEN)
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
    """The data in portions, each with the pause after it that keeps the rate, in s."""
    if rate is None:
        return [(data, 0.0)]
    size = max(1, int(rate / PORTIONS))
    cut = [data[at : at + size] for at in range(0, len(data), size)]
    return [(portion, len(portion) / rate) for portion in cut]


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with a reset: the other end learns at once, and what was on its way is dropped."""
    sock = writer.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
