"""Where metrics are read: HTTP/1.1, `GET /metrics` and no more, on the event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncio import StreamReader, StreamWriter
    from collections.abc import AsyncGenerator

_log = logging.getLogger(__name__)

#: What is served, and its content type, for an Accept header.
Render = Callable[[str], Awaitable[tuple[bytes, str]]]
PATH = "/metrics"
PLAIN = "text/plain; charset=utf-8"
#: The longest request with all its headers, and all that one may take, in s.
REQUEST_LIMIT = 16 * 1024
SECONDS = 15.0
#: Requests at once; whoever comes beyond is hung up on.
AT_ONCE = 16


class AddressTaken(Exception):
    """The address cannot be served on."""


@asynccontextmanager
async def serving(listen: str, render: Render) -> AsyncGenerator[str]:
    """Serve on host:port while the context is open; the address. Raises AddressTaken."""
    host, _, port = listen.rpartition(":")
    scrapes = Scrapes(render)
    try:
        server = await asyncio.start_server(
            scrapes.answer, host.strip("[]"), int(port), limit=REQUEST_LIMIT
        )
    except OSError as error:
        raise AddressTaken(listen) from error
    try:
        yield f"{host}:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await scrapes.close()
        await server.wait_closed()


class Scrapes:
    """Answers one request on each connection."""

    def __init__(self, render: Render) -> None:
        self._render = render
        self._tasks: set[asyncio.Task[object]] = set()

    async def answer(self, reader: StreamReader, writer: StreamWriter) -> None:
        """Read a request, answer it, and hang up."""
        task = asyncio.current_task()
        assert task is not None, "asyncio runs this as a task"
        self._tasks.add(task)
        try:
            if len(self._tasks) <= AT_ONCE:
                async with asyncio.timeout(SECONDS):
                    await self._answer(reader, writer)
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            # It went away, or was none of ours.
            pass
        except asyncio.CancelledError:
            # By `close`, and nobody waits for it. Up to Python 3.11 asyncio logs a fault of its own
            # for a task like this one that ends as cancelled.
            pass
        except Exception:  # noqa: BLE001  # a fault in a scrape is no reason to end anything
            _log.exception("a scrape failed", extra={"action": "metrics"})
        finally:
            self._tasks.discard(task)
            writer.close()

    async def close(self) -> None:
        """Hang up on whoever is still there."""
        for task in set(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    async def _answer(self, reader: StreamReader, writer: StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        status, body, content_type = await self._respond(head)
        lines = (
            f"HTTP/1.1 {status.value} {status.phrase}",
            f"Content-Type: {content_type}",
            f"Content-Length: {len(body)}",
            "Connection: close",
        )
        writer.write("\r\n".join((*lines, "", "")).encode())
        if not head.startswith("HEAD "):
            writer.write(body)
        with suppress(ConnectionError):
            await writer.drain()

    async def _respond(self, head: str) -> tuple[HTTPStatus, bytes, str]:
        first, *lines = head.split("\r\n")
        method, _, rest = first.partition(" ")
        target, _, version = rest.rpartition(" ")
        if not version.startswith("HTTP/1."):
            return HTTPStatus.BAD_REQUEST, b"HTTP/1.1 is spoken here\n", PLAIN
        if method not in ("GET", "HEAD"):
            return HTTPStatus.METHOD_NOT_ALLOWED, b"GET only\n", PLAIN
        if target.partition("?")[0] != PATH:
            return HTTPStatus.NOT_FOUND, f"metrics are at {PATH}\n".encode(), PLAIN
        headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines)
        }
        body, content_type = await self._render(headers.get("accept", ""))
        return HTTPStatus.OK, body, content_type
