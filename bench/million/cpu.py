"""The CPU time that calls take, in a replica and in PostgreSQL's processes for it.

On a busy machine the clock also measures whoever else wants the processors; this does not. It is
what the kernel counts for each thread (`/proc/PID/task/TID/schedstat`), and so both must run on
this machine. Where they do not, or the kernel is another one, there is no figure.

The median of the calls counts: a pass of the replica may come beside some of them.
"""

from __future__ import annotations

import statistics
from itertools import pairwise
from pathlib import Path

import psycopg

_BACKENDS = """
SELECT pid FROM pg_stat_activity
WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
"""


class Processes:
    """A replica, and the server processes of the connections to its database."""

    def __init__(self, url: str, replica: int) -> None:
        """`replica` is a process id."""
        self._url = url
        self._replica = replica
        self._backends: list[int] = []
        self._marks: list[int | None] = []

    async def begin(self) -> None:
        """Begin to measure. Connections that are opened later are not counted."""
        async with await psycopg.AsyncConnection.connect(self._url, autocommit=True) as connection:
            rows = await (await connection.execute(_BACKENDS)).fetchall()
        self._backends = [int(row[0]) for row in rows]
        self._marks = []

    def mark(self) -> None:
        """Where a call begins, or the last one has ended."""
        try:
            self._marks.append(sum(map(_nanoseconds, (self._replica, *self._backends))))
        except OSError:
            self._marks.append(None)

    def milliseconds(self) -> float | None:
        """The median of what the processes have used from one mark to the next."""
        used = [after - before for before, after in pairwise(self._marks) if before and after]
        return statistics.median(used) / 1e6 if used else None


def _nanoseconds(pid: int) -> int:
    """The CPU time of all threads of the process."""
    found = 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        try:
            found += int((thread / "schedstat").read_text().split()[0])
        except FileNotFoundError:
            # The thread has ended. gRPC keeps those that it works with.
            continue
    return found
