"""Bytes that are no message, and methods that nobody implements: a clear status, no traceback."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import grpc
from grpc_health.v1 import health_pb2

from roost.container.v1 import container_service_pb2 as container_pb
from tests.container.harness import read_failure
from tests.grpc_edge.raw_calls import call, call_method

if TYPE_CHECKING:
    import pytest

    from tests.grpc_edge.conftest import Server

#: Field 1, length-delimited, with a length that the bytes do not have.
GARBAGE = b"\x0a\xff\xff\xff\x7f"


def loud(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The lines that would wake somebody, and those with a traceback."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.ERROR or record.exc_info
    ]


async def test_bytes_that_are_no_message_are_an_invalid_request(
    servers: tuple[Server, Server], caplog: pytest.LogCaptureFixture
) -> None:
    """Of every method, unary or streaming, as the first message."""
    for server in servers:
        for method in server.methods:
            error = await call_method(server.channel, method, GARBAGE)
            assert error is not None, method.full_name
            failure = read_failure(error)
            assert failure.code == grpc.StatusCode.INVALID_ARGUMENT, (method.full_name, failure)
            assert (failure.reason, failure.fields) == ("INVALID_FIELD", ("request",))
            assert "bytes cannot be parsed" in failure.message
    assert loud(caplog) == []


async def test_garbage_after_a_valid_message_is_an_invalid_request(
    servers: tuple[Server, Server], caplog: pytest.LogCaptureFixture
) -> None:
    """Also of grpcio's own reflection."""
    for server in servers:
        path = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
        error = await call(
            server.channel, path, [b"\x3a\x00", GARBAGE],
            client_streaming=True, server_streaming=True,
        )  # fmt: skip
        assert error is not None
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert loud(caplog) == []


async def test_health_takes_garbage_and_its_unserved_method(
    servers: tuple[Server, Server], caplog: pytest.LogCaptureFixture
) -> None:
    """The health service of grpcio has the method List, and does not implement it."""
    expected = {
        "Check": (GARBAGE, grpc.StatusCode.INVALID_ARGUMENT),
        "List": (b"", grpc.StatusCode.UNIMPLEMENTED),
    }
    for server in servers:
        for name, (data, code) in expected.items():
            method = health_pb2.DESCRIPTOR.services_by_name["Health"].methods_by_name[name]
            error = await call_method(server.channel, method, data)
            assert error is not None
            assert error.code() == code, (server.name, name, error)
    assert loud(caplog) == []


async def test_a_stream_that_its_client_cancels_leaves_no_error(
    servers: tuple[Server, Server], caplog: pytest.LogCaptureFixture
) -> None:
    """No line at ERROR, and no exception that nobody retrieves (which asyncio logs at ERROR)."""
    for server in servers:
        watch = server.channel.unary_stream(
            "/grpc.health.v1.Health/Watch",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )(health_pb2.HealthCheckRequest(), timeout=9)
        assert await watch.read() is not grpc.aio.EOF
        watch.cancel()
        # Any: requests and answers are bytes here.
        reflection: Any = server.channel.stream_stream(
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
        )(timeout=9)
        await reflection.write(b"\x3a\x00")
        assert await reflection.read() is not grpc.aio.EOF
        reflection.cancel()
    containers = servers[1].channel
    method: Any = containers.unary_stream("/roost.container.v1.ContainerService/CaptureState")
    capture = method(
        container_pb.CaptureStateRequest(container_id="148e21").SerializeToString(), timeout=9
    )
    capture.cancel()
    # A call on the same connection is handled after the cancellations have arrived.
    for server in servers:
        assert await call(
            server.channel, "/grpc.health.v1.Health/List", [b""],
            client_streaming=False, server_streaming=False,
        )  # fmt: skip
    await asyncio.sleep(0)
    assert loud(caplog) == []
