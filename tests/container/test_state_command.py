"""Capture and restore through a command in the container."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import grpc
import grpc.aio
import pytest

from container_service.containers import state_command
from tests.container.harness import Service, failing, until
from tests.container.state_calls import (
    capture,
    capture_fails,
    capturing,
    command,
    restore,
    restoring,
    run,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("size", [0, 1, 70_000, state_command.PIECE_BYTES, 600_000])
async def test_a_state_is_restored_and_captured_by_command(service: Service, size: int) -> None:
    # All byte values, as none may be treated as text.
    state = (bytes(range(256)) * (size // 256 + 1))[:size]
    container_id = await service.create()
    await restore(service, container_id, command(), state)
    assert await capture(service, container_id, command()) == state
    digest = await run(service, container_id, "sha256sum", "state")
    assert digest.split()[0] == hashlib.sha256(state).hexdigest()


async def test_a_small_state_takes_one_exec_each_way(service: Service) -> None:
    container_id = await service.create()
    mark = await service.mark()
    await restore(service, container_id, command(), b"small")
    assert await capture(service, container_id, command()) == b"small"
    assert await service.requests(mark) == ["get", "exec", "get", "exec"]


async def test_a_capture_by_command_that_is_cut_off_fails(service: Service, tmp_path: Path) -> None:
    container_id, scratch = await scratching(service, tmp_path)
    call = capturing(service, container_id, command("head -c 3000000 /dev/zero #"))
    await anext(aiter(call))
    # The third piece has to wait for the rate limit of exec, which leaves time to delete the file.
    for file in scratch.iterdir():
        file.unlink()
    with pytest.raises(grpc.aio.AioRpcError) as rejected:
        async for part in call:
            assert not part.sha256
    assert rejected.value.code() is grpc.StatusCode.UNAVAILABLE


async def scratching(service: Service, tmp_path: Path) -> tuple[str, Path]:
    """A container, and its folder for temporary files."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    return await service.create(env={"TMPDIR": str(scratch)}), scratch


async def test_a_piece_whose_answer_was_lost_is_read_again(service: Service) -> None:
    container_id = await service.create()
    state = bytes(600_000)
    await restore(service, container_id, command(), state)
    call = capturing(service, container_id, command())
    reading = aiter(call)
    got = (await anext(reading)).chunk
    await service.admin.set_fault("answer_lost", action="exec", answer="close")
    async for part in reading:
        got += part.chunk
    assert got == state


async def test_the_error_of_a_failed_command_is_quoted(service: Service) -> None:
    container_id = await service.create()
    hook = command("echo it is on fire >&2; exit 3; :")
    failure, parts = await capture_fails(service, container_id, hook)
    assert parts == []
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "STATE_HOOK_FAILED",
    )
    assert (failure.metadata["exit_code"], failure.metadata["said"]) == ("3", "it is on fire")
    failure = await failing(restoring(service, container_id, hook, [b"x"]))
    assert (failure.reason, failure.metadata["exit_code"]) == ("STATE_HOOK_FAILED", "3")


async def test_no_temporary_file_is_left(service: Service, tmp_path: Path) -> None:
    container_id, scratch = await scratching(service, tmp_path)
    state = bytes(600_000)
    await restore(service, container_id, command(), state)
    assert await capture(service, container_id, command()) == state
    await capture_fails(service, container_id, command("cat state; false"))
    call = capturing(service, container_id, command())
    await anext(aiter(call))
    assert list(scratch.iterdir())
    call.cancel()

    async def gone() -> bool:
        return not list(scratch.iterdir())

    await until(gone)
