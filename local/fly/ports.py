"""Loopback ports, which all that runs on this host shares.

A port is drawn by one process and bound by another, a moment later. Were the same one drawn twice
in that moment, by two emulators or stacks, each would take the other's guest for its own. So a draw
is reserved, by a record lock on one byte of a file that all share: the kernel gives it back with
the process that holds it.
"""

import errno
import fcntl
import os
import random
import socket
import tempfile
from contextlib import suppress
from pathlib import Path

HOST = "127.0.0.1"
_LOWEST = 20_000
#: Seeded by the system: tests that fix `random`'s seed must not all draw the same ports.
_DICE = random.SystemRandom()
#: Of this process: its own record locks do not keep it off.
_reserved: set[int] = set()
_file: int | None = None
#: Found at import: it may take looking around in the file system.
_PATH = Path(tempfile.gettempdir(), f"roost-ports-{os.getuid()}")


def _first_outgoing() -> int:
    """The first port that the kernel gives to outgoing connections, of which a busy machine makes
    many between our look and the bind.
    """
    try:
        text = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text()
    except OSError:
        return 32_768
    # Where the range begins low there is no quiet corner, and any port is as good as another.
    first = int(text.split()[0])
    return first if first > _LOWEST + 1_000 else 61_000


_HIGHEST = _first_outgoing()


def reserve() -> int:
    """A port that nobody listens on, and that no other process of this user draws until it is
    released or this process ends. Raises OSError where there is none.
    """
    for _ in range(1000):
        port = _DICE.randrange(_LOWEST, _HIGHEST)
        if port in _reserved or not _lock(port):
            continue
        _reserved.add(port)
        if _is_free(port):
            return port
        release(port)
    raise OSError(f"no free port found on {HOST}")


def release(port: int) -> None:
    """Let others draw it again; one that was not reserved is let be."""
    if port in _reserved:
        _reserved.remove(port)
        with suppress(OSError):
            fcntl.lockf(_shared_file(), fcntl.LOCK_UN, 1, port)


def _lock(port: int) -> bool:
    """False where another process has it reserved."""
    try:
        shared = _shared_file()
    except OSError:
        # Nowhere to share one: then the draw alone must do.
        return True
    try:
        fcntl.lockf(shared, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except OSError as error:
        # Either of the first two, says lockf(3); anything else is a file system without locks.
        return error.errno not in (errno.EAGAIN, errno.EACCES)
    return True


def _shared_file() -> int:
    """Open for as long as the process lives: closing it once would give every lock back."""
    global _file  # one for the process, as its record locks are
    if _file is None:
        _file = os.open(_PATH, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    return _file


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True
