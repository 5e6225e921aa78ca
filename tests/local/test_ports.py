"""Ports that one process reserves for another one to bind."""

import random
import subprocess
import sys

from local.ports import free_port, release_port

HOLDING = """
import random, sys
from local.ports import free_port

class One(random.Random):
    def randrange(self, *_):
        return int(sys.argv[1])

print(free_port(One()), flush=True)
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
    # Lower than the ports that this project chooses: no other test takes one of them meanwhile.
    theirs, ours = random.SystemRandom().sample(range(11_000, 19_000), 2)
    pipe, command = subprocess.PIPE, [sys.executable, "-c", HOLDING, str(theirs)]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as other:
        assert other.stdout is not None
        assert int(other.stdout.readline()) == theirs
        assert free_port(Dice(theirs, ours)) == ours
        other.kill()
        other.wait(10)
    # This process has reserved `ours`; the reservation of `theirs` ended with the other process.
    assert free_port(Dice(ours, theirs)) == theirs
    release_port(ours)
    release_port(theirs)
