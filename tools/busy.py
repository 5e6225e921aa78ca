"""Run a command on a busy machine: python -m tools.busy [--loops 2] -- COMMAND...

Plain loops, one for each core, compute while the command runs. They end with the command, at the
latest after --seconds, and also if this process is killed. The status is the command's.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

#: How long the loops run at most, in s.
SECONDS = 1800.0
#: A loop looks at the clock and at its parent about 100 times a second.
_LOOP = """
import os, sys, time
parent, until = int(sys.argv[1]), time.monotonic() + float(sys.argv[2])
while time.monotonic() < until and os.getppid() == parent:
    for _ in range(200_000):
        pass
"""


@contextmanager
def busy(loops: int, seconds: float = SECONDS) -> Generator[list[int]]:
    """Keep as many cores busy while the context is open, for `seconds` at most. Yields the pids."""
    with ExitStack() as stack:
        children = []
        for _ in range(loops):
            command = [sys.executable, "-S", "-c", _LOOP, str(os.getpid()), str(seconds)]
            child = stack.enter_context(subprocess.Popen(command, stdin=subprocess.DEVNULL))
            stack.callback(child.terminate)
            children.append(child)
        yield [child.pid for child in children]
        if any(child.poll() is not None for child in children):
            print(f"the loops ended after {seconds:g} s, before the command", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its status, or 128 and the signal that ended it, as a shell has it."""
    parser = argparse.ArgumentParser(prog="python -m tools.busy", description=__doc__)
    parser.add_argument("--loops", type=int, default=os.cpu_count() or 2)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("command", nargs="+")
    given = parser.parse_args(argv)
    with busy(given.loops, given.seconds):
        try:
            status = subprocess.run(given.command, check=False).returncode
        except OSError as error:
            print(f"{given.command[0]}: {error.strerror}", file=sys.stderr)
            return 127
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main())
