"""TLS of servers and channels, with certificates that are renewed while calls go on."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import grpc
import grpc.aio

from grpc_edge.certificates import Certificates, Files, WatchedCertificates
from grpc_edge.exposure import is_loopback

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

#: How long an old channel is kept for the calls that have begun on it, in s: longer than any call
#: to container_service may take.
KEPT = 3600.0


@asynccontextmanager
async def server_credentials(files: Files | None) -> AsyncGenerator[grpc.ServerCredentials | None]:
    """The credentials of a server, which follow the files while the context is open; None without
    files. With `authorities` each client must show a certificate that one of them has signed.

    Raises CertificateError.
    """
    if files is None:
        yield None
        return
    watched = await asyncio.to_thread(WatchedCertificates, files)
    latest = _Latest(watched.current)

    def changed() -> None:
        latest.current = watched.current

    async with _running(watched, changed):
        # Its stubs do not know that None is allowed, and means that nothing has changed.
        fetch = cast("Callable[[], grpc.ServerCertificateConfiguration]", latest.fetch)
        yield grpc.dynamic_ssl_server_credentials(
            _configuration(watched.current), fetch, bool(files.authorities)
        )


class _Latest:
    """Gives gRPC the certificates of a new connection."""

    def __init__(self, current: Certificates) -> None:
        self.current = self._given = current

    def fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """None: nothing has changed. Called by a thread of gRPC's core for each new connection,
        under one lock for all of them, so that it must not wait for anything.
        """
        current = self.current
        if current is self._given:
            return None
        self._given = current
        return _configuration(current)


def _configuration(certificates: Certificates) -> grpc.ServerCertificateConfiguration:
    pair = (certificates.key or b"", certificates.chain or b"")
    return grpc.ssl_server_certificate_configuration([pair], certificates.authorities)


@asynccontextmanager
async def channel(
    target: str, files: Files | None, options: Sequence[tuple[str, Any]] = ()
) -> AsyncGenerator[grpc.aio.Channel]:
    """A channel to the target: in plain text without files, else with TLS. With new certificates
    new calls take a new connection; those that have begun end on the old one.

    Any: values of gRPC's options. Raises CertificateError.
    """
    if is_loopback(target):
        # Else gRPC sends such calls through the proxy of `http_proxy`, if that is set.
        options = (*options, ("grpc.enable_http_proxy", 0))
    if files is None:
        async with grpc.aio.insecure_channel(target, options=options) as plain:
            yield plain
        return
    watched = await asyncio.to_thread(WatchedCertificates, files)

    def connect() -> grpc.aio.Channel:
        return grpc.aio.secure_channel(target, _credentials(watched.current), options=options)

    async with RenewedChannel(connect) as renewed, _running(watched, renewed.renew):
        yield renewed


def credentials(files: Files) -> grpc.ChannelCredentials:
    """The credentials of a channel that lives no longer than a command. Raises CertificateError."""
    return _credentials(WatchedCertificates(files).current)


def _credentials(certificates: Certificates) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(
        certificates.authorities, certificates.key, certificates.chain
    )


@asynccontextmanager
async def _running(
    watched: WatchedCertificates, changed: Callable[[], None]
) -> AsyncGenerator[None]:
    task = asyncio.create_task(watched.run(changed), name="certificates")
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


class RenewedChannel(grpc.aio.Channel):
    """A channel that can be replaced under the stubs that use it."""

    def __init__(self, connect: Callable[[], grpc.aio.Channel]) -> None:
        self._connect = connect
        self.current = connect()
        self._old: set[grpc.aio.Channel] = set()
        self._retiring: set[asyncio.Task[None]] = set()

    def renew(self) -> None:
        """Send new calls over a new channel."""
        old, self.current = self.current, self._connect()
        self._old.add(old)
        task = asyncio.create_task(self._retire(old), name="old-channel")
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _retire(self, old: grpc.aio.Channel) -> None:
        await asyncio.sleep(KEPT)
        self._old.discard(old)
        # Without a grace: `close` knows only of some kinds of calls and would cut the others.
        await old.close()

    async def __aenter__(self) -> RenewedChannel:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        """Close the channel and those that it has replaced."""
        for task in self._retiring:
            task.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)
        for each in (*self._old, self.current):
            await each.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """The state of the connection that new calls take."""
        return self.current.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Wait until the connection of now has another state."""
        await self.current.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """Wait until the connection of now can be used."""
        await self.current.channel_ready()

    # Any: multicallables take and give messages of every type.

    def unary_unary(self, *arguments: Any, **named: Any) -> Any:
        """A method of the channel of the time of each call."""
        return _Method(self, "unary_unary", arguments, named)

    def unary_stream(self, *arguments: Any, **named: Any) -> Any:
        """A method of the channel of the time of each call."""
        return _Method(self, "unary_stream", arguments, named)

    def stream_unary(self, *arguments: Any, **named: Any) -> Any:
        """A method of the channel of the time of each call."""
        return _Method(self, "stream_unary", arguments, named)

    def stream_stream(self, *arguments: Any, **named: Any) -> Any:
        """A method of the channel of the time of each call."""
        return _Method(self, "stream_stream", arguments, named)


class _Method:
    """A multicallable of whatever channel is the current one."""

    def __init__(self, channel: RenewedChannel, kind: str, arguments: Any, named: Any) -> None:
        self._channel, self._kind, self._arguments, self._named = channel, kind, arguments, named
        self._of: grpc.aio.Channel | None = None
        self._made: Any = None

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        current = self._channel.current
        if self._of is not current:
            self._made = getattr(current, self._kind)(*self._arguments, **self._named)
            self._of = current
        return self._made(*arguments, **named)
