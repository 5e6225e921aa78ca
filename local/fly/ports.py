"""Loopback ports for guests, which share the host's network."""

import random
import socket

# Below Linux's ephemeral range (32768 and up), where an outgoing connection could take the port
# between the look here and the guest's own bind.
_LOW, _HIGH = 20_000, 32_000


def free_port(taken: frozenset[int] = frozenset()) -> int:
    """A loopback port that nothing listens on and that is not in `taken`."""
    for _ in range(1000):
        port = random.SystemRandom().randrange(_LOW, _HIGH)
        if port not in taken and _is_free(port):
            return port
    raise OSError("no free loopback port for a guest")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
