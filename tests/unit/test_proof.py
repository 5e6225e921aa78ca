"""`make proof`: the figures, and that a part that fails does not keep the others from running."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tools.proof import (
    PARTS,
    ROOT,
    Count,
    Order,
    Part,
    faults,
    main,
    misses,
    seeded,
    suite,
    survivors,
)

if TYPE_CHECKING:
    from pathlib import Path


def fails(order: Order) -> Count:
    raise OSError("no room")


def test_a_part_that_fails_fails_the_run_and_the_others_still_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = (
        Part("odd", "odd seeds fail", seeded("-c", "raise SystemExit({seed} % 2)")),
        Part("broken", "it raises", fails),
        Part("good", "it passes", seeded("-c", "print('seed {seed}')")),
    )
    assert main(["--seed", "4", "--seeds", "3"], parts, tmp_path) == 1
    written = (tmp_path / "proof.md").read_text()
    assert "| odd | odd seeds fail | 3 | 1 | " in written
    assert "| broken | it raises | 0 | 1 | " in written
    assert "| good | it passes | 3 | 0 | " in written
    assert "| 4 to 6 | " in written
    assert (tmp_path / "proof" / "broken.log").read_text() == "OSError: no room\n"
    assert "seed 6" in (tmp_path / "proof" / "good.log").read_text()
    shown = capsys.readouterr()
    assert written in shown.out
    assert shown.err.splitlines() == [
        f"odd failed: {tmp_path}/proof/odd.log",
        f"broken failed: {tmp_path}/proof/broken.log",
    ]


def test_only_the_parts_that_are_asked_for_run(tmp_path: Path) -> None:
    parts = (Part("broken", "it raises", fails), Part("good", "it passes", seeded("-c", "pass")))
    assert main(["--seed", "4", "--seeds", "1", "--only", "good"], parts, tmp_path) == 0
    assert "broken" not in (tmp_path / "proof.md").read_text()


#: Several interpreters, each of which imports pytest and more: half a minute on a busy machine.
RUNS_OF_PYTEST = pytest.mark.timeout(240)


@RUNS_OF_PYTEST
def test_tests_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Each run would import all plugins of this suite, which takes a second.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    file = tmp_path / "test_some.py"
    file.write_text(
        "import pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): assert False\n"
        "@pytest.mark.skip\n"
        "def test_skipped(): pass\n"
    )
    alone = (
        "-p",
        "pytest_randomly",
        "-p",
        "no:cacheprovider",
        "-c",
        "/dev/null",
        "--rootdir",
        str(tmp_path),
        str(file),
    )
    with (tmp_path / "log").open("w") as log:
        order = Order(1, 2, log, tmp_path)
        assert suite(*alone)(order) == Count(2, 1)
        assert suite(*alone, repeated=True)(order) == Count(4, 2)
        # No test at all proves nothing.
        assert suite(*alone, "-k", "nothing")(order) == Count(0, 1)


def test_mutants_that_survive_are_failures() -> None:
    assert survivors("...\n14 of 14 caught\n", 0) == Count(14, 0)
    assert survivors("...\n12 of 14 caught\n", 1) == Count(14, 2)
    assert survivors("fails without a fault: x\n", 1) == Count(0, 1)


def test_statements_and_calls_that_miss_their_targets_are_failures() -> None:
    done = "700 cases of 300 statements; 2 cases of 2 statements exceed their limits\n50 calls\n"
    assert misses(f"{done}\n0 misses, 900 s\n", 0) == Count(750, 0)
    assert misses(f"{done}\n3 misses, 900 s\n", 1) == Count(750, 3)
    assert misses("roost_1000: 1000 sessions\nnot done after 3600 s\n", 124) == Count(0, 1)


def test_faults_of_fuzzed_requests_are_failures() -> None:
    done = "seed 3 ...\nseed 3: 1000000 requests in 3000 s (333/s)\n  OK  1000000\n"
    assert faults(done, 0) == Count(1_000_000, 0)
    assert faults(f"{done}  fault: a\n  fault: b\n", 1) == Count(1_000_000, 2)
    assert faults("seed 3 ...\nnot done after 7200 s\n", 124) == Count(0, 1)


def test_a_command_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log:
        order = Order(1, 1, log, tmp_path)
        assert order.execute("-c", "import time; time.sleep(3600)", seconds=0.01) == 124
    assert "not done after 0.01 s" in (tmp_path / "log").read_text()


def test_the_files_of_every_part_exist() -> None:
    """An argument with a slash is a file of this project."""
    for part in PARTS:
        for cell in part.run.__closure__ or ():
            content = cell.cell_contents
            for argument in content if isinstance(content, tuple) else ():
                assert "/" not in argument or (ROOT / argument).is_file()


@RUNS_OF_PYTEST
def test_proofs_are_run_only_if_they_are_asked_for() -> None:
    def collected(*options: str) -> str:
        command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "tests/proof", *options]
        return subprocess.run(
            command, cwd=ROOT, check=False, capture_output=True, text=True
        ).stdout  # fmt: skip

    usual = collected()
    assert "deselected" in usual
    assert "::" not in usual
    assert "::" in collected("-m", "proof")
