"""The TCP relay: which bytes pass in each state of the network."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Self

import pytest

from local.netfault import NetFault, Network
from local.ports import HOST
from tests.eventually import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

#: After this time without a byte, none is expected, in s.
SILENCE = 0.15


@dataclass
class Echo:
    """A server that echoes its input and counts connections."""

    port: int = 0
    connections: int = 0
    received: bytearray = field(default_factory=bytearray)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while data := await reader.read(65536):
                self.received += data
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()


class Client:
    """A client connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def to(cls, port: int) -> Self:
        return cls(*await asyncio.open_connection(HOST, port))

    async def send(self, text: bytes) -> None:
        self.writer.write(text)
        await self.writer.drain()

    async def receive(self, count: int, timeout: float = 30.0) -> bytes:
        return await asyncio.wait_for(self.reader.readexactly(count), timeout)

    async def round_trip(self, text: bytes) -> bytes:
        await self.send(text)
        return await self.receive(len(text))

    async def receives_nothing(self) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(self.reader.read(1), SILENCE)

    async def is_reset(self) -> None:
        with pytest.raises(ConnectionResetError):
            while await asyncio.wait_for(self.reader.read(65536), 30):
                pass


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    server = Echo()
    running = await asyncio.start_server(server.serve, HOST, 0)
    server.port = running.sockets[0].getsockname()[1]
    yield server
    running.close()


@pytest.fixture
async def relay(echo: Echo) -> AsyncIterator[NetFault]:
    async with NetFault(echo.port) as fault:
        yield fault


@asynccontextmanager
async def connected(relay: NetFault) -> AsyncGenerator[Client]:
    client = await Client.to(relay.port)
    try:
        yield client
    finally:
        client.writer.close()


async def test_without_a_fault_every_byte_and_the_end_pass(relay: NetFault) -> None:
    data = bytes(range(256)) * 4096
    async with connected(relay) as client:
        sending = asyncio.create_task(client.send(data))
        assert await client.receive(len(data)) == data
        await sending
        assert relay.connections == 1
        client.writer.write_eof()
        assert await asyncio.wait_for(client.reader.read(), 30) == b""
    assert await eventually(lambda: relay.connections == 0)


async def test_a_cut_resets_open_and_new_connections(relay: NetFault, echo: Echo) -> None:
    async with connected(relay) as before:
        assert await before.round_trip(b"hello") == b"hello"
        relay.cut()
        await before.is_reset()
    assert await eventually(lambda: relay.connections == 0)
    async with connected(relay) as rejected:
        await rejected.is_reset()
    assert echo.connections == 1
    relay.clear()
    async with connected(relay) as after:
        assert await after.round_trip(b"again") == b"again"


async def test_half_open_drops_bytes_and_keeps_connections(relay: NetFault, echo: Echo) -> None:
    async with connected(relay) as old, connected(relay) as idle:
        assert await old.round_trip(b"hello") == b"hello"
        assert await idle.round_trip(b"hello") == b"hello"
        relay.half_open()
        await old.send(b"lost")
        await old.receives_nothing()
        async with connected(relay) as new:
            await new.send(b"lost as well")
            await new.receives_nothing()
            assert bytes(echo.received) == b"hellohello"
            assert echo.connections == 2
            relay.clear()
            # Connections that lost bytes are reset; one that lost none continues.
            await old.is_reset()
            await new.is_reset()
        assert await idle.round_trip(b"still here") == b"still here"


async def test_half_open_hides_the_end_of_a_connection(echo: Echo, relay: NetFault) -> None:
    async with connected(relay) as client:
        assert await client.round_trip(b"hello") == b"hello"
        relay.half_open()
        client.writer.write_eof()
        await client.receives_nothing()
        relay.clear()
        await client.is_reset()


async def test_a_delay_is_each_way_and_does_not_slow_the_stream(relay: NetFault) -> None:
    async with connected(relay) as client:
        await client.round_trip(b"warm")
        relay.slow(0.5)
        began = monotonic()
        for number in range(10):
            await client.send(b"%d" % number)
            await asyncio.sleep(0.01)
        assert await client.receive(10) == b"0123456789"
        assert 1.0 <= monotonic() - began < 9.0, "twice the delay, not twenty times"


async def test_a_throttle_keeps_its_rate(relay: NetFault) -> None:
    async with connected(relay) as client:
        await client.round_trip(b"warm")
        relay.throttle(20_000)
        began = monotonic()
        assert await client.round_trip(bytes(6_000)) == bytes(6_000)
        assert 0.25 <= monotonic() - began < 15


async def test_a_server_that_is_down_is_a_reset(echo: Echo) -> None:
    async with NetFault(1) as nowhere, connected(nowhere) as client:
        await client.is_reset()
    async with NetFault(echo.port) as fault, connected(fault) as client:
        assert await client.round_trip(b"there") == b"there"


async def test_its_end_leaves_nothing(echo: Echo) -> None:
    before = asyncio.all_tasks()
    async with NetFault(echo.port) as fault:
        client = await Client.to(fault.port)
        await client.round_trip(b"hello")
        fault.half_open()
        await client.send(b"lost")
        waiting = await Client.to(fault.port)
        await waiting.send(b"lost")
        assert fault.network is Network.HALF_OPEN
    await client.is_reset()
    await waiting.is_reset()
    for each in (client, waiting):
        each.writer.close()
    assert await eventually(lambda: {t for t in asyncio.all_tasks() if t not in before} == set())
