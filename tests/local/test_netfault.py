"""The TCP relay: what passes, and what does not, in each weather."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Self

import pytest

from local.netfault import NetFault, Weather
from local.ports import HOST
from tests.eventually import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

#: Long enough to say that nothing comes any more.
SILENCE = 0.15


@dataclass
class Echo:
    """A server that gives back what it is sent, and counts who came."""

    port: int = 0
    came: int = 0
    heard: bytearray = field(default_factory=bytearray)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.came += 1
        try:
            while data := await reader.read(65536):
                self.heard += data
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()


class Client:
    """A connection, and what it says and hears."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def to(cls, port: int) -> Self:
        return cls(*await asyncio.open_connection(HOST, port))

    async def say(self, text: bytes) -> None:
        self.writer.write(text)
        await self.writer.drain()

    async def hear(self, count: int, timeout: float = 5.0) -> bytes:
        return await asyncio.wait_for(self.reader.readexactly(count), timeout)

    async def asks(self, text: bytes) -> bytes:
        await self.say(text)
        return await self.hear(len(text))

    async def hears_nothing(self) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(self.reader.read(1), SILENCE)

    async def is_reset(self) -> None:
        with pytest.raises(ConnectionResetError):
            while await asyncio.wait_for(self.reader.read(65536), 5):
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


async def test_in_good_weather_every_byte_passes_and_an_end_is_passed_on(relay: NetFault) -> None:
    data = bytes(range(256)) * 4096
    async with connected(relay) as client:
        sending = asyncio.create_task(client.say(data))
        assert await client.hear(len(data)) == data
        await sending
        assert relay.connections == 1
        client.writer.write_eof()
        assert await asyncio.wait_for(client.reader.read(), 5) == b""
    assert await eventually(lambda: relay.connections == 0)


async def test_a_cut_resets_what_stands_and_refuses_what_comes(relay: NetFault, echo: Echo) -> None:
    async with connected(relay) as before:
        assert await before.asks(b"hello") == b"hello"
        relay.cut()
        await before.is_reset()
    assert await eventually(lambda: relay.connections == 0)
    async with connected(relay) as refused:
        await refused.is_reset()
    assert echo.came == 1
    relay.clear()
    async with connected(relay) as after:
        assert await after.asks(b"again") == b"again"


async def test_half_open_swallows_and_stands(relay: NetFault, echo: Echo) -> None:
    async with connected(relay) as old, connected(relay) as idle:
        assert await old.asks(b"hello") == b"hello"
        assert await idle.asks(b"hello") == b"hello"
        relay.half_open()
        await old.say(b"lost")
        await old.hears_nothing()
        async with connected(relay) as new:
            await new.say(b"lost as well")
            await new.hears_nothing()
            assert bytes(echo.heard) == b"hellohello"
            assert echo.came == 2
            relay.clear()
            # Streams with a hole are reset; one that lost nothing goes on.
            await old.is_reset()
            await new.is_reset()
        assert await idle.asks(b"still here") == b"still here"


async def test_half_open_hides_the_end_of_a_connection(echo: Echo, relay: NetFault) -> None:
    async with connected(relay) as client:
        assert await client.asks(b"hello") == b"hello"
        relay.half_open()
        client.writer.write_eof()
        await client.hears_nothing()
        relay.clear()
        await client.is_reset()


async def test_a_delay_is_each_way_and_does_not_thin_the_stream(relay: NetFault) -> None:
    async with connected(relay) as client:
        await client.asks(b"warm")
        relay.slow(0.1)
        began = monotonic()
        for number in range(10):
            await client.say(b"%d" % number)
            await asyncio.sleep(0.01)
        assert await client.hear(10) == b"0123456789"
        assert 0.2 <= monotonic() - began < 0.9, "twice the delay, not twenty times"


async def test_a_throttle_keeps_its_rate(relay: NetFault) -> None:
    async with connected(relay) as client:
        await client.asks(b"warm")
        relay.throttle(20_000)
        began = monotonic()
        assert await client.asks(bytes(6_000)) == bytes(6_000)
        assert 0.25 <= monotonic() - began < 2


async def test_a_server_that_is_away_is_a_reset_and_back_when_it_is(echo: Echo) -> None:
    async with NetFault(1) as nowhere, connected(nowhere) as client:
        await client.is_reset()
    async with NetFault(echo.port) as fault, connected(fault) as client:
        assert await client.asks(b"there") == b"there"


async def test_its_end_leaves_nothing(echo: Echo) -> None:
    before = asyncio.all_tasks()
    async with NetFault(echo.port) as fault:
        client = await Client.to(fault.port)
        await client.asks(b"hello")
        fault.half_open()
        await client.say(b"lost")
        waiting = await Client.to(fault.port)
        await waiting.say(b"lost")
        assert fault.weather is Weather.HALF_OPEN
    await client.is_reset()
    await waiting.is_reset()
    for each in (client, waiting):
        each.writer.close()
    assert await eventually(lambda: {t for t in asyncio.all_tasks() if t not in before} == set())
