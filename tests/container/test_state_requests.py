"""Captures and restores that fail before any state is transferred."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc
import grpc.aio
import pytest

from container_service.rpc import servicer
from roost.container.v1 import container_service_pb2 as pb
from tests.cases import each
from tests.container.harness import Service, failing, serving
from tests.container.state_calls import (
    MB,
    capture,
    capture_fails,
    command,
    counter,
    http,
    restoring,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.mark.parametrize("hook", [http(), command("head -c 1002 /dev/zero #")], ids=str)
async def test_a_state_above_the_limit_is_rejected(service: Service, hook: pb.StateHook) -> None:
    container_id = await counter(service, COUNTER_STATE_BYTES="1000")
    async with serving(service.emulator, state_limit=1001) as tight:
        failure, parts = await capture_fails(tight, container_id, hook)
        assert parts == []
        assert (failure.code, failure.reason) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "STATE_TOO_LARGE",
        )
        assert failure.retry_seconds is None
        failure = await failing(restoring(tight, container_id, hook, [b"5\n", bytes(1000)]))
        assert failure.reason == "STATE_TOO_LARGE"
    assert (await capture(service, container_id, http())).startswith(b"0\n")


PATHS = [
    "", "state", "http://elsewhere/state", "//elsewhere/state", "/%2felsewhere/state",
    "/../v1/apps", "/a/%2e%2E/b", "/a/..", "/sta\nte", "/state%0d%0ahost:x", "/state\\x", "/sta te",
    "/state#x", "/%zz", "/é", "/" + "x" * 1024,
]  # fmt: skip


@each("path", PATHS)
async def test_an_invalid_path_names_the_field(service: Service, path: str) -> None:
    failure, _ = await capture_fails(service, "a", http(path))
    assert (failure.code, failure.fields) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        ("state_hook.http_path",),
    )
    failure = await failing(restoring(service, "a", http(path), [b"x"]))
    assert failure.fields == ("state_hook.http_path",)
    spec = pb.ContainerSpec(image="roost/base", state_hook=http(path))
    request = pb.CreateContainerRequest(name="roost-wren-1", spec=spec)
    failure = await failing(service.stub.CreateContainer(request, timeout=30))
    assert failure.fields == ("spec.state_hook.http_path",)
    assert await service.requests() == []


async def test_a_missing_field_is_named(service: Service) -> None:
    failure, _ = await capture_fails(service, "", pb.StateHook())
    assert failure.fields == ("container_id", "state_hook")
    failure = await failing(service.stub.RestoreState(iter([]), timeout=30))
    assert failure.fields == ("container_id", "state_hook")
    failure, _ = await capture_fails(service, "a", command(""))
    assert failure.fields == ("state_hook.command",)


async def test_only_the_first_message_may_name_the_container(service: Service) -> None:
    container_id = await counter(service)
    first = pb.RestoreStateRequest(container_id=container_id, state_hook=http(), chunk=b"7\n")
    call = service.stub.RestoreState(
        iter([first, pb.RestoreStateRequest(container_id="b", chunk=b"x")]), timeout=30
    )
    assert (await failing(call)).fields == ("container_id",)
    assert await capture(service, container_id, http()) == b"0\n"


@pytest.mark.parametrize("path", ["", "/state"])
async def test_a_caller_that_is_still_sending_gets_the_error(service: Service, path: str) -> None:
    """And not the failure of its own write, which gRPC for Python would report."""
    failure = await failing(restoring(service, "0" * 14, http(path), [bytes(MB)] * 64))
    assert failure.reason == ("CONTAINER_NOT_FOUND" if path else "INVALID_FIELD")


async def test_a_caller_that_never_ends_its_stream_gets_the_error(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long before its deadline."""
    monkeypatch.setattr(servicer, "DRAIN_SECONDS", 0.5)

    async def endless() -> AsyncIterator[pb.RestoreStateRequest]:
        yield pb.RestoreStateRequest(container_id="0" * 14, state_hook=http())
        await asyncio.Event().wait()

    call = service.stub.RestoreState(endless(), timeout=30)
    assert (await failing(call)).reason == "CONTAINER_NOT_FOUND"


@pytest.mark.parametrize("hook", [http(), command()], ids=str)
async def test_a_suspended_container_is_not_started(service: Service, hook: pb.StateHook) -> None:
    container_id = await counter(service)
    request = pb.SuspendContainerRequest(container_id=container_id)
    await service.stub.SuspendContainer(request, timeout=30)
    failure, _ = await capture_fails(service, container_id, hook)
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "CONTAINER_STATE_CONFLICT",
    )
    failure = await failing(restoring(service, container_id, hook, [b"x"]))
    assert failure.reason == "CONTAINER_STATE_CONFLICT"
    assert await service.state(container_id) == pb.CONTAINER_STATE_SUSPENDED


async def test_an_unknown_container_is_not_found(service: Service) -> None:
    failure, _ = await capture_fails(service, "0" * 14, http())
    assert failure.reason == "CONTAINER_NOT_FOUND"


async def test_without_a_url_template_an_http_path_is_rejected(service: Service) -> None:
    container_id = await counter(service)
    async with serving(service.emulator, url_template="") as homeless:
        failure, _ = await capture_fails(homeless, container_id, http())
    assert failure.fields == ("state_hook.http_path",)
    assert "ROOST_URL_TEMPLATE" in failure.message
