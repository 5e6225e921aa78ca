"""The exporter: what it does with clients of every kind, and what it leaves behind."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys

import httpx
import pytest

from session_service.metrics import exporter


async def ask(target: str, request: bytes) -> bytes:
    """The answer to exactly these bytes."""
    host, _, port = target.partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(request)
        return await asyncio.wait_for(reader.read(), 30)
    except ConnectionError:
        # The server closed the connection before it had read everything.
        return b""
    finally:
        writer.close()


async def test_a_client_that_sends_nothing_is_disconnected() -> None:
    """After the timeout; connections beyond the limit are closed at once."""

    async def render(accept: str) -> tuple[bytes, str]:
        return b"x 1\n", "text/plain"

    async with exporter.serving("127.0.0.1:0", render, timeout=3) as target:
        answers = await asyncio.gather(*(ask(target, b"GET /met") for _ in range(40)))
        assert answers == [b""] * 40
        assert (await ask(target, b"GET /metrics HTTP/1.1\r\n\r\n")).endswith(b"x 1\n")


async def test_a_fault_while_rendering_ends_that_scrape_only() -> None:
    """The exception is logged, and the next scrape is answered."""
    faults = iter([True, False])

    async def render(accept: str) -> tuple[bytes, str]:
        if next(faults):
            raise ZeroDivisionError
        return b"x 1\n", "text/plain"

    async with exporter.serving("127.0.0.1:0", render) as target:
        assert await ask(target, b"GET /metrics HTTP/1.1\r\n\r\n") == b""
        assert (await ask(target, b"GET /metrics HTTP/1.1\r\n\r\n")).endswith(b"x 1\n")


async def test_an_ipv6_address_is_served() -> None:
    """It is written in brackets, as in a URL."""

    async def render(accept: str) -> tuple[bytes, str]:
        return b"x 1\n", "text/plain"

    async with exporter.serving("[::1]:0", render) as target:
        assert target.startswith("[::1]:")
        async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
            assert (await client.get(f"http://{target}/metrics")).text == "x 1\n"


async def test_the_end_closes_open_connections() -> None:
    """A client that never sends its request, and one whose answer is being rendered. Nothing is
    left of either, and the port is free again.
    """
    rendering = asyncio.Event()

    async def render(accept: str) -> tuple[bytes, str]:
        rendering.set()
        await asyncio.Event().wait()
        return b"", ""

    before = asyncio.all_tasks()
    async with exporter.serving("127.0.0.1:0", render) as target:
        silent = asyncio.create_task(ask(target, b"GET /met"))
        waiting = asyncio.create_task(ask(target, b"GET /metrics HTTP/1.1\r\n\r\n"))
        await rendering.wait()
    assert (await silent, await waiting) == (b"", b"")
    assert asyncio.all_tasks() == before
    host, _, port = target.partition(":")
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind((host, int(port)))


# An interpreter that imports the whole service: many seconds on a busy machine.
@pytest.mark.timeout(240)
def test_prometheus_client_is_imported_only_if_metrics_are_on() -> None:
    """It takes memory that a replica without metrics does not need."""
    program = (
        "import sys, session_service.cli.serve\n"
        "assert 'prometheus_client' not in sys.modules\n"
        "from session_service.config import Config\n"
        "from session_service.server.replica import counting\n"
        "counting(Config('postgresql://localhost/roost'))\n"
        "assert 'prometheus_client' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
