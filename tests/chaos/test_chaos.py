"""A short chaos run as a test, always of one seed; `make chaos` runs longer ones of any."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from tests.chaos.report import report_text
from tests.chaos.run import Result, run
from tests.database import scratch

SECONDS = 4.0
SEED = 1


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_short_run_of_chaos() -> None:
    """ROOST_CHAOS_SEED chooses another seed."""
    seed = int(os.environ.get("ROOST_CHAOS_SEED", SEED))
    # Not in tmp_path: PostgreSQL runs with fsync here, and this folder may be in memory.
    data = Path(tempfile.mkdtemp(prefix=f"roost-chaos-{seed}-", dir=scratch()))
    result: Result = asyncio.run(run(seed, SECONDS, data, every_fault=False))
    print(report_text(result))
    assert not result.violations, f"logs: {data}/logs"
    shutil.rmtree(data, ignore_errors=True)
