"""The stack: programs that are killed and started again at their address, and failures."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import replace
from typing import TYPE_CHECKING

import grpc
import pytest

from local.stack.grpc_health import serving
from local.stack.stack import Stack, StackFailed
from local.stack.stack_settings import StackSettings
from tests.open_processes import using

if TYPE_CHECKING:
    from pathlib import Path

    from local.stack.programs import Program

#: On a busy machine the start of a stack takes half a minute.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]


def settings(data: Path, replicas: int = 1) -> StackSettings:
    return replace(StackSettings.on_free_ports(data, replicas), durable=False)


@pytest.mark.proof
async def test_replicas_are_killed_and_started_again_at_their_address(tmp_path: Path) -> None:
    async with Stack(settings(tmp_path, replicas=2)) as stack:
        assert list(stack.programs)[2:] == ["session_service", "session_service_2"]
        first, second = stack.session_targets
        assert first != second
        await stack.kill("session_service_2")
        async with grpc.aio.insecure_channel(second) as channel:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(channel.channel_ready(), 0.2)
        await asyncio.wait_for(serving(first), 30)
        await stack.start("session_service_2")
        await asyncio.wait_for(serving(second), 30)
        # A program that was killed on purpose is no failure of the stack.
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(stack.failure(), 0.2)
    assert not using(tmp_path)


async def test_a_program_that_ends_by_itself_is_reported_with_its_log(tmp_path: Path) -> None:
    async with Stack(settings(tmp_path)) as stack:
        stack.send("container_service", signal.SIGKILL)
        failure = await asyncio.wait_for(stack.failure(), 30)
    lines = str(failure).splitlines()
    assert lines[0] == (
        f"container_service ended with status -9; {tmp_path / 'logs' / 'container_service.log'}:"
    )
    assert len(lines) > 1
    assert failure.status == 1


async def test_a_program_that_is_not_ready_in_time_is_reported_with_its_log(
    tmp_path: Path,
) -> None:
    """For example session_service, while it waits for a database that does not answer."""

    def wait_for_nothing(program: Program) -> Program:
        return replace(
            program, command=("/bin/sh", "-c", "echo 'waiting for the sea'; exec sleep 60")
        )

    impatient = replace(settings(tmp_path), database_url="postgresql://unused", start_seconds=3.0)
    with pytest.raises(
        StackFailed, match=r"emulator was not ready in 3 s.*\n  waiting for the sea"
    ):
        async with Stack(impatient, wait_for_nothing):
            pass
    assert not using(tmp_path)


async def test_a_program_that_cannot_start_fails_the_stack_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    wrong = replace(settings(tmp_path), environment={"ROOST_LAG_WINDOW": "soon"})
    with pytest.raises(StackFailed, match="ROOST_LAG_WINDOW") as failed:
        await Stack(wrong).__aenter__()
    assert failed.value.status == 2
    assert not using(tmp_path)
