"""Child processes: they end with their parent, and stop by the given signals and times."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from local.processes.child import Child
from tests.eventually import eventually

PARENT = """
import sys, time
from pathlib import Path
from local.processes.child import Child
child = Child("sleep", ["/bin/sleep", "60"], log=Path(sys.argv[1]))
print(child.pid, flush=True)
time.sleep(60)
"""
STUBBORN = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True)"


def is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_a_child_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PARENT, str(tmp_path / "log")), stdout=subprocess.PIPE
    )
    assert parent.stdout
    child = int(await asyncio.wait_for(parent.stdout.readline(), 30))
    assert is_alive(child)
    parent.kill()
    await parent.communicate()
    await eventually(lambda: not is_alive(child))


async def test_stop_sends_the_next_signal_after_the_timeout(tmp_path: Path) -> None:
    code = STUBBORN + "; time.sleep(60)"
    child = Child("stubborn", [sys.executable, "-c", code], log=tmp_path / "log")
    await eventually(lambda: (tmp_path / "log").read_text() == "up\n")
    began = time.monotonic()
    status = await child.stop((signal.SIGTERM, 0.2), (signal.SIGINT, 30.0))
    assert time.monotonic() - began >= 0.2
    assert status == -signal.SIGINT
    assert child.status == status == await child.exited()


async def test_stop_of_an_ended_child_returns_its_status(tmp_path: Path) -> None:
    child = Child("false", ["/bin/sh", "-c", "echo why; exit 3"], log=tmp_path / "log")
    assert await asyncio.wait_for(child.exited(), 30) == 3
    assert await child.stop((signal.SIGTERM, 5.0)) == 3
    assert await child.last_lines() == ["why"]


async def test_output_begins_where_this_start_began(tmp_path: Path) -> None:
    for word in ("first", "second"):
        child = Child("echo", ["/bin/echo", word], log=tmp_path / "log")
        await asyncio.wait_for(child.exited(), 30)
        assert await child.output() == f"{word}\n"
    assert (tmp_path / "log").read_text() == "first\nsecond\n"


async def test_a_missing_program_is_reported_in_the_log(tmp_path: Path) -> None:
    child = Child("nothing", ["/no/such/program"], log=tmp_path / "log")
    assert await asyncio.wait_for(child.exited(), 30) == 117
    assert await child.last_lines() == ["parent_death: /no/such/program: No such file or directory"]


async def test_a_thread_cannot_start_children(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="main thread"):
        await asyncio.to_thread(Child, "sleep", ["/bin/sleep", "1"], log=tmp_path / "log")
