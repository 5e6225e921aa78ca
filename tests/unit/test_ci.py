"""`.ci/run`: its status is that of `make test`, and it ends with the skipped tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAKE = """#!/bin/sh
echo "make $1"
[ "$1" = tools ] && exit 2
mkdir -p .roost
echo '<a><testcase name="test_x"><skipped type="pytest.skip" message="no ghz"/></testcase></a>' \\
    > "${2#PYTEST_ARGS=--junitxml=}"
"""


@pytest.mark.parametrize("status", [0, 2])
def test_it_goes_on_without_tools_and_ends_with_the_skips(tmp_path: Path, status: int) -> None:
    for name in (".ci/run", "tools/__init__.py", "tools/skipped.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy2(ROOT / name, tmp_path / name)
    make = tmp_path / "programs" / "make"
    make.parent.mkdir()
    make.write_text(f"{MAKE}exit {status}\n")
    make.chmod(0o755)
    path = os.pathsep.join((str(make.parent), "/usr/bin", "/bin"))
    ran = subprocess.run(
        ["bash", str(tmp_path / ".ci/run")],
        env={"PATH": path, "PYTHON": sys.executable, "CI": "true"},
        check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert ran.returncode == status
    assert ran.stdout.splitlines() == [
        "make tools",
        "make tools failed; going on without the missing programs",
        "make test",
        "Skipped tests: 1",
        "  no ghz",
        "    test_x",
    ]
    assert ran.stderr == ""
