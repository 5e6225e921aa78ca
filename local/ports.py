"""TCP ports on loopback, for everything that a stack, an emulator or a test starts.

Choosing a port and binding it are two steps, usually in two processes: the stack chooses, the child
binds a moment later. Two emulators that chose the same port in that moment would each take the
other's guest for its own. So a chosen port is *reserved*: this process takes a record lock
(`fcntl.lockf`) on the byte with the port's number, in one file that all processes of the user
share. The kernel releases the lock when the process ends, however it ends, so no reservation can be
left behind.

Three properties of record locks shape the code below. They belong to the process, so a process does
not exclude itself: `_reserved` does that. Closing *any* descriptor of the file releases *all* locks
of the process: the file is opened once and stays open. And a forked child does not inherit them:
the parent must outlive the child's bind, which is the case for every child that this project
starts.
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
#: Seeded by the system: tests that fix `random`'s seed must not all choose the same ports.
_SYSTEM_RANDOM = random.SystemRandom()
_reserved: set[int] = set()
_file: int | None = None
#: Computed at import, because finding the temporary folder reads the file system.
_PATH = Path(tempfile.gettempdir(), f"roost-ports-{os.getuid()}")


def _first_ephemeral_port() -> int:
    """The lowest port that the kernel gives to outgoing connections.

    A busy machine opens many of those between our check and the child's bind, so we stay below.
    """
    try:
        text = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text()
    except OSError:
        return 32_768
    first = int(text.split()[0])
    # Where the ephemeral range begins low, no range is free of it, and any port is as good.
    return first if first > _LOWEST + 1_000 else 61_000


_HIGHEST = _first_ephemeral_port()


def free_port(dice: random.Random = _SYSTEM_RANDOM) -> int:
    """Reserve a port on which no process listens, and return its number.

    No other process of this user gets the same port from this function until `release_port` or the
    end of this process. A program that does not use this function can still bind it first: the
    caller handles that. `dice` chooses the candidates. Raises OSError when no port is free.
    """
    for _ in range(1000):
        port = dice.randrange(_LOWEST, _HIGHEST)
        if port in _reserved or not _lock(port):
            continue
        _reserved.add(port)
        if not is_taken(port, reuse_address=False):
            return port
        release_port(port)
    raise OSError(f"no free port found on {HOST}")


def release_port(port: int) -> None:
    """Give up a reservation. Does nothing for a port that this process has not reserved."""
    if port in _reserved:
        _reserved.remove(port)
        with suppress(OSError):
            fcntl.lockf(_shared_file(), fcntl.LOCK_UN, 1, port)


def is_taken(port: int, *, reuse_address: bool = True) -> bool:
    """Whether binding the port would fail now.

    With `reuse_address`, as servers bind, connections in TIME_WAIT do not count.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(reuse_address))
        try:
            probe.bind((HOST, port))
        except OSError:
            return True
        return False


def _lock(port: int) -> bool:
    """Whether this process has the port's lock now; False when another process holds it."""
    try:
        shared = _shared_file()
    except OSError:
        # No file can be shared here: the random choice alone must do.
        return True
    try:
        fcntl.lockf(shared, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except OSError as error:
        # lockf(3) allows both for "held by another process". Any other error means that the file
        # system has no locks, and then the random choice alone must do.
        return error.errno not in (errno.EAGAIN, errno.EACCES)
    return True


def _shared_file() -> int:
    """The shared file's descriptor, opened once: closing it would release every lock."""
    global _file  # one for the process, as its record locks are
    if _file is None:
        _file = os.open(_PATH, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    return _file
