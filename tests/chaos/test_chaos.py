"""A short run of chaos as a test; `make chaos` runs longer ones."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import tempfile
from pathlib import Path

import pytest

from tests.chaos.report import told
from tests.chaos.run import Result, run
from tests.database import scratch

SECONDS = 8.0


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_short_run_of_chaos() -> None:
    """ROOST_CHAOS_SEED repeats a seed's schedule; without it one is drawn, and printed."""
    drawn = random.SystemRandom().randrange(1_000_000)
    seed = int(os.environ.get("ROOST_CHAOS_SEED", drawn))
    print(f"ROOST_CHAOS_SEED={seed}")
    # Not below the test's own folder: PostgreSQL runs with fsync here.
    data = Path(tempfile.mkdtemp(prefix=f"roost-chaos-{seed}-", dir=scratch()))
    result: Result = asyncio.run(run(seed, SECONDS, data, every_fault=False))
    print(told(result))
    assert not result.violations, f"logs: {data}/logs"
    shutil.rmtree(data, ignore_errors=True)
