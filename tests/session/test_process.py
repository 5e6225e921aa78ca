"""session_service as a process: exit statuses, one-line errors, health, graceful stop."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import sys
from asyncio.subprocess import PIPE
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2

from container_service.main import serve as serve_containers
from local.ports import free_port
from roost.session.v1 import session_pb2 as pb
from roost.session.v1 import session_service_pb2 as rpc_pb
from roost.session.v1.session_service_pb2_grpc import SessionServiceStub
from session_service.cli.commands import COMMANDS
from session_service.config.variables import RENAMED
from tests.container.harness import APP, config_for
from tests.eventually import eventually
from tests.service_processes import fork, spawn
from tests.session.harness import IMAGE, key

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from local.fly.emulator import Emulator
    from tests.service_processes import Forked

NOWHERE = "postgresql://roost@127.0.0.1:9/roost"
BASE = {
    "PATH": os.environ["PATH"],
    "ROOST_DEFAULT_IMAGE": IMAGE,
    "ROOST_FLY_APP": APP,
    "ROOST_LAME_DUCK": "0",
}


async def launch(*arguments: str, **environment: str) -> Forked:
    """The service or one of its commands as a process of the fork server."""
    return await fork("session_service", *arguments, environment=BASE | environment)


async def launch_fresh(*arguments: str, **environment: str) -> Process:
    """The same in a new interpreter, as a user runs it."""
    return await spawn("session_service", *arguments, environment=BASE | environment)


async def outcome(process: Forked | Process) -> tuple[int | None, str, str]:
    """The exit status and output of the process."""
    out, err = await asyncio.wait_for(process.communicate(), 50)
    return process.returncode, out.decode(), err.decode()


@asynccontextmanager
async def running(
    database_url: str,
    container_target: str,
    launch: Callable[..., Awaitable[Forked | Process]] = launch,
) -> AsyncGenerator[tuple[Forked | Process, grpc.aio.Channel]]:
    """A serving process and a channel to it."""
    process = await launch(
        ROOST_DATABASE_URL=database_url,
        ROOST_SESSION_LISTEN="127.0.0.1:0",
        ROOST_CONTAINER_TARGET=container_target,
    )
    assert process.stderr is not None
    try:
        line = ""
        while not (found := re.search(r"serving on (\S+)", line)):
            line = (await asyncio.wait_for(process.stderr.readline(), 50)).decode()
            assert line, "it ended"
        async with grpc.aio.insecure_channel(found.group(1)) as channel:
            yield process, channel
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def health(channel: grpc.aio.Channel, service: str = "") -> int:
    """The answer of the health service."""
    check = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    answer = await check(health_pb2.HealthCheckRequest(service=service), timeout=30)
    return int(answer.status)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ROOST_DATABASE_URL", ""),
        ("ROOST_DATABASE_URL", "mysql://a-user:secret@db/roost"),
        ("ROOST_SESSION_LISTEN", "50051"),
        ("ROOST_CONTAINER_TARGET", "nowhere"),
        ("ROOST_URL_TEMPLATE", "http://{host}/"),
        ("ROOST_LAG_WINDOW", "-1"),
        ("ROOST_LEASE", "nan"),
        ("ROOST_LOG_LEVEL", "LOUD"),
    ],
)
async def test_a_wrong_setting_is_one_line_and_status_2(variable: str, value: str) -> None:
    """It names the variable and shows no secret."""
    environment = {"ROOST_DATABASE_URL": NOWHERE, variable: value}
    status, out, err = await outcome(await launch(**environment))
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert variable in err
    assert "secret" not in err


async def test_help_lists_every_variable() -> None:
    """With its meaning and its default."""
    status, out, _ = await outcome(await launch_fresh("--help"))
    assert status == 0
    assert "ROOST_DATABASE_URL" in out
    assert "(default 127.0.0.1:50051)" in out
    for line in out.partition("environment variables:\n")[2].splitlines():
        assert re.match(r"  [A-Z_]+  +\S", line), line


async def test_an_error_of_the_database_is_shown_in_its_own_words(empty_database_url: str) -> None:
    """`does not answer` would be wrong for a server that answers with an error."""
    missing = f"{empty_database_url.rpartition('/')[0]}/missing"
    for arguments, status in ((("tier", "get", "default"), 2), (("migrate",), 1)):
        process = await launch(*arguments, ROOST_DATABASE_URL=missing)
        answer = await outcome(process)
        assert answer[0] == status
        reason = 'the database rejects the connection: database "missing" does not exist'
        assert answer[2].endswith(f"ROOST_DATABASE_URL: {reason}\n")
    _, _, err = await outcome(await launch("tier", "get", "default", ROOST_DATABASE_URL=NOWHERE))
    assert err.endswith("ROOST_DATABASE_URL: the database does not answer; try again\n")


@pytest.mark.timeout(240)
async def test_every_command_is_reached_by_its_name() -> None:
    """As a user types it. The effect of each command has tests of its own."""
    # Each interpreter loads its modules, which takes a second of a core.
    at_once = asyncio.Semaphore(2)

    async def help_of(command: str) -> tuple[int | None, str, str]:
        async with at_once:
            return await outcome(await launch_fresh(command, "--help"))

    answers = await asyncio.gather(*(help_of(command) for command in COMMANDS))
    for command, (status, out, err) in zip(COMMANDS, answers, strict=True):
        assert (status, err) == (0, "")
        assert out.startswith(f"usage: python -m session_service {command}")


@pytest.mark.parametrize("service", ["session_service", "container_service"])
async def test_ctrl_c_while_modules_are_read_is_no_traceback(service: str) -> None:
    """Loading takes a second, and a user may interrupt it, for example after a typing error."""
    code = f"""
import runpy, sys
class Interrupted:
    def find_spec(self, name, path=None, target=None):
        if name == "grpc":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupted())
runpy.run_module({service!r}, run_name="__main__")
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=PIPE, stderr=PIPE, env=BASE
    )
    assert await outcome(process) == (130, "", "")


async def test_a_taken_port_is_one_line_and_status_2(database_url: str) -> None:
    """A second server on the port would get half of the calls."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        process = await launch(ROOST_DATABASE_URL=database_url, ROOST_SESSION_LISTEN=listen)
        status, _, err = await outcome(process)
    assert (status, err.count("\n")) == (2, 1)
    assert listen in err


async def test_migrate_brings_the_database_up_to_date_and_ends(empty_database_url: str) -> None:
    """For deployments with ROOST_MIGRATE=false."""
    process = await launch("migrate", ROOST_DATABASE_URL=empty_database_url)
    status, _, err = await outcome(process)
    assert (status, err) == (0, "")


async def test_session_service_does_not_serve_until_container_service_does(
    emulator: Emulator, database_url: str
) -> None:
    """NOT_SERVING while the peer is down, SERVING once it answers, also by service name."""
    target = f"127.0.0.1:{free_port()}"
    async with running(database_url, target) as (_, channel):
        assert await health(channel) == health_pb2.HealthCheckResponse.NOT_SERVING
        async with serve_containers(config_for(emulator, listen=target)):

            async def serving() -> bool:
                name = "roost.session.v1.SessionService"
                return await health(channel, name) == health_pb2.HealthCheckResponse.SERVING

            await eventually(serving, timeout=30)


async def test_a_stop_signal_lets_calls_in_flight_finish(
    emulator: Emulator, database_url: str
) -> None:
    """The running start is answered; then the process ends with status 0."""
    from local.fly.admin import Admin

    async with (
        Admin(emulator.api_url) as admin,
        serve_containers(config_for(emulator)) as containers,
        running(database_url, containers.target, launch_fresh) as (process, channel),
    ):
        await admin.set_fault("slow_before", action="create", delay_ms=700)
        request = rpc_pb.StartSessionRequest(key=key())
        start = asyncio.ensure_future(SessionServiceStub(channel).StartSession(request, timeout=30))

        async def under_way() -> bool:
            return any(fault.fired for fault in await admin.faults())

        await eventually(under_way)
        process.send_signal(signal.SIGTERM)
        assert (await start).outcome == pb.START_OUTCOME_CREATED
        assert await asyncio.wait_for(process.wait(), 40) == 0


async def test_after_a_stop_signal_calls_are_served_while_health_says_no(
    emulator: Emulator, database_url: str
) -> None:
    """Until ROOST_LAME_DUCK is over, or a second signal comes; then the process ends as ever."""

    async def waits(**environment: str) -> Forked:
        return await launch(**environment, ROOST_LAME_DUCK="60")

    async with (
        serve_containers(config_for(emulator)) as containers,
        running(database_url, containers.target, waits) as (process, channel),
    ):
        process.send_signal(signal.SIGTERM)

        async def left() -> bool:
            name = "roost.session.v1.SessionService"
            return await health(channel, name) == health_pb2.HealthCheckResponse.NOT_SERVING

        assert await eventually(left)
        request = rpc_pb.StartSessionRequest(key=key())
        started = await SessionServiceStub(channel).StartSession(request, timeout=30)
        assert started.outcome == pb.START_OUTCOME_CREATED
        assert process.returncode is None
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 30) == 0


async def test_a_second_signal_kills(emulator: Emulator, database_url: str) -> None:
    """It does not wait for the calls in flight."""
    from local.fly.admin import Admin

    async with (
        Admin(emulator.api_url) as admin,
        serve_containers(config_for(emulator)) as containers,
        running(database_url, containers.target) as (process, channel),
    ):
        await admin.set_fault("slow_before", action="create", delay_ms=20_000)
        request = rpc_pb.StartSessionRequest(key=key())
        start = asyncio.ensure_future(SessionServiceStub(channel).StartSession(request, timeout=30))

        async def under_way() -> bool:
            return any(fault.fired for fault in await admin.faults())

        await eventually(under_way)
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        while b"stopping" not in await asyncio.wait_for(process.stderr.readline(), 30):
            pass
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 30) == -signal.SIGTERM
        await asyncio.gather(start, return_exceptions=True)


@pytest.mark.parametrize(("former", "name"), RENAMED.items())
async def test_a_former_variable_name_is_one_line_with_the_new_name(former: str, name: str) -> None:
    """Otherwise it would be ignored, and the default used."""
    environment = {"ROOST_DATABASE_URL": NOWHERE, former: "1"}
    status, out, err = await outcome(await launch(**environment))
    assert (status, out) == (2, "")
    assert err == f"session_service: {former} is called {name} now\n"
    status, _, err = await outcome(await launch("tier", "get", "default", **environment))
    assert (status, err) == (2, f"session_service tier: {former} is called {name} now\n")
