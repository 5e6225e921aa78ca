"""`python -m local up` as a user runs it: its table, Ctrl-C, and no process left."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx
import pytest

from local.stack.up import passed_on
from tests.eventually import eventually
from tests.open_processes import children, using
from tests.recipes import output_of

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncGenerator
    from pathlib import Path

#: On a busy machine the start of a stack takes half a minute.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]
FREE = [f"--{name}-port=0" for name in ("session", "container", "fly", "proxy", "postgres")]
CLEAN = {k: v for k, v in os.environ.items() if not k.startswith(("ROOST_", "FLY_"))}


@asynccontextmanager
async def up(data: Path, *options: str) -> AsyncGenerator[Process]:
    """The command, in a process group of its own as a shell starts it."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "local", "up", "--data", str(data), *FREE, *options),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env=CLEAN,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def table(process: Process) -> str:
    """The output until everything runs."""
    assert process.stdout
    text = ""
    while "ListSessions" not in text:
        line = await asyncio.wait_for(process.stdout.readline(), 40)
        assert line, (await process.communicate())[1].decode()
        text += line.decode()
    return text


async def the_printed_calls_and_addresses_work(text: str) -> None:
    """The calls run as they are printed. A program opens the preview by the URL of the reply; a
    browser by the other address that is printed.
    """
    calls = [shlex.split(line) for line in text.splitlines() if "buf curl" in line]
    assert len(calls) == 2
    started, listed = [await output_of(call) for call in calls]
    assert (started[1], listed[1]) == (0, 0), (started, listed)
    container = json.loads(started[0])["session"]["container"]
    url, in_browser = (
        found.replace("<container_id>", container["containerId"])
        for found in re.findall(r"http://\S*<container_id>\S*", text)
    )
    assert url == container["url"]
    async with httpx.AsyncClient(trust_env=False, timeout=40) as http:
        assert (await http.get(url + "click")).text == "1"
        host = {"host": urlsplit(in_browser).netloc}
        port = urlsplit(in_browser).port
        assert (await http.get(f"http://127.0.0.1:{port}/click", headers=host)).text == "2"


async def ended(process: Process) -> tuple[int, str]:
    """Wait for the end; the exit status and stderr."""
    _, stderr = await asyncio.wait_for(process.communicate(), 40)
    assert process.returncode is not None
    return process.returncode, stderr.decode()


async def test_ctrl_c_stops_everything_and_a_second_up_is_rejected(
    tmp_path: Path,
) -> None:
    async with up(tmp_path) as first:
        text = await table(first)
        # A start takes seconds, on a busy machine a quarter of a minute.
        assert text.startswith("Starting PostgreSQL, ")
        for name in ("session_service", "container_service", "emulator", "PostgreSQL"):
            assert f"  {name} " in text
        await the_printed_calls_and_addresses_work(text)
        async with up(tmp_path) as second:
            status, said = await ended(second)
            assert status == 2
            message = (
                f"another stack runs on {tmp_path}: stop it, or choose another folder with --data\n"
            )
            assert said == message
        assert first.pid
        # As a terminal does it: the whole foreground group.
        os.killpg(first.pid, signal.SIGINT)
        assert await ended(first) == (0, "")
        assert not using(tmp_path)


@pytest.mark.proof
async def test_kill_9_leaves_nothing_and_the_next_up_starts_on_the_same_data(
    tmp_path: Path,
) -> None:
    async with up(tmp_path) as first:
        password = (await table(first)).partition("roost:")[2].partition("@")[0]
        assert len(using(tmp_path)) > 4
        first.kill()
        await ended(first)
        await eventually(lambda: not using(tmp_path))
    async with up(tmp_path) as second:
        assert f"roost:{password}@" in await table(second)
        second.send_signal(signal.SIGTERM)
        assert await ended(second) == (0, "")
        assert not using(tmp_path)


@pytest.mark.proof
async def test_a_program_that_ends_stops_the_stack_with_its_last_output(tmp_path: Path) -> None:
    async with up(tmp_path) as process:
        await table(process)
        [victim] = [p for p, line in children(process.pid).items() if "-m session_service" in line]
        os.kill(victim, signal.SIGKILL)
        status, said = await ended(process)
        assert status == 1
        assert said.startswith("session_service ended with status -9; ")
        assert not using(tmp_path)


async def test_ctrl_c_while_it_starts_leaves_nothing(tmp_path: Path) -> None:
    async with up(tmp_path) as process:
        await eventually(lambda: using(tmp_path), timeout=20)
        process.send_signal(signal.SIGINT)
        assert (await ended(process))[0] == 0
        assert not using(tmp_path)


async def test_a_taken_port_is_one_clear_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        async with up(tmp_path, f"--fly-port={port}") as process:
            status, said = await ended(process)
    assert status == 2
    assert said == f"port {port} is taken: choose another one with --fly-port\n"


async def test_a_wrong_port_is_one_clear_line_and_the_usage(tmp_path: Path) -> None:
    async with up(tmp_path, "--fly-port=x") as process:
        status, said = await ended(process)
    assert status == 2
    assert said.splitlines()[-1].endswith("argument --fly-port: 'x' is not a port from 0 to 65535")


def test_settings_of_the_services_are_passed_on_but_no_addresses_and_certificates() -> None:
    """Both services would bind the same address, and the stack talks to them in plain text."""
    given = {
        "ROOST_LEASE": "5",
        "ROOST_TLS_CERT": "/certificates/server.pem",
        "ROOST_CONTAINER_TLS_CA": "/certificates/ca.pem",
        "ROOST_HEALTH_LISTEN": "0.0.0.0:50053",
        "FLY_API_TOKEN": "secret",
    }
    assert passed_on(given) == {"ROOST_LEASE": "5"}
