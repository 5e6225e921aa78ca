"""`python -m tools.busy`: busy loops beside a command, which end with it."""

from __future__ import annotations

import asyncio
import sys
from functools import partial
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.eventually import eventually
from tests.open_processes import runs
from tools.busy import busy, main

if TYPE_CHECKING:
    from pathlib import Path


def computes(process: psutil.Process) -> bool:
    """Whether the process has used the processor for a while."""
    return bool(process.cpu_times().user > 0.1)


async def test_the_loops_compute_and_end_with_the_context() -> None:
    with busy(2, 60) as pids:
        loops = [psutil.Process(pid) for pid in pids]
        assert len(loops) == 2
        for loop in loops:
            assert await eventually(partial(computes, loop), timeout=50)
    assert not any(loop.is_running() for loop in loops)


def test_the_loops_are_bounded(capsys: pytest.CaptureFixture[str]) -> None:
    with busy(1, 0) as pids:
        psutil.Process(pids[0]).wait(30)
    assert "the loops ended" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "status"),
    [("pass", 0), ("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", 137)],
)
def test_the_status_is_the_commands(code: str, status: int) -> None:
    assert main(["--loops", "1", "--", sys.executable, "-S", "-c", code]) == status


def test_a_command_that_does_not_exist_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--loops", "1", "--", "no-such-command"]) == 127
    assert capsys.readouterr().err == "no-such-command: No such file or directory\n"


async def test_the_loops_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    wait = f"import os, time; open({str(tmp_path / 'up')!r}, 'w').close(); time.sleep(60)"
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tools.busy", "--loops=2", "--", sys.executable, "-c", wait)
    )
    try:
        assert await eventually((tmp_path / "up").exists, timeout=30)
        # Asked while they run: an ended child that nobody has reaped yet has no command line.
        children = {child: child.cmdline() for child in psutil.Process(parent.pid).children()}
    finally:
        parent.kill()
        await parent.wait()
    command = next(child for child, words in children.items() if wait in words)
    command.kill()
    loops = [child for child in children if child != command]
    assert len(loops) == 2
    assert await eventually(lambda: not any(runs(loop) for loop in loops), timeout=50)
