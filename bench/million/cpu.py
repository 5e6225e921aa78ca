"""The CPU time that calls take, in a replica and in PostgreSQL's processes for it.

On a busy machine the clock also measures whoever else wants the processors; this does not. It is
what the kernel counts for each thread (`/proc/PID/task/TID/schedstat`), and so both must run on
this machine. Where they do not, or the kernel is another one, there is no figure.
"""

from __future__ import annotations

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
        self._began: dict[int, int] = {}

    async def begin(self) -> None:
        """Begin to measure."""
        async with await psycopg.AsyncConnection.connect(self._url, autocommit=True) as connection:
            rows = await (await connection.execute(_BACKENDS)).fetchall()
        self._backends = [int(row[0]) for row in rows]
        self._began = self._read()

    def milliseconds(self) -> float | None:
        """What the processes have used since. A connection that was opened since is not counted."""
        ended = self._read()
        if not self._began or self._began.keys() - ended.keys():
            return None
        return sum(ended[pid] - began for pid, began in self._began.items()) / 1e6

    def _read(self) -> dict[int, int]:
        """The CPU time of each process in ns; empty if one of them cannot be read."""
        try:
            return {pid: _nanoseconds(pid) for pid in (self._replica, *self._backends)}
        except OSError:
            return {}


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
