"""Apply each mutant to a copy of the tree, and check that its test fails: `make mutants`.

Each test first runs without a fault, and must pass. A mutant is caught if its test then fails by an
assertion or an error in the test itself; a broken fixture or import proves nothing. The exit code
is 1 if a mutant survives, proves nothing, or has lost its anchor.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from tests.database import running_server
from tests.mutants.catalogue import SERVICES, AnchorLost, Mutant, load

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROOT = Path(__file__).parent.parent.parent
#: How long one test may take, and one run of pytest with what it sets up, in s.
TEST_SECONDS, RUN_SECONDS = 60, 240
PASSED, FAILED = "passed", "failed"


class Tree:
    """A copy of the tree, in which the tests run."""

    def __init__(self, root: Path, database_url: str) -> None:
        self.root = root
        # PYTHONPATH comes before the installed packages, so the copy's are imported.
        self._environment = os.environ | {
            "PYTHONPATH": os.pathsep.join((str(root), str(root / "gen"))),
            "ROOST_DATABASE_URL": database_url,
        }
        self._written = 0

    def fill(self) -> None:
        """Copy all files that git does not ignore, as they are now. Then check that the copy's
        packages are the ones that are imported.
        """
        names = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
            cwd=ROOT, check=True, capture_output=True, text=True,
        ).stdout.split("\0")  # fmt: skip
        for name in filter(None, names):
            if (ROOT / name).is_file():
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self.root / name)
        packages = (*SERVICES, "grpc_edge", "local", "roost.session.v1.session_pb2", "tests")
        show = (
            "import importlib, sys\n"
            "for name in sys.argv[1:]: print(importlib.import_module(name).__file__)"
        )
        files = subprocess.run(
            [sys.executable, "-c", show, *packages],
            cwd=self.root, env=self._environment, check=True, capture_output=True, text=True,
        ).stdout.split()  # fmt: skip
        strange = [file for file in files if not Path(file).is_relative_to(self.root)]
        if strange:
            raise SystemExit(f"imported from outside the copy: {', '.join(strange)}")

    def write(self, texts: Mapping[Path, str]) -> None:
        """Write the files, each with a newer time than before: Python compiles them again."""
        for path, text in texts.items():
            path.write_text(text)
            self._written += 2
            ahead = path.stat().st_mtime + self._written
            os.utime(path, (ahead, ahead))

    def run(self, *tests: str) -> dict[str, str]:
        """Run tests. Returns for each its result: passed, failed or error. Its key is the node id
        without the file.
        """
        report = self.root / "report.xml"
        report.unlink(missing_ok=True)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        command += [f"--timeout={TEST_SECONDS}", f"--junitxml={report}", *tests]
        subprocess.run(
            command, cwd=self.root, env=self._environment, check=False,
            timeout=RUN_SECONDS * len(tests),
            capture_output=True,
        )  # fmt: skip
        found = {}
        for case in ET.parse(report).iter("testcase"):
            kinds = {child.tag for child in case}
            state = FAILED if "failure" in kinds else "error" if "error" in kinds else PASSED
            found[case.get("name", "")] = state
        return found


def name_of(test: str) -> str:
    """A test's name in the report."""
    return test.partition("::")[2]


def judge(tree: Tree, mutant: Mutant) -> str:
    """`caught`, or why the mutant is not caught."""
    try:
        texts = mutant.applied(tree.root)
    except AnchorLost as error:
        return f"ANCHOR LOST: {error}"
    before = {path: path.read_text() for path in texts}
    tree.write(texts)
    try:
        state = tree.run(mutant.test).get(name_of(mutant.test), "not run")
    except subprocess.TimeoutExpired:
        state = "timeout"
    finally:
        tree.write(before)
    if state == FAILED:
        return "caught"
    return "SURVIVED" if state == PASSED else f"PROVED NOTHING ({state})"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the mutants, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("rules", nargs="*", type=int, help="only the mutants of these rules")
    rules: list[int] = parser.parse_args(argv).rules
    mutants = [mutant for mutant in load() if not rules or mutant.rule in rules]
    with tempfile.TemporaryDirectory(prefix="roost-mutants-") as folder, running_server() as url:
        tree = Tree(Path(folder), url)
        tree.fill()
        results = tree.run(*sorted({mutant.test for mutant in mutants}))
        failing = [m.test for m in mutants if results.get(name_of(m.test)) != PASSED]
        if failing:
            print("fails without a fault: " + ", ".join(failing))
            return 1
        survivors = 0
        for mutant in mutants:
            began = monotonic()
            verdict = judge(tree, mutant)
            survivors += verdict != "caught"
            print(f"rule {mutant.rule:>2}  {verdict}  ({monotonic() - began:.1f} s)")
            print(f"         {mutant.wrong}\n         {mutant.test}", flush=True)
    print(f"{len(mutants) - survivors} of {len(mutants)} caught")
    return 1 if survivors else 0


if __name__ == "__main__":
    raise SystemExit(main())
