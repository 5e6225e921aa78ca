"""Run what takes longer than `make test`, and write its figures: `make proof`.

PARTS is the list. Add a part with a name, one sentence, and a function that returns what it
counted; `seeded` and `suite` make the usual ones. A test that is too long for `make test` needs no
part of its own: the marker `proof` is enough. A part that fails makes the run fail, after the
others have run. The table is printed and written to `.roost/proof.md`, and the output of each part
to `.roost/proof/NAME.log`.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".roost"
SEEDS = 5


@dataclass(frozen=True, slots=True)
class Order:
    """What a part is asked to do: the first seed, how many seeds, and where its output goes."""

    seed: int
    seeds: int
    log: TextIO
    folder: Path

    def execute(self, *arguments: str, seconds: float | None = None) -> int:
        """Run Python with these arguments, for at most so many seconds. The status; that of
        `timeout`, 124, if it took longer.
        """
        command = [sys.executable, *arguments]
        self.log.write(f"$ python {' '.join(arguments)}\n")
        self.log.flush()
        try:
            return subprocess.run(
                command, cwd=ROOT, check=False, timeout=seconds,
                stdin=subprocess.DEVNULL, stdout=self.log, stderr=subprocess.STDOUT,
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            self.log.write(f"not done after {seconds:g} s\n")
            return 124


@dataclass(frozen=True, slots=True)
class Count:
    """How many runs or tests there were, and how many of them failed."""

    count: int
    failures: int


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the proof."""

    name: str
    what: str
    run: Callable[[Order], Count]


def seeded(*arguments: str) -> Callable[[Order], Count]:
    """Runs of a Python command, one for each seed. `{seed}` is replaced in its arguments."""

    def run(order: Order) -> Count:
        seeds = range(order.seed, order.seed + order.seeds)
        failures = 0
        for seed in seeds:
            failures += order.execute(*(part.format(seed=seed) for part in arguments)) != 0
        return Count(len(seeds), failures)

    return run


def suite(*arguments: str, repeated: bool = False) -> Callable[[Order], Count]:
    """Runs of pytest: one, or one in another order for each seed. Counts the tests."""

    def run(order: Order) -> Count:
        report = order.folder / "tests.xml"
        count = failures = 0
        for seed in range(order.seed, order.seed + (order.seeds if repeated else 1)):
            report.unlink(missing_ok=True)
            options = ("-q", f"--randomly-seed={seed}", f"--junitxml={report}")
            status = order.execute("-m", "pytest", *options, *arguments)
            ran, failed = _read(report)
            count += ran
            # A run that broke off has failed, whatever it counted. So has one without a test.
            failures += failed or status != 0
        return Count(count, failures)

    return run


def _read(report: Path) -> tuple[int, int]:
    """The tests of a JUnit report that ran, and those that failed."""
    if not report.exists():
        return 0, 0
    cases = [{child.tag for child in case} for case in ET.parse(report).iter("testcase")]
    ran = [tags for tags in cases if "skipped" not in tags]
    return len(ran), sum(bool(tags & {"failure", "error"}) for tags in ran)


def mutants(order: Order) -> Count:
    """The mutants: those that survive have failed."""
    status = order.execute("-m", "tests.mutants")
    order.log.flush()
    return survivors(Path(order.log.name).read_text(), status)


def survivors(text: str, status: int) -> Count:
    """The mutants of a run, by its text and its status. A run that broke off has failed."""
    found = re.search(r"^(\d+) of (\d+) caught$", text, re.MULTILINE)
    if not found:
        return Count(0, 1)
    caught, count = int(found[1]), int(found[2])
    return Count(count, max(count - caught, int(status != 0)))


#: The most that the seeding of a million sessions, the judgement of every statement and the calls
#: may take together, in s.
MILLION_SECONDS = 3600.0


def million(order: Order) -> Count:
    """Every statement and every documented call at a million sessions. Prints the tables."""
    status = order.execute(
        *("-m", "bench.million", "--seed", str(order.seed)), seconds=MILLION_SECONDS
    )
    order.log.flush()
    text = Path(order.log.name).read_text()
    print(text, end="", flush=True)
    return misses(text, status)


def misses(text: str, status: int) -> Count:
    """The cases and calls of a run, by its text and its status. A run that broke off has failed."""
    counted = [
        re.search(pattern, text, re.MULTILINE)
        for pattern in (r"^(\d+) cases of ", r"^(\d+) calls", r"^(\d+) misses")
    ]
    numbers = [int(found[1]) for found in counted if found]
    if len(numbers) < len(counted):
        return Count(0, 1)
    cases, calls, missed = numbers
    return Count(cases + calls, max(missed, int(status != 0)))


#: How many requests the part `fuzz` sends, and how long it may take, in s. Two busy cores answer
#: 200 in a second.
FUZZED = 1_000_000
FUZZ_SECONDS = 7200.0


def fuzz(order: Order) -> Count:
    """Requests that no client sends. Prints the figures of their answers, of logs and of memory."""
    status = order.execute(
        *("-m", "tests.fuzz", "--seed", str(order.seed), "--requests", str(FUZZED)),
        seconds=FUZZ_SECONDS,
    )
    order.log.flush()
    text = Path(order.log.name).read_text()
    print(text, end="", flush=True)
    return faults(text, status)


def faults(text: str, status: int) -> Count:
    """The requests and faults of a run, by its text and its status. A run that broke off failed."""
    found = re.search(r"^seed \d+: (\d+) requests in ", text, re.MULTILINE)
    if not found:
        return Count(0, 1)
    count = len(re.findall(r"^  fault: ", text, re.MULTILINE))
    return Count(int(found[1]), max(count, int(status != 0)))


PARTS = (
    Part(
        "chaos",
        "30 s of faults in a whole stack for each seed, and the judgement of its history",
        seeded("-m", "tests.chaos", "--seed", "{seed}", "--seconds", "30"),
    ),
    Part("mutants", "each rule broken by hand, and its test", mutants),
    Part(
        "kills",
        "services killed at every failpoint, in another order for each seed",
        suite(
            *("tests/session/test_kills.py", "tests/session/test_checkpoint_kills.py"),
            *("tests/agent/test_kills.py", "tests/chaos/test_replica_deaths.py"),
            *("-n", "2", "-m", "proof or not proof"),
            repeated=True,
        ),
    ),
    Part(
        "failovers",
        "restarts, failovers and outages of PostgreSQL, in another order for each seed",
        suite(
            *("tests/session/test_database_restarts.py", "tests/session/test_database_outages.py"),
            *("tests/session/test_failover.py", "-n", "2"),
            repeated=True,
        ),
    ),
    Part(
        "properties",
        "the property tests with ten times as many examples, others for each seed",
        suite("-m", "hypothesis", "--hypothesis-profile=proof", "-n", "2", repeated=True),
    ),
    Part(
        "million",
        "every statement and every documented call at a thousand and a million sessions",
        million,
    ),
    Part("fuzz", "a million damaged and odd requests to every method of both services", fuzz),
    Part("tests", "the tests with the marker `proof`", suite("-m", "proof")),
)


@dataclass(frozen=True, slots=True)
class Row:
    """The figures of one part."""

    part: Part
    counted: Count
    seconds: float
    seeds: str
    load: str


def perform(part: Part, seed: int, seeds: int, folder: Path = FOLDER) -> Row:
    """Run a part. An exception in it is a failure, and its text is in the log."""
    logs = folder / "proof"
    logs.mkdir(parents=True, exist_ok=True)
    before, began = os.getloadavg()[0], monotonic()
    with (logs / f"{part.name}.log").open("w") as log:
        try:
            counted = part.run(Order(seed, seeds, log, logs))
        except Exception as error:  # noqa: BLE001  # the other parts still run
            log.write(f"{type(error).__name__}: {error}\n")
            counted = Count(0, 1)
    load = f"{before:.1f} to {os.getloadavg()[0]:.1f}"
    named = f"{seed} to {seed + seeds - 1}" if seeds > 1 else str(seed)
    return Row(part, counted, monotonic() - began, named, load)


def table(rows: Iterable[Row]) -> str:
    """The figures, in Markdown."""
    lines = [
        f"Cores: {os.cpu_count()}. Load: the average of a minute, at the beginning and at the end.",
        "",
        "| part | what was run | count | failures | seconds | seeds | load |",
        "| --- | --- | ---: | ---: | ---: | --- | --- |",
    ]
    for row in rows:
        counted = f"{row.counted.count} | {row.counted.failures} | {row.seconds:.0f}"
        lines.append(
            f"| {row.part.name} | {row.part.what} | {counted} | {row.seeds} | {row.load} |"
        )
    return "\n".join(lines) + "\n"


def main(
    argv: Sequence[str] | None = None, parts: Sequence[Part] = PARTS, folder: Path = FOLDER
) -> int:
    """Run the parts in order; status 1 if one failed."""
    parser = argparse.ArgumentParser(prog="python -m tools.proof", description=__doc__)
    parser.add_argument("--seed", type=int, help="the first seed (random, and in the table)")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"how many in a row ({SEEDS})")
    names = [part.name for part in parts]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="PART")
    given = parser.parse_args(argv)
    seed = random.SystemRandom().randrange(1_000_000) if given.seed is None else given.seed
    rows = []
    for part in parts:
        if part.name in given.only:
            print(f"{part.name}: {part.what} ...", flush=True)
            rows.append(perform(part, seed, given.seeds, folder))
            # Also after each part: a run that is broken off has its figures so far.
            (folder / "proof.md").write_text(table(rows))
    print(table(rows), end="")
    failed = [row.part.name for row in rows if row.counted.failures]
    for name in failed:
        print(f"{name} failed: {folder / 'proof' / name}.log", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
