"""The CPU that processes have used, finer than psutil tells."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    import psutil


def cpu(process: psutil.Process) -> float:
    """The CPU of the threads of a process in s, as the scheduler counted it; 0 if it has ended.

    psutil counts in hundredths of a second, which is much for each of twenty processes.
    """
    nanoseconds = 0
    for thread in Path(f"/proc/{process.pid}/task").glob("*"):
        with suppress(OSError):
            nanoseconds += int((thread / "schedstat").read_text().split()[0])
    return nanoseconds / 1e9


def cpu_of_server(postmaster: psutil.Process) -> dict[int, float]:
    """That of each process of a PostgreSQL server, in s, by its number."""
    return {each.pid: cpu(each) for each in (postmaster, *postmaster.children())}


def grown(before: Mapping[int, float], after: Mapping[int, float]) -> float:
    """What the processes used in between, in s, without those that have ended meanwhile."""
    return sum(max(0.0, used - before.get(pid, 0.0)) for pid, used in after.items())
