"""Compile pyproject.toml's ranges into the pinned, hashed requirement files under lock/.

The files hold names, versions and hashes only, and no address of an index: pip's configuration on
the machine names the index.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: dev first: the others are constrained by it, so that one version of a package is tested and run.
LOCKS = {"dev": ["dev"], "run": ["speed", "s3"], "local": ["speed", "local"]}


def compile_lock(name: str, extras: list[str]) -> None:
    """Write lock/NAME.txt for the given extras. Raises CalledProcessError where nothing fits."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal"]
    command += ["--python-version", "3.11", "--generate-hashes", "--no-emit-index-url"]
    command += ["--no-annotate", "--no-header", "--upgrade"]
    command += [part for extra in extras for part in ("--extra", extra)]
    if name != "dev":
        command += ["--constraint", "lock/dev.txt"]
    subprocess.run([*command, "-o", f"lock/{name}.txt", "pyproject.toml"], cwd=ROOT, check=True)


def main() -> None:
    """Compile every lock file."""
    for name, extras in LOCKS.items():
        compile_lock(name, extras)


if __name__ == "__main__":
    main()
