"""TLS of both services, and the renewal of their certificates while calls go on."""

from __future__ import annotations

import asyncio
import os
import ssl
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2

from container_service.main import serve as serve_containers
from grpc_edge import certificates, tls
from grpc_edge.certificates import Files
from roost.session.v1 import session_pb2, session_service_pb2
from roost.session.v1.session_service_pb2_grpc import SessionServiceStub
from session_service.server.replica import serve
from tests.authorities import Authority, Pair
from tests.container.harness import config_for
from tests.eventually import eventually
from tests.grpc_edge import raw_calls
from tests.service_processes import fork
from tests.session.harness import key, session_config, spec
from tests.session.test_process import outcome

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from local.fly.emulator import Emulator

#: Channels of one process share connections unless told otherwise.
ALONE = (("grpc.use_local_subchannel_pool", 1),)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The authority of server and clients."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are looked at all the time."""
    monkeypatch.setattr(certificates, "LOOK", 0.02)


def files(pair: Pair) -> Files:
    """Of a server that wants its clients' certificates, or of a client."""
    return Files(str(pair.certificate), str(pair.key), str(pair.authority))


def own_files(pair: Pair) -> dict[str, Any]:
    """The settings of a server that wants its clients' certificates. Any: fields of a Config."""
    paths = {"tls_cert": pair.certificate, "tls_key": pair.key, "tls_client_ca": pair.authority}
    return {name: str(path) for name, path in paths.items()}


def check(channel: grpc.aio.Channel) -> Callable[..., Awaitable[Any]]:
    """The health check. Any: the stubs of its messages have no types."""
    made: Callable[..., Awaitable[Any]] = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    return made


async def answered(target: str, credentials: grpc.ChannelCredentials | None) -> bool:
    """Whether a client with these credentials, or in plain text, is served."""
    channel = (
        grpc.aio.insecure_channel(target, options=ALONE)
        if credentials is None
        else grpc.aio.secure_channel(target, credentials, options=ALONE)
    )
    async with channel:
        try:
            await check(channel)(health_pb2.HealthCheckRequest(), timeout=30)
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            return False
        return True


async def only_health_is_served(target: str) -> None:
    """In plain text, with the errors of every call of ours."""
    assert await answered(target, None)
    async with grpc.aio.insecure_channel(target) as channel:
        start = session_service_pb2.StartSessionRequest(key=key())
        with pytest.raises(grpc.aio.AioRpcError) as other:
            await SessionServiceStub(channel).StartSession(start, timeout=30)
        assert other.value.code() is grpc.StatusCode.UNIMPLEMENTED
        malformed = await raw_calls.call(
            channel,
            "/grpc.health.v1.Health/Check",
            [b"\xff"],
            client_streaming=False,
            server_streaming=False,
        )
        assert malformed is not None
        assert malformed.code() is grpc.StatusCode.INVALID_ARGUMENT


async def the_command_exports(target: str, pair: Pair) -> None:
    """With the files of its options; without them it says what is wrong."""
    paths = {"--ca": pair.authority, "--cert": pair.certificate, "--key": pair.key}
    options = [text for name, path in paths.items() for text in (name, str(path))]
    for given, status in ((options, 0), (options[:4], 2), (options[2:], 2), ([], 2)):
        command = ("agent", "--target", target, *given, "export", "-")
        process = await fork("session_service", *command, environment={"PATH": os.environ["PATH"]})
        ended, _, err = await outcome(process)
        assert (ended, err.count("\n")) == (status, int(status != 0)), err


def shown(target: str) -> str:
    """The certificate that the server shows a new connection."""
    host, _, port = target.rpartition(":")
    return ssl.get_server_certificate((host, int(port)), timeout=30)


async def test_a_session_lives_behind_mutual_tls(
    authority: Authority, emulator: Emulator, database_url: str, tmp_path: Path
) -> None:
    """From the caller to session_service, and from there to container_service. Plain text, no
    certificate, and that of a stranger get no answer.
    """
    server, caller, inner = (authority.issue(name) for name in ("server", "caller", "service"))
    own = own_files(server) | {"health_listen": "127.0.0.1:0"}
    stranger = Authority(tmp_path / "stranger").issue("caller")
    mixed = grpc.ssl_channel_credentials(
        server.authority.read_bytes(), stranger.key.read_bytes(), stranger.certificate.read_bytes()
    )
    async with AsyncExitStack() as stack:
        containers = await stack.enter_async_context(
            serve_containers(replace(config_for(emulator, grace=0.1), **own))
        )
        calling = {
            "container_tls_ca": str(inner.authority),
            "container_tls_cert": str(inner.certificate),
            "container_tls_key": str(inner.key),
        }
        config = session_config(
            database_url, containers.target, emulator.proxy_url, grace=0.1, **own, **calling
        )
        running = await stack.enter_async_context(serve(config))
        channel = await stack.enter_async_context(
            grpc.aio.secure_channel(running.target, caller.credentials())
        )
        stub = SessionServiceStub(channel)
        request = session_service_pb2.StartSessionRequest(key=key(), spec=spec())
        first = await stub.StartSession(request, timeout=60)
        assert first.outcome == session_pb2.START_OUTCOME_CREATED
        again = await stub.StartSession(request, timeout=60)
        assert again.outcome == session_pb2.START_OUTCOME_REUSED

        await the_command_exports(running.target, caller)
        for one in (containers, running):
            target = one.target
            assert not await answered(target, None)
            only = grpc.ssl_channel_credentials(server.authority.read_bytes())
            assert not await answered(target, only)
            assert not await answered(target, mixed)
            await only_health_is_served(one.health_target)


async def test_certificates_are_renewed_while_calls_go_on(
    authority: Authority, emulator: Emulator
) -> None:
    """Of server and client, from one authority to another over a time with both: no call fails, and
    a call that has begun on the old connection ends on it.
    """
    server, client = authority.issue("server"), authority.issue("client")
    own = own_files(server)
    async with (
        serve_containers(replace(config_for(emulator, grace=0.1), **own)) as running,
        tls.channel(running.target, files(client)) as channel,
    ):
        assert isinstance(channel, tls.RenewedChannel)
        call, ended, count = check(channel), asyncio.Event(), 0
        watching = channel.unary_stream(
            "/grpc.health.v1.Health/Watch",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )(health_pb2.HealthCheckRequest())
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING

        async def load() -> None:
            nonlocal count
            while not ended.is_set():
                await call(health_pb2.HealthCheckRequest(), timeout=30)
                count += 1

        loading = [asyncio.create_task(load()) for _ in range(4)]

        async def more_calls() -> None:
            """Until each of the loads has had calls since."""
            seen = count
            assert await eventually(lambda: count > seen + 20)

        async def renewed(name: str, renew: Callable[[], object]) -> None:
            """Until the server shows another certificate, or the client has another channel."""

            async def state() -> object:
                if name == "client":
                    return channel.current
                return await asyncio.to_thread(shown, running.target)

            before = await state()
            renew()

            async def other() -> bool:
                return await state() != before

            assert await eventually(other)
            await more_calls()

        await more_calls()
        for _ in range(3):
            for name in ("server", "client"):
                await renewed(name, partial(authority.issue, name))

        # To another authority: first all trust both, then the certificates change.
        other = Authority(authority.folder.parent / "other")
        both = authority.ca.cert_pem.bytes() + other.ca.cert_pem.bytes()

        def trust_both() -> None:
            for pair in (server, client):
                pair.authority.write_bytes(both)

        def move(name: str) -> None:
            other.issue(name)
            for kind in ("pem", "key"):
                (other.folder / f"{name}.{kind}").rename(authority.folder / f"{name}.{kind}")

        await renewed("client", trust_both)
        for name in ("server", "client"):
            await renewed(name, partial(move, name))
        assert await answered(running.target, client.credentials())

        ended.set()
        await asyncio.gather(*loading)
        assert not watching.done()
        watching.cancel()


async def test_old_channels_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the calls on them had their time, and all that are left with the channel."""

    def connect() -> grpc.aio.Channel:
        return grpc.aio.insecure_channel("127.0.0.1:9", options=ALONE)

    def closed(one: grpc.aio.Channel) -> bool:
        return one.get_state() is grpc.ChannelConnectivity.SHUTDOWN

    channel = tls.RenewedChannel(connect)
    channels = [channel.current]
    channel.renew()
    channels.append(channel.current)
    await asyncio.sleep(0)  # its task begins to wait
    monkeypatch.setattr(tls, "KEPT", 0.0)
    channel.renew()
    channels.append(channel.current)
    assert await eventually(lambda: closed(channels[1]))
    assert not closed(channels[0])
    await channel.close()
    assert all(closed(each) for each in channels)
