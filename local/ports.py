"""TCP ports on the loopback address, for the parts of a stack."""

from __future__ import annotations

import socket

from local.fly import ports

HOST = ports.HOST


def free_port() -> int:
    """A port that nobody listens on, this process's until it ends; whoever binds it must be ready
    to lose the race with a stranger.
    """
    return ports.reserve()


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
