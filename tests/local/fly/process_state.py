"""The state of a process, as the kernel reports it."""

from pathlib import Path

GONE = ("", "Z")
"""States of an ended process; the second until its parent has reaped it."""


def process_state(pid: int) -> str:
    """A process's state in the kernel's letters (`T` is stopped), empty when there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[0]
