"""uvicorn inside the caller's event loop."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from local.fly.settings import SettingError

#: Longest idle time of a connection, in s. Longer than any client of this project keeps one (30 s):
#: a connection that the server closes as its client uses it again loses that request.
KEEP_ALIVE_SECONDS = 75


class _Protocol(HttpToolsProtocol):
    """HTTP protocol that lets the application abort the connection without an answer."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {"roost.abort": self.transport.abort}  # type: ignore[dict-item]


class _Server(uvicorn.Server):
    """A server that installs no signal handlers and ends at once when `ending` is set."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()
        self.ending = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do nothing: the program that runs the event loop handles signals."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    async def main_loop(self) -> None:
        await self.ending.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close listeners and connections, and cancel the requests in progress."""
        for server in self.servers:
            server.close()
        tasks = list(self.server_state.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for connection in list(self.server_state.connections):
            connection.shutdown()
        for server in self.servers:
            await server.wait_closed()


@contextlib.asynccontextmanager
async def serving(app: ASGIApp, host: str, port: int, name: str) -> AsyncIterator[int]:
    """Serve until the block ends, and yield the port; port 0 chooses a free one.

    Raises SettingError, with `name` as the setting's name, when the port cannot be used.
    """
    listener = _listen(host, port, name)
    config = uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        date_header=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )
    server = _Server(config)
    running = asyncio.get_running_loop().create_task(server.serve([listener]), name=name)
    await server.listening.wait()
    try:
        yield listener.getsockname()[1]
    finally:
        server.ending.set()
        await running


def _listen(host: str, port: int, name: str) -> socket.socket:
    """A listening socket. uvicorn would exit the process on a taken port; this raises instead."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio switches Nagle's algorithm off only where the protocol is IPPROTO_TCP: 40 ms a reply.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
        return listener
    except OSError as error:
        listener.close()
        raise SettingError(
            name, f"cannot listen on {host}:{port}: {error.strerror}; 0 chooses a free one"
        ) from error
