"""Find processes by the files that they use, and ask whether one still runs."""

from __future__ import annotations

from pathlib import Path

import psutil


def using(folder: Path) -> dict[int, str]:
    """Processes with their working directory or an open file below the folder: pid → command."""
    return {
        int(process.name): _text(process / "cmdline").replace("\0", " ")
        for process in Path("/proc").glob("[0-9]*")
        if any(_points_below(link, folder) for link in _links(process))
    }


def children(pid: int) -> dict[int, str]:
    """The children of a process: pid → command line."""
    pids = _text(Path(f"/proc/{pid}/task/{pid}/children")).split()
    return {int(pid): _text(Path(f"/proc/{pid}/cmdline")).replace("\0", " ") for pid in pids}


def runs(process: psutil.Process | int) -> bool:
    """Whether the process has not ended. An ended one that nobody has reaped yet does not run."""
    try:
        found = psutil.Process(process) if isinstance(process, int) else process
        return found.is_running() and found.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _links(process: Path) -> list[Path]:
    try:
        return [process / "cwd", *(process / "fd").iterdir()]
    except OSError:  # it has ended, or belongs to another user
        return []


def _points_below(link: Path, folder: Path) -> bool:
    try:
        return link.readlink().is_relative_to(folder)
    except OSError:
        return False


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
