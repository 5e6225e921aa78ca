"""`python -m tests.chaos`: inject faults into a whole stack and check what its callers saw."""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
from pathlib import Path

from tests.chaos.report import report_text, verdict
from tests.chaos.run import CONVERGE_SECONDS, run
from tests.database import scratch


def main() -> int:
    """Run the seeds in order; status 1 at the first violation, whose logs are kept."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos",
        description="Random calls to real processes while these are killed, frozen and cut off. "
        "The seed decides which calls and faults; their exact times are not repeatable.",
    )
    parser.add_argument("--seed", type=int, help="the first seed (random, and printed)")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds in a row (1)")
    parser.add_argument("--seconds", type=float, default=30, help="seconds of faults per seed (30)")
    parser.add_argument(
        "--patience",
        type=float,
        default=CONVERGE_SECONDS,
        help="longest time to converge, in seconds",
    )
    given = parser.parse_args()
    first = random.SystemRandom().randrange(1_000_000) if given.seed is None else given.seed
    for seed in range(first, first + given.seeds):
        print(f"seed {seed} ...", flush=True)
        data = Path(tempfile.mkdtemp(prefix=f"roost-chaos-{seed}-", dir=scratch()))
        result = asyncio.run(run(seed, given.seconds, data, patience=given.patience))
        print(report_text(result), flush=True)
        if result.violations:
            print(f"seed {seed}: {verdict(result)}. Logs: {data}/logs", file=sys.stderr)
            return 1
        shutil.rmtree(data, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
