"""The Python programs of README and docs/policies.md: run as they stand there, against a stack."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from local.stack.stack import Stack
from local.stack.stack_settings import StackSettings
from roost.session.v1 import policy_service_pb2 as policy_rpc
from roost.session.v1 import session_pb2 as pb
from roost.session.v1 import session_service_pb2 as rpc
from roost.session.v1.policy_service_pb2_grpc import PolicyServiceStub
from roost.session.v1.session_service_pb2_grpc import SessionServiceStub

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ROOT = Path(__file__).parents[2]
#: The address of session_service under `make up`, which the programs name.
ADDRESS = "127.0.0.1:50051"
TIMEOUT = 60.0


def program_of(document: str) -> tuple[str, list[str]]:
    """The document's one Python program, and the lines that it prints according to the document."""
    text = (ROOT / document).read_text()
    ((program, output),) = re.findall(r"```python\n(.*?)```.*?```\n(.*?)```", text, re.DOTALL)
    assert ADDRESS in program
    return program, output.splitlines()


async def printed(program: str, target: str) -> list[str]:
    """What the program prints, as a process of its own, with the service at `target`."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program.replace(ADDRESS, target)), stdout=subprocess.PIPE
    )
    out, _ = await asyncio.wait_for(process.communicate(), TIMEOUT)
    assert process.returncode == 0
    return out.decode().splitlines()


def words(line: str, count: int) -> list[str]:
    return line.split()[:count]


@pytest.fixture
async def target(tmp_path: Path) -> AsyncIterator[str]:
    """The address of session_service in a stack of this test."""
    async with Stack(replace(StackSettings.on_free_ports(tmp_path), durable=False)) as stack:
        yield stack.session_targets[0]


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_the_programs_print_what_the_documents_say(target: str) -> None:
    program, expected = program_of("README.md")
    lines = await printed(program, target)
    assert [words(line, 2) for line in lines] == [words(line, 2) for line in expected]
    urls = {line.split()[2] for line in lines}
    assert len(urls) == 1, "both starts give the same container"

    program, expected = program_of("docs/policies.md")
    await pause_a_session_of_a_project_that_asks(target)
    lines = await printed(program, target)
    assert [words(line, 2) for line in lines] == [words(line, 2) for line in expected]


async def pause_a_session_of_a_project_that_asks(target: str) -> None:
    """As the text before the program of docs/policies.md does."""
    async with grpc.aio.insecure_channel(target) as channel:
        sessions, policies = SessionServiceStub(channel), PolicyServiceStub(channel)
        policy = pb.Policy(persistence=pb.Policy.PERSISTENCE_ASK)
        update = policy_rpc.UpdateProjectPolicyRequest(project_id="den", policy=policy)
        await policies.UpdateProjectPolicy(update, timeout=TIMEOUT)
        key = pb.SessionKey(project_id="den", user_id="wren")
        started = await sessions.StartSession(rpc.StartSessionRequest(key=key), timeout=TIMEOUT)
        stop = rpc.StopSessionRequest(session_id=started.session.session_id)
        await sessions.StopSession(stop, timeout=TIMEOUT)
