"""Ports that one process reserves for another one to bind."""

import random
import subprocess
import sys

from local.ports import free_port, release_port

HOLDING = """
import sys
from local.ports import free_port
print(free_port(), flush=True)
sys.stdin.read()
"""


class Dice(random.Random):
    """Gives these numbers, in order."""

    def __init__(self, *numbers: int) -> None:
        super().__init__()
        self._left = list(numbers)

    def randrange(self, start: int, stop: int | None = None, step: int = 1) -> int:
        return self._left.pop(0)


def test_a_port_that_another_process_reserved_is_not_chosen_while_that_process_lives() -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", HOLDING], stdin=pipe, stdout=pipe) as other:
        assert other.stdout is not None
        theirs = int(other.stdout.readline())
        ours = free_port()
        release_port(ours)
        assert free_port(Dice(theirs, ours)) == ours
        other.kill()
        other.wait(10)
    # This process has reserved `ours`; the reservation of `theirs` ended with the other process.
    assert free_port(Dice(ours, theirs)) == theirs
    release_port(ours)
    release_port(theirs)
