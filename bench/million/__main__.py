"""`python -m bench.million`: seed, judge every statement, compare every call; status 1 on a miss.

Without `--url` an embedded PostgreSQL is started in `.roost/million`, and removed at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from bench.million import judge, latency, seed, sizes
from bench.million.listed import LISTED
from local.postgres.server import EmbeddedPostgres

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from bench.million.statements import Listed

DATA = Path(".roost/million")
LARGE, SMALL = 1_000_000, 1_000
PARTS = ("judge", "latency", "sizes")


@asynccontextmanager
async def server(url: str | None) -> AsyncGenerator[str]:
    """The address of a server: the one given, or one that is started for this run."""
    if url is not None:
        yield url
        return
    await asyncio.to_thread(shutil.rmtree, DATA, ignore_errors=True)
    await asyncio.to_thread(DATA.mkdir, parents=True)
    try:
        async with EmbeddedPostgres(DATA / "postgres", durable=False) as embedded:
            yield embedded.url("postgres")
    finally:
        await asyncio.to_thread(shutil.rmtree, DATA, ignore_errors=True)


def chosen(words: Sequence[str]) -> list[Listed]:
    """The entries of the list with one of these words in the name of their place; else all."""
    return [each for each in LISTED if not words or any(word in each.place for word in words)]


def _print(line: str) -> None:
    print(line, flush=True)


async def run(given: argparse.Namespace) -> int:
    """Run the parts; the number of limits and targets that are missed."""
    began, missed = perf_counter(), 0
    async with server(given.url) as address:
        small, large = [
            await asyncio.to_thread(seed.create, address, f"roost_{count}", count, given.seed)
            for count in (given.small, given.rows)
        ]
        if "judge" in given.parts:
            print(f"\npages of each statement, at {given.rows} sessions")
            verdicts = await judge.judge(large, given.rows, chosen(given.only))
            missed += judge.report(verdicts, every=given.every)
        if "latency" in given.parts:
            load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
            print(f"\nlatency at {given.small} and {given.rows} sessions; load {load}")
            measured = await latency.measure(
                (small, given.small), (large, given.rows), rounds=given.rounds, tell=_print
            )
            missed += sum(not each.passes for each in measured)
        if "sizes" in given.parts:
            print(f"\nsizes at {given.rows} sessions")
            sizes.report(await sizes.tables(large), await sizes.unused(large))
    print(f"\n{missed} misses, {perf_counter() - began:.0f} s")
    return missed


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the arguments, and run."""
    parser = argparse.ArgumentParser(prog="python -m bench.million", description=__doc__)
    parser.add_argument("--rows", type=int, default=LARGE, help="sessions of the large database")
    parser.add_argument("--small", type=int, default=SMALL, help="sessions of the small database")
    parser.add_argument("--seed", type=int, default=seed.SEED)
    parser.add_argument("--rounds", type=int, default=latency.ROUNDS, help="of each call")
    parser.add_argument(
        "--url",
        help="a server to use, where databases roost_COUNT are created, and kept for the next run",
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument(
        "--only", nargs="+", default=(), metavar="WORD", help="statements of places with this word"
    )
    parser.add_argument("--every", action="store_true", help="print every case, not the worst")
    given = parser.parse_args(argv)
    if min(given.rows, given.small) < 1_000 or given.rows % 1_000 or given.small % 1_000:
        parser.error("the numbers of sessions are multiples of 1,000")
    return 1 if asyncio.run(run(given)) else 0


if __name__ == "__main__":
    sys.exit(main())
