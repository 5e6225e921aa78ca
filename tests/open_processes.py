"""Processes of tests: wait for the end of one, and find those that are left behind."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from asyncio.subprocess import Process

#: Longest time, in s, that a process may take to end: less than a test may, so that a process that
#: hangs fails the test that waits for it, and is not left to the next test.
ENDING_SECONDS = 50.0


async def ended(process: Process) -> tuple[bytes, bytes]:
    """Wait for the end of a process; its stdout and stderr. Raises TimeoutError, and kills it."""
    try:
        return await asyncio.wait_for(process.communicate(), ENDING_SECONDS)
    except TimeoutError:
        process.kill()
        await process.communicate()
        raise


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
