"""A folder with the packages of `lock/run.txt` only, as in the services' images.

The environment of the checks has packages beside them that a library imports when it finds them
(httpx imports rich and pygments), and these would count as the libraries' own cost.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "lock" / "run.txt"
PINNED = re.compile(r"^([A-Za-z0-9._-]+)==", re.MULTILINE)


def make(site: Path) -> None:
    """Fill the folder with links to the packages of the lock."""
    shutil.rmtree(site, ignore_errors=True)
    site.mkdir(parents=True)
    for name in PINNED.findall(LOCK.read_text()):
        try:
            files = distribution(name).files or []
        except PackageNotFoundError:
            continue  # one of another platform
        for top in {file.parts[0] for file in files} - {"..", "__pycache__"}:
            target = Path(str(distribution(name).locate_file(top)))
            # Two distributions share `google`, and several `grpc_…` do not.
            if not (site / top).exists():
                (site / top).symlink_to(target)


def command(*arguments: str) -> tuple[str, ...]:
    """Python with these packages, without those of the environment of the checks."""
    return (sys.executable, "-S", *arguments)


def environment(site: Path) -> dict[str, str]:
    """The environment of such a process. Modules are compiled once, as in the images."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ROOST_", "FLY_", "PYTHON"))}
    return {**kept, "PYTHONPATH": os.pathsep.join(map(str, (site, ROOT, ROOT / "gen")))}
