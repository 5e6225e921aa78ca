"""Child processes that never outlive the emulator and never are mistaken for others."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

_LAUNCHER = str(Path(__file__).with_name("launch.py"))
_STOPS = (signal.SIGINT, signal.SIGTERM)
_UNDERTAKER = str(Path(__file__).with_name("undertaker.py"))


class ChildProcess:
    """One process, leader of a session and group of its own, reaped by the event loop.

    The kernel is asked for its end by pidfd, and it is reaped only after its group was killed, so
    a signal can never hit a stranger that got the same number.
    """

    def __init__(
        self, popen: subprocess.Popen[bytes], ended: Callable[[int], None] | None = None
    ) -> None:
        self._popen = popen
        self._tell_ended = ended
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._pidfd = os.pidfd_open(popen.pid)
        self._loop.add_reader(self._pidfd, self._reap)

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
        if self._tell_ended is not None:
            self._tell_ended(self.pid)


class Spawner:
    """Starts processes that end with us, however we end, with all that they have started.

    On our orderly end their owners end them. When we are killed the kernel ends each of them, and
    the undertaker, a process of ours that outlives us for that moment, what they have started.
    """

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        # Never blocks: a few bytes a process, and the undertaker does nothing but read.
        ours.setblocking(False)
        with theirs:
            command = [sys.executable, "-I", "-S", _UNDERTAKER]
            popen = subprocess.Popen(command, stdin=theirs.fileno(), start_new_session=True)
        self._undertaker = ChildProcess(popen)
        self._line = ours

    def spawn(
        self,
        argv: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        stdin: IO[bytes] | None = None,
        stdout: IO[bytes] | None = None,
        stderr: IO[bytes] | None = None,
    ) -> ChildProcess:
        """Run `argv`; a command that cannot be run exits 126 or 127, as in a shell."""
        # Does not block for long: fork and exec of a small interpreter, about a millisecond.
        waits, tells = os.pipe()
        try:
            with _stops_wait():
                popen = subprocess.Popen(
                    [*launcher(), str(waits), *argv],
                    cwd=cwd,
                    env=env,
                    stdin=stdin or subprocess.DEVNULL,
                    stdout=stdout or subprocess.DEVNULL,
                    stderr=stderr or subprocess.DEVNULL,
                    start_new_session=True,
                    pass_fds=(waits,),
                )
            self._tell("+", popen.pid)
            os.write(tells, b".")
        finally:
            os.close(waits)
            os.close(tells)
        return ChildProcess(popen, lambda pid: self._tell("-", pid))

    async def close(self) -> None:
        """Let the undertaker go; every process must have ended."""
        self._line.close()
        await self._undertaker.wait()

    def _tell(self, change: str, pid: int) -> None:
        # Without an undertaker there is nobody to tell, and nothing else is the worse for it.
        with contextlib.suppress(OSError):
            self._line.send(f"{change}{pid}\n".encode())


@contextlib.contextmanager
def _stops_wait() -> Iterator[None]:
    """Let a child begin with the signals that stop it held back, which its launcher lets in.

    One that comes while the launcher's interpreter begins would be lost: that ignores what we
    ignore, as a shell's background job does SIGINT, and drops a KeyboardInterrupt here and there.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def launcher() -> list[str]:
    """The words before a command that let it die with this process.

    A descriptor follows, on which a byte tells that the undertaker has heard of it.
    """
    return [sys.executable, "-I", "-S", _LAUNCHER, str(os.getpid())]
