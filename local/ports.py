"""TCP ports on the loopback address."""

from __future__ import annotations

import random
import socket
from pathlib import Path

HOST = "127.0.0.1"
LOWEST = 20_000
#: Seeded by the system: tests that fix `random`'s seed must not all draw the same ports.
_DICE = random.SystemRandom()


def _first_outgoing() -> int:
    try:
        text = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text()
    except OSError:
        return 32_768
    # Where the range begins low there is no quiet corner, and any port is as good as another.
    first = int(text.split()[0])
    return first if first > LOWEST + 1_000 else 61_000


FIRST_OUTGOING = _first_outgoing()


def free_port() -> int:
    """A port that nobody listens on now; whoever binds it must be ready to lose the race.

    Below those that the kernel gives to outgoing connections, of which a busy machine makes many
    between our look and the bind.
    """
    for _ in range(100):
        port = _DICE.randrange(LOWEST, FIRST_OUTGOING)
        if not is_taken(port):
            return port
    raise OSError(f"no free port found on {HOST}")


def is_taken(port: int) -> bool:
    """Whether binding the port would fail now."""
    with socket.socket() as probe:
        # As servers do it: connections in TIME_WAIT are no listener.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return True
        return False
