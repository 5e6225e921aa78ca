"""`python -m tests.fuzz`: requests that no client of ours sends, to a whole stack."""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
from pathlib import Path

from tests.fuzz.run import run

REQUESTS = 20_000


def main() -> int:
    """Run the seeds in order; status 1 at the first fault, whose logs are kept."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz",
        description="Random and damaged bytes, deep nesting, odd values and huge headers to every "
        "method of both services. No answer may be INTERNAL or UNKNOWN, no log may have a "
        "traceback, and no service may grow.",
    )
    parser.add_argument("--seed", type=int, help="the first seed (random, and printed)")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds in a row (1)")
    parser.add_argument(
        "--requests", type=int, default=REQUESTS, help=f"requests for each seed ({REQUESTS})"
    )
    given = parser.parse_args()
    first = random.SystemRandom().randrange(1_000_000) if given.seed is None else given.seed
    for seed in range(first, first + given.seeds):
        print(f"seed {seed} ...", flush=True)
        data = Path(tempfile.mkdtemp(prefix=f"roost-fuzz-{seed}-"))
        result = asyncio.run(run(seed, given.requests, data, _say))
        print(result.report(), flush=True)
        if result.faults():
            print(f"seed {seed} found faults. Logs: {data}/logs", file=sys.stderr)
            return 1
        shutil.rmtree(data, ignore_errors=True)
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
