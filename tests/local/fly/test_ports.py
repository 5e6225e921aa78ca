"""Ports that processes draw for others to bind."""

import subprocess
import sys

import pytest

from local.fly import ports

HOLDING = (
    "import sys; from local.fly import ports; print(ports.reserve(), flush=True); sys.stdin.read()"
)


class Dice:
    """Gives these numbers, in order."""

    def __init__(self, *numbers: int) -> None:
        self._left = list(numbers)

    def randrange(self, _low: int, _high: int) -> int:
        return self._left.pop(0)


def test_what_another_process_has_drawn_is_not_drawn_again_while_it_lives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", HOLDING], stdin=pipe, stdout=pipe) as other:
        assert other.stdout is not None
        theirs = int(other.stdout.readline())
        ours = ports.reserve()
        ports.release(ours)
        monkeypatch.setattr(ports, "_DICE", Dice(theirs, ours))
        assert ports.reserve() == ours
        other.kill()
        other.wait(10)
    monkeypatch.setattr(ports, "_DICE", Dice(ours, theirs))
    # Ours is reserved by ourselves, theirs by nobody any more.
    assert ports.reserve() == theirs
    ports.release(ours)
    ports.release(theirs)
