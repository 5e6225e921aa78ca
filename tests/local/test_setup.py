"""`make setup` on a machine without a network."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pip

ROOT = Path(__file__).parents[2]


def make_setup(venv: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`make setup` into an environment that has pip and nothing else. Copying pip takes seconds."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(venv)}))
    (packages / "pip").symlink_to(Path(pip.__file__).parent)
    return subprocess.run(
        ["make", "--no-print-directory", "setup", f"VENV={venv}", f"PYTHON={sys.executable}"],
        cwd=ROOT, check=False, capture_output=True, text=True,
        env={"PATH": "/usr/bin:/bin", "PIP_NO_CACHE_DIR": "1", "PIP_RETRIES": "1", **environment},
    )  # fmt: skip


def test_without_a_network_it_says_so(tmp_path: Path) -> None:
    """In one line, beside make's own; what pip said is kept."""
    done = make_setup(tmp_path / "venv", PIP_INDEX_URL="http://127.0.0.1:1/")
    assert done.returncode == 2
    said, *of_make = done.stderr.splitlines()
    assert said.startswith("No package index can be reached. make setup needs the network once")
    assert all(line.startswith("make: ***") for line in of_make)
    assert "NewConnectionError" in (tmp_path / "venv" / "install.log").read_text()
    assert not (tmp_path / "venv" / ".installed").exists()


def test_any_other_failure_is_what_pip_says(tmp_path: Path) -> None:
    done = make_setup(tmp_path / "venv", PIP_INDEX_URL=f"file://{tmp_path}", PIP_NO_INDEX="1")
    assert done.returncode == 2
    assert "No matching distribution" in done.stderr
    assert "network" not in done.stderr
