"""Which processes there are, by what they use: for tests that nothing is left behind."""

from __future__ import annotations

from pathlib import Path


def using(folder: Path) -> dict[int, str]:
    """Processes that live in the folder or have a file below it open: pid to command line."""
    return {
        int(process.name): _text(process / "cmdline").replace("\0", " ")
        for process in Path("/proc").glob("[0-9]*")
        if any(_points_below(link, folder) for link in _links(process))
    }


def children(pid: int) -> dict[int, str]:
    """The children of a process: pid to command line."""
    pids = _text(Path(f"/proc/{pid}/task/{pid}/children")).split()
    return {int(pid): _text(Path(f"/proc/{pid}/cmdline")).replace("\0", " ") for pid in pids}


def _links(process: Path) -> list[Path]:
    try:
        return [process / "cwd", *(process / "fd").iterdir()]
    except OSError:  # it has ended, or is another user's
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
