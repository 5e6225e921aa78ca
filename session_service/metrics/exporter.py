"""The HTTP server that Prometheus scrapes: HTTP/1.1, `GET /metrics` only, on the event loop.

Not prometheus_client's own server, which limits neither its threads nor the time and size of a
request: docs/decisions/056-metrics-are-served-by-our-own-exporter.md has the measurements.
"""

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

#: From an Accept header: the body and its content type.
Render = Callable[[str], Awaitable[tuple[bytes, str]]]
PATH = "/metrics"
PLAIN = "text/plain; charset=utf-8"
#: Longest request with its headers, in bytes.
REQUEST_LIMIT = 16 * 1024
#: Longest time from the connection to the end of the answer, in s.
REQUEST_TIMEOUT = 15.0
#: The largest number of connections at once; further ones are closed unanswered.
MOST_CONNECTIONS = 16


class AddressTaken(Exception):
    """The address cannot be served on."""


@asynccontextmanager
async def serving(
    listen: str, render: Render, *, timeout: float = REQUEST_TIMEOUT
) -> AsyncGenerator[str]:
    """Serve on host:port while the context is open; yields the address. Raises AddressTaken."""
    host, _, port = listen.rpartition(":")
    exporter = Exporter(render, timeout)
    try:
        server = await asyncio.start_server(
            exporter.answer, host.strip("[]"), int(port), limit=REQUEST_LIMIT
        )
    except OSError as error:
        raise AddressTaken(listen) from error
    try:
        yield f"{host}:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await exporter.close()
        await server.wait_closed()


class Exporter:
    """Answers one request on each connection."""

    def __init__(self, render: Render, timeout: float) -> None:
        self._render = render
        self._timeout = timeout
        self._tasks: set[asyncio.Task[object]] = set()

    async def answer(self, reader: StreamReader, writer: StreamWriter) -> None:
        """Read a request, answer it, and close the connection."""
        task = asyncio.current_task()
        assert task is not None, "asyncio runs this as a task"
        self._tasks.add(task)
        try:
            if len(self._tasks) <= MOST_CONNECTIONS:
                async with asyncio.timeout(self._timeout):
                    await self._answer(reader, writer)
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            # The client went away, or does not speak HTTP.
            pass
        except asyncio.CancelledError:
            # `close` cancelled the task, and nothing awaits it. Re-raising would do no good: up to
            # Python 3.11 asyncio logs an error for a connection's task that ends as cancelled.
            pass
        except Exception:  # noqa: BLE001  # one scrape must not end the service
            _log.exception("a scrape failed", extra={"action": "metrics"})
        finally:
            self._tasks.discard(task)
            writer.close()

    async def close(self) -> None:
        """Close the connections that are still open."""
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
            return HTTPStatus.BAD_REQUEST, b"only HTTP/1.1 is supported\n", PLAIN
        if method not in ("GET", "HEAD"):
            return HTTPStatus.METHOD_NOT_ALLOWED, b"only GET and HEAD are supported\n", PLAIN
        if target.partition("?")[0] != PATH:
            return HTTPStatus.NOT_FOUND, f"metrics are at {PATH}\n".encode(), PLAIN
        headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines)
        }
        body, content_type = await self._render(headers.get("accept", ""))
        return HTTPStatus.OK, body, content_type
