"""A look at processes from outside of the emulator."""

from pathlib import Path

GONE = ("", "Z")
"""States of a process that has ended, the second until its parent has noticed."""


def process_state(pid: int) -> str:
    """A process's state as the kernel names it (`T` is stopped), empty when there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[0]
