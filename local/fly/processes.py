"""Child processes that never outlive the emulator and never are mistaken for others."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

_LAUNCHER = str(Path(__file__).with_name("launch.py"))


class ChildProcess:
    """One process, leader of a session and group of its own, reaped by the event loop.

    The kernel is asked for its end by pidfd, and it is reaped only after its group was killed, so
    a signal can never hit a stranger that got the same number.
    """

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._pidfd = os.pidfd_open(popen.pid)
        self._loop.add_reader(self._pidfd, self._reap)

    @classmethod
    def spawn(
        cls,
        argv: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        stdin: IO[bytes] | None = None,
        stdout: IO[bytes] | None = None,
        stderr: IO[bytes] | None = None,
    ) -> "ChildProcess":
        """Run `argv`; a command that cannot be run exits 126 or 127, as in a shell."""
        launcher = [sys.executable, "-I", "-S", _LAUNCHER, str(os.getpid())]
        # Does not block for long: fork and exec of a small interpreter, about a millisecond.
        popen = subprocess.Popen(
            [*launcher, *argv],
            cwd=cwd,
            env=env,
            stdin=stdin or subprocess.DEVNULL,
            stdout=stdout or subprocess.DEVNULL,
            stderr=stderr or subprocess.DEVNULL,
            start_new_session=True,
        )
        return cls(popen)

    @property
    def pid(self) -> int:
        """Its process id, which is its group's and session's too."""
        return self._popen.pid

    @property
    def running(self) -> bool:
        """Whether it has not been reaped yet."""
        return not self._ended.done()

    async def wait(self) -> int:
        """Its exit code, or the negative number of the signal that ended it."""
        return await asyncio.shield(self._ended)

    def signal(self, number: int) -> None:
        """Signal the process alone, as an init does with its main child."""
        if self.running:
            os.kill(self.pid, number)

    def signal_group(self, number: int) -> None:
        """Signal the process and all it has started, but for what made a session of its own."""
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def _reap(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        # What the leader left behind goes first: once it is reaped its number is free again.
        self.signal_group(signal.SIGKILL)
        self._ended.set_result(self._popen.wait())
