"""`python -m local demo`: 0 only if every value was as told, and no process left either way."""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from local.report import Report
from tests.processes import using

if TYPE_CHECKING:
    from pathlib import Path


async def demo(*arguments: str) -> tuple[int, str]:
    """The command's status and output."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "local", "demo", *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), 50)
    assert process.returncode is not None
    return process.returncode, output.decode()


@pytest.mark.slow
async def test_the_counter_is_still_2(tmp_path: Path) -> None:
    status, output = await demo("--data", str(tmp_path))
    assert status == 0, output
    assert "WRONG" not in output
    assert output.splitlines()[-1].startswith("All ")
    assert not using(tmp_path)


@pytest.mark.slow
async def test_a_dropped_snapshot_is_seen_and_told(tmp_path: Path) -> None:
    status, output = await demo("--data", str(tmp_path), "--fault", "snapshot_dropped")
    assert status == 1, output
    assert "counter: expected 2, got 0" in output
    assert "continuity: expected MEMORY, got" in output
    assert not using(tmp_path)


async def test_a_fault_that_is_none_is_refused() -> None:
    status, output = await demo("--fault", "bad_weather")
    assert status == 2
    assert "invalid choice: 'bad_weather'" in output


def test_the_report_counts_and_tells_what_was_wrong() -> None:
    out = io.StringIO()
    report = Report(out)
    report.row("StartSession", "RESUMED", 12.3, {"outcome": ("RESUMED", "RESUMED")})
    report.row("GET /", "counter 0", 4.5, {"counter": ("2", "0")})
    report.summarise()
    lines = out.getvalue().splitlines()
    assert lines[0].split() == ["1", "StartSession", "RESUMED", "12", "ms", "ok"]
    assert lines[1].endswith("ms  WRONG")
    assert lines[2].strip() == "counter: expected 2, got 0"
    assert lines[-2:] == [
        "1 of 2 values were not as told:",
        "  2  GET /: counter: expected 2, got 0",
    ]
