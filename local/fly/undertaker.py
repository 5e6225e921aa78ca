"""Ends what is left of the guests when the emulator was killed and could not do it itself.

Run as a script with one end of a socket as its stdin: `+N` and `-N` lines tell of sessions that
began and ended; the end of the stream tells that the emulator is gone. The launcher lets a guest's
main process die with the emulator, but not what that process has started.
"""

import contextlib
import os
import signal
import sys
import time

_ROUNDS = 100


def main() -> None:
    """Listen until the emulator is gone, then end every session it had left."""
    sessions: set[int] = set()
    for line in sys.stdin:
        change, number = line[0], int(line[1:])
        (sessions.add if change == "+" else sessions.discard)(number)
    gone_at = time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK")
    # A process may fork while it is looked for: look until nothing is found.
    for _ in range(_ROUNDS):
        if not sessions or not end(sessions, gone_at):
            return
        time.sleep(0.01)


def end(sessions: set[int], before: float) -> int:
    """Kill the processes of these sessions that began before; how many there were.

    A number may be another session's by now, but then its processes began later.
    """
    killed = 0
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                killed += _end_one(int(name), sessions, before)
    return killed


def _end_one(pid: int, sessions: set[int], before: float) -> bool:
    # Open first and read then: the descriptor and what is read are of one process.
    descriptor = os.pidfd_open(pid)
    try:
        state, session, began = _read(pid)
        found = session in sessions and began <= before + 1 and state != "Z"
        if found:
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        return found
    finally:
        os.close(descriptor)


def _read(pid: int) -> tuple[str, int, int]:
    """State, session and start (clock ticks since boot) of a process."""
    with open(f"/proc/{pid}/stat") as stat:
        values = stat.read().rpartition(")")[2].split()
    return values[0], int(values[3]), int(values[19])


if __name__ == "__main__":
    main()
