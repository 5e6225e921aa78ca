"""The gRPC edge: statuses, request ids, log lines, health, reflection, unexpected errors."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from container_service.containers import errors
from container_service.main import SERVICE, serve
from container_service.rpc.health import Health
from container_service.rpc.interceptors import ErrorStatus, RequestLog
from container_service.rpc.status import TABLE, row_of, status_of
from grpc_edge.binding import PortTaken
from roost.container.v1 import container_service_pb2 as pb
from roost.container.v1 import container_service_pb2_grpc as rpc
from tests.cases import each
from tests.container.harness import (
    APP,
    LONGEST,
    Service,
    config_for,
    failing,
    read_failure,
    serving,
    until,
)
from tests.eventually import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from container_service.containers.provider import Provider
    from local.fly.emulator import Emulator


def kinds(root: type[errors.ServiceError]) -> Iterator[type[errors.ServiceError]]:
    for kind in root.__subclasses__():
        if kind.__module__ == errors.__name__:
            yield kind
        yield from kinds(kind)


def test_every_error_has_a_row_with_a_code_of_the_contract() -> None:
    bases = {errors.LeaseConflict, errors.ProviderError}
    for kind in set(kinds(errors.ServiceError)) - bases:
        assert any(each in TABLE for each in kind.__mro__), kind
    exhausted = {row.reason for row in TABLE.values() if row.code.name == "RESOURCE_EXHAUSTED"}
    assert exhausted == {"PROVIDER_CAPACITY", "PROVIDER_RATE_LIMITED", "STATE_TOO_LARGE"}


def test_retryable_errors_have_a_retry_info() -> None:
    for error in (
        errors.OutcomeUnknown("x"),
        errors.ProviderRateLimited("x"),
        errors.ProviderCapacity("x"),
    ):
        names = [detail.type_url.rpartition(".")[2] for detail in status_of(error).details]
        assert names == ["ErrorInfo", "RetryInfo"]
    assert row_of(errors.OutcomeUnknown("x")).reason == "PROVIDER_UNAVAILABLE"


def test_a_very_long_error_fits_into_the_trailers() -> None:
    error = errors.RequestIdReused("x" * 100_000, name="y" * 100_000)
    assert len(status_of(error).SerializeToString()) < 6000


WILD_WAIT = pb.WaitContainerRequest(container_id="a")
WILD_WAIT.states.append(cast("Any", 77))

INVALID: list[tuple[str, Any, str]] = [
    ("GetContainer", pb.GetContainerRequest(), "container_id"),
    ("GetContainer", pb.GetContainerRequest(container_id="x" * 65), "container_id"),
    ("GetContainer", pb.GetContainerRequest(container_id="../../apps"), "container_id"),
    ("ExecContainer", pb.ExecContainerRequest(container_id="a"), "command"),
    ("ReleaseLease", pb.ReleaseLeaseRequest(container_id="a"), "lease_nonce"),
    (
        "SuspendContainer",
        pb.SuspendContainerRequest(container_id="a", lease_nonce="a\r\nx: y"),
        "lease_nonce",
    ),
    ("WaitContainer", WILD_WAIT, "states[0]"),
]


@each(("method", "message", "field"), INVALID)
async def test_invalid_input_names_the_field_and_is_not_sent_to_the_provider(
    service: Service, method: str, message: Any, field: str
) -> None:
    rejected = await failing(getattr(service.stub, method)(message, timeout=30))
    assert rejected.code is grpc.StatusCode.INVALID_ARGUMENT
    assert (rejected.reason, rejected.domain) == ("INVALID_FIELD", "roost")
    assert rejected.fields == (field,)
    assert await service.requests() == []


async def test_an_error_with_many_violations_arrives(service: Service) -> None:
    labels = {f"bad key {'é' * 50} {number}": "x" for number in range(60)}
    request = pb.ListContainersRequest(labels=labels)
    rejected = await failing(service.stub.ListContainers(request, timeout=30))
    assert rejected.reason == "INVALID_FIELD"
    assert len(rejected.fields) == 10


async def test_a_message_over_the_limit_is_rejected_and_the_server_stays_up(
    service: Service,
) -> None:
    request = pb.GetContainerRequest(container_id="x" * (5 << 20))
    rejected = await failing(service.stub.GetContainer(request, timeout=30))
    assert rejected.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    await service.stub.ListContainers(pb.ListContainersRequest(), timeout=30)


async def test_the_request_id_is_returned_and_an_invalid_one_replaced(service: Service) -> None:
    for sent, kept in (("abc-123", True), ("spaces are not", False), ("x" * 65, False)):
        call = service.stub.ListContainers(
            pb.ListContainersRequest(), timeout=30, metadata=(("x-request-id", sent),)
        )
        await call
        trailers = dict(await call.trailing_metadata() or ())
        assert (trailers["x-request-id"] == sent) is kept
    with pytest.raises(grpc.aio.AioRpcError) as rejected:
        await service.stub.GetContainer(
            pb.GetContainerRequest(), timeout=30, metadata=(("x-request-id", "abc-123"),)
        )
    assert dict(rejected.value.trailing_metadata() or ())["x-request-id"] == "abc-123"


async def test_each_call_is_logged_without_its_content(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "container_service")
    spec = pb.ContainerSpec(image="roost/base", env={"PASSWORD": "hunter2"})
    await service.stub.CreateContainer(
        pb.CreateContainerRequest(name="roost-wren-1", spec=spec), timeout=30
    )
    await failing(service.stub.GetContainer(pb.GetContainerRequest(container_id="0"), timeout=30))

    def both_logged() -> bool:
        lines = [record.getMessage() for record in caplog.records if hasattr(record, "method")]
        return [line.split(" in ")[0] for line in lines] == [
            "Answered CreateContainer with OK",
            "Answered GetContainer with NOT_FOUND",
        ]

    # The line is written after the answer is sent, so the test may get here first.
    await eventually(both_logged)
    rejected = [record for record in caplog.records if hasattr(record, "fly_request_id")]
    assert rejected
    assert "hunter2" not in caplog.text


class Broken(rpc.ContainerServiceServicer):
    """Raises unexpected errors in every kind of RPC."""

    async def GetContainer(self, request: Any, context: Any) -> Any:
        raise ValueError("the password is hunter2")

    async def CaptureState(self, request: Any, context: Any) -> AsyncIterator[Any]:
        yield pb.CaptureStateResponse(chunk=b"a")
        raise ValueError("the password is hunter2")

    async def RestoreState(self, request_iterator: Any, context: Any) -> Any:
        async for _ in request_iterator:
            raise ValueError("the password is hunter2")


async def test_an_unexpected_error_is_logged_and_its_details_are_not_returned(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = grpc.aio.server(interceptors=(RequestLog(), ErrorStatus()))
    rpc.add_ContainerServiceServicer_to_server(Broken(), server)  # type: ignore[abstract]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = rpc.ContainerServiceStub(channel)
        unary = await failing(stub.GetContainer(pb.GetContainerRequest(), timeout=30))
        sent = await failing(stub.RestoreState(iter([pb.RestoreStateRequest()]), timeout=30))
        stream = stub.CaptureState(pb.CaptureStateRequest(), timeout=30)
        with pytest.raises(grpc.aio.AioRpcError) as broken:
            async for _ in stream:
                pass
    await server.stop(None)
    for failure in (unary, sent, read_failure(broken.value)):
        assert (failure.code, failure.message) == (grpc.StatusCode.INTERNAL, "internal error")
    assert caplog.text.count("ValueError: the password is hunter2") == 3


async def interrupted() -> None:
    """Wait for another task, which is cancelled meanwhile."""
    inner = asyncio.ensure_future(asyncio.Event().wait())
    asyncio.get_running_loop().call_soon(inner.cancel)
    await inner


class Interrupted(rpc.ContainerServiceServicer):
    """A task that the handler waits for is cancelled, in every kind of RPC. ExecContainer waits
    until it is cancelled itself.
    """

    def __init__(self) -> None:
        self.ended: list[BaseException] = []
        self.waiting = asyncio.Event()

    async def GetContainer(self, request: Any, context: Any) -> Any:
        await interrupted()

    async def CaptureState(self, request: Any, context: Any) -> AsyncIterator[Any]:
        yield pb.CaptureStateResponse(chunk=b"a")
        await interrupted()

    async def RestoreState(self, request_iterator: Any, context: Any) -> Any:
        await interrupted()

    async def ExecContainer(self, request: Any, context: Any) -> Any:
        self.waiting.set()
        try:
            await asyncio.Event().wait()
        except BaseException as error:
            self.ended.append(error)
            raise


async def test_a_call_that_is_interrupted_is_answered_at_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Without a status the client would wait for its whole deadline."""
    caplog.set_level("INFO", "container_service")

    def codes() -> list[str]:
        return [each.__dict__["code"] for each in caplog.records if hasattr(each, "code")]

    servicer = Interrupted()  # type: ignore[abstract]
    server = grpc.aio.server(interceptors=(RequestLog(), ErrorStatus()))
    rpc.add_ContainerServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = rpc.ContainerServiceStub(channel)
        began = monotonic()
        failures = [
            await failing(stub.GetContainer(pb.GetContainerRequest(), timeout=LONGEST)),
            await failing(stub.RestoreState(iter([pb.RestoreStateRequest()]), timeout=LONGEST)),
        ]
        with pytest.raises(grpc.aio.AioRpcError) as broken:
            async for _ in stub.CaptureState(pb.CaptureStateRequest(), timeout=LONGEST):
                pass
        failures.append(read_failure(broken.value))
        assert monotonic() - began < LONGEST
        call = stub.ExecContainer(pb.ExecContainerRequest(), timeout=LONGEST)
        await servicer.waiting.wait()
        call.cancel()
        await eventually(lambda: len(codes()) == 4)
    await server.stop(None)
    for failure in failures:
        assert failure.code == grpc.StatusCode.UNAVAILABLE
        assert failure.reason == "PROVIDER_UNAVAILABLE"
        assert failure.retry_seconds
    # The client's own cancellation passes.
    assert isinstance(servicer.ended[0], asyncio.CancelledError)
    assert codes() == ["UNAVAILABLE"] * 3 + ["CANCELLED"]


async def health_of(service: Service, name: str) -> int:
    stub: Any = health_pb2_grpc.HealthStub(service.channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=30)
    status: int = answer.status
    return status


async def test_health_is_serving_once_the_provider_answers(service: Service) -> None:
    for name in ("", SERVICE):

        async def serves(name: str = name) -> bool:
            return await health_of(service, name) == health_pb2.HealthCheckResponse.SERVING

        await until(serves)
    await service.admin.set_fault("unavailable")
    # Health stays SERVING in an outage, so that callers still get the error of each call.
    assert await health_of(service, "") == health_pb2.HealthCheckResponse.SERVING


async def test_health_is_not_serving_while_the_provider_rejects_the_token(
    emulator: Emulator,
) -> None:
    async with serving(emulator, fly_token="another") as service:

        async def was_asked() -> bool:
            seen = await service.admin.requests()
            return any(request.action == "app_get" for request in seen)

        await until(was_asked)
        assert await health_of(service, "") == health_pb2.HealthCheckResponse.NOT_SERVING
        assert await health_of(service, SERVICE) == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_a_health_watch_reports_the_change_to_serving() -> None:
    answers = asyncio.Event()

    class Answering:
        async def check(self, app: str, deadline: object) -> None:
            await answers.wait()

    provider: Provider = Answering()  # type: ignore[assignment]
    health = Health(provider, APP, (SERVICE,))
    await health.begin()
    server = grpc.aio.server(interceptors=(RequestLog(), ErrorStatus()))
    health_pb2_grpc.add_HealthServicer_to_server(health.servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE), timeout=30)
        first = await watch.read()
        running = asyncio.create_task(health.run())
        answers.set()
        second = await watch.read()
        await running
        watch.cancel()
    await server.stop(None)
    assert (first.status, second.status) == (
        health_pb2.HealthCheckResponse.NOT_SERVING,
        health_pb2.HealthCheckResponse.SERVING,
    )


async def test_reflection_lists_the_service(service: Service) -> None:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(cast("Any", service.channel))
    messages: Any = reflection_pb2
    request = messages.ServerReflectionRequest(list_services="")
    async for answer in stub.ServerReflectionInfo(iter([request]), timeout=30):
        names = {each.name for each in answer.list_services_response.service}
        assert {SERVICE, "grpc.health.v1.Health"} <= names


async def test_a_taken_port_is_an_error(service: Service, emulator: Emulator) -> None:
    with pytest.raises(PortTaken):
        async with serve(config_for(emulator, listen=service.target)):
            raise AssertionError("shares a port")


async def test_a_call_in_flight_finishes_before_shutdown(emulator: Emulator) -> None:
    async with AsyncExitStack() as outlasting, serving(emulator) as service:
        container_id = await service.create()
        await service.admin.set_fault("slow_after", action="exec", delay_ms=500)
        request = pb.ExecContainerRequest(container_id=container_id, command=["echo", "done"])
        async with serve(config_for(emulator, grace=LONGEST)) as ending:
            channel = grpc.aio.insecure_channel(ending.target)
            await outlasting.enter_async_context(channel)
            stub = rpc.ContainerServiceStub(channel)
            call = asyncio.ensure_future(stub.ExecContainer(request, timeout=30))
            await until(lambda: service.asked("exec"))
        assert (await call).stdout == "done\n"
