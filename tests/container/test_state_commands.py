"""An application's own state, through a command that is run in its container."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import grpc
import grpc.aio
import pytest

from container_service import hook_commands
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


@pytest.mark.parametrize("size", [0, 1, 70_000, hook_commands.PIECE_BYTES, 600_000])
async def test_a_state_goes_round_through_a_command(service: Service, size: int) -> None:
    # Every byte there is: none may be taken for text.
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


async def test_a_state_fetched_by_command_that_breaks_off_is_never_ok(
    service: Service, tmp_path: Path
) -> None:
    container_id, scratch = await scratching(service, tmp_path)
    call = capturing(service, container_id, command("head -c 3000000 /dev/zero #"))
    await anext(aiter(call))
    # The third piece waits for the rate of execs.
    for file in scratch.iterdir():
        file.unlink()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        async for part in call:
            assert not part.sha256
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def scratching(service: Service, tmp_path: Path) -> tuple[str, Path]:
    """A container and its own folder for temporary files."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    return await service.create(env={"TMPDIR": str(scratch)}), scratch


async def test_a_piece_whose_answer_was_lost_is_asked_for_again(service: Service) -> None:
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


async def test_a_command_that_fails_is_quoted(service: Service) -> None:
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


async def test_commands_leave_no_file_behind(service: Service, tmp_path: Path) -> None:
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
