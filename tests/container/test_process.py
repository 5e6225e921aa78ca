"""The service as a process: exit status, one-line errors, graceful stop."""

from __future__ import annotations

import asyncio
import signal
import socket
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health_pb2

from roost.container.v1 import container_service_pb2 as pb
from roost.container.v1 import container_service_pb2_grpc as rpc
from tests.container.harness import LONGEST, TOKEN, Service, fired, launch, running, until
from tests.open_processes import ended

if TYPE_CHECKING:
    from asyncio.subprocess import Process


async def outcome(process: Process) -> tuple[int | None, str, str]:
    out, err = await ended(process)
    return process.returncode, out.decode(), err.decode()


async def stopping(process: Process) -> str:
    """Read the log until the service says that it stops; what was read."""
    assert process.stderr is not None
    text = ""
    while "Stopping" not in text:
        line = await asyncio.wait_for(process.stderr.readline(), LONGEST)
        assert line, f"the process ended before it said that it stops: {text}"
        text += line.decode()
    return text


async def test_an_invalid_variable_is_one_line_and_status_2() -> None:
    code, out, err = await outcome(await launch(ROOST_GRACE="soon"))
    assert (code, out) == (2, "")
    assert err.startswith("container_service: ROOST_GRACE")
    assert err.count("\n") == 1


async def test_a_missing_token_is_one_line_and_status_2() -> None:
    code, _, err = await outcome(await launch(FLY_API_TOKEN=""))
    assert code == 2
    assert err.startswith("container_service: FLY_API_TOKEN")
    assert err.count("\n") == 1


async def test_a_taken_port_is_one_line_and_status_2() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        code, _, err = await outcome(await launch(ROOST_CONTAINER_LISTEN=listen))
    assert code == 2
    assert err.startswith(f"container_service: ROOST_CONTAINER_LISTEN: cannot listen on {listen}")
    assert err.count("\n") == 1


async def test_help_lists_the_variables() -> None:
    code, out, _ = await outcome(await launch("--help"))
    assert code == 0
    assert "FLY_API_TOKEN" in out
    assert "ROOST_CONTAINER_LISTEN" in out


async def test_calls_in_flight_finish_after_a_signal(service: Service) -> None:
    container_id = await service.create()
    fault = await service.admin.set_fault("slow_after", action="exec", delay_ms=60_000)
    async with (
        running(service.emulator) as (process, target),
        grpc.aio.insecure_channel(target) as channel,
    ):
        stub = rpc.ContainerServiceStub(channel)
        request = pb.ExecContainerRequest(container_id=container_id, command=["echo", "done"])
        call = asyncio.ensure_future(stub.ExecContainer(request, timeout=LONGEST))
        await fired(service, fault)
        process.send_signal(signal.SIGTERM)
        log = await stopping(process)
        await service.admin.end_fault(fault)
        assert (await call).stdout == "done\n"
        code, _, err = await outcome(process)
    err = log + err
    assert code == 0
    assert "Stopped" in err
    assert "Traceback" not in err
    assert TOKEN not in err


async def test_after_a_signal_calls_are_served_while_health_says_no(service: Service) -> None:
    """Until ROOST_LAME_DUCK is over, or a second signal comes; then the process ends as ever."""
    container_id = await service.create()
    async with (
        running(service.emulator, ROOST_LAME_DUCK="60") as (process, target),
        grpc.aio.insecure_channel(target) as channel,
    ):
        process.send_signal(signal.SIGTERM)
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )

        async def left() -> bool:
            answer = await check(health_pb2.HealthCheckRequest(), timeout=LONGEST)
            return bool(answer.status == health_pb2.HealthCheckResponse.NOT_SERVING)

        await stopping(process)
        await until(left)
        request = pb.ExecContainerRequest(container_id=container_id, command=["echo", "served"])
        answer = await rpc.ContainerServiceStub(channel).ExecContainer(request, timeout=LONGEST)
        assert answer.stdout == "served\n"
        process.send_signal(signal.SIGTERM)
        code, _, _ = await outcome(process)
    assert code == 0


async def test_a_second_signal_kills_the_process(service: Service) -> None:
    container_id = await service.create()
    fault = await service.admin.set_fault("slow_after", action="exec", delay_ms=60_000)
    async with (
        running(service.emulator, ROOST_GRACE="60") as (process, target),
        grpc.aio.insecure_channel(target) as channel,
    ):
        stub = rpc.ContainerServiceStub(channel)
        request = pb.ExecContainerRequest(container_id=container_id, command=["true"])
        call = asyncio.ensure_future(stub.ExecContainer(request, timeout=LONGEST))
        await fired(service, fault)
        process.send_signal(signal.SIGINT)
        await stopping(process)
        process.send_signal(signal.SIGINT)
        code, _, _ = await outcome(process)
        await asyncio.wait([call])
        assert isinstance(call.exception(), grpc.aio.AioRpcError)
    assert code == -signal.SIGINT
