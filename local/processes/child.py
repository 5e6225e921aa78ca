"""Child processes that cannot outlive their parent, awaited without blocking the event loop.

Every child is started through `parent_death`, a small program between fork and exec that makes the
kernel signal the child when this process ends, also when it is killed. Its docstring explains the
order of its steps.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_PARENT_DEATH = Path(__file__).with_name("parent_death.py")


class Child:
    """A running child process, its output in a log file, in a session of its own.

    It has its own session so that a terminal's Ctrl-C reaches only the parent, which then stops its
    children in the right order. If the parent ends without having stopped it, the kernel sends it
    `death_signal`.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log: Path,
        death_signal: signal.Signals = signal.SIGKILL,
        environment: Mapping[str, str] | None = None,
        drop_root: bool = False,
        keep_open: Sequence[int] = (),
    ) -> None:
        """Start the command.

        `drop_root` runs it as another uid if this process is root. `keep_open` lists the
        descriptors that it inherits. Raises RuntimeError outside of the main thread.
        """
        if threading.current_thread() is not threading.main_thread():
            # PR_SET_PDEATHSIG fires when the *thread* that forked ends, not the process: a child
            # of a worker thread would be killed with that thread.
            raise RuntimeError("a child process must be started from the main thread")
        self.name = name
        self.log = log
        drop = "drop" if drop_root and os.geteuid() == 0 else "keep"
        prefix = [
            sys.executable,
            "-I",
            "-S",
            str(_PARENT_DEATH),
            str(os.getpid()),
            str(int(death_signal)),
        ]
        with log.open("ab") as output:
            self._log_start = output.tell()
            self._process = subprocess.Popen(
                [*prefix, drop, *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=keep_open,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Its process id. Once `status` is not None another process may have the same id."""
        return self._process.pid

    @property
    def status(self) -> int | None:
        """Its exit status, or minus the signal that ended it; None while it runs."""
        return self._process.poll()

    async def exited(self) -> int:
        """Wait for its end without a time limit and return its status."""
        status = self._process.poll()
        if status is None:
            await _readable(os.pidfd_open(self.pid))
            # The pidfd is readable, so the process has ended and this does not block.
            status = self._process.wait()
        return status

    def send(self, signal_: signal.Signals) -> None:
        """Send a signal; no effect once it has ended."""
        self._process.send_signal(signal_)

    async def stop(self, *steps: tuple[signal.Signals, float]) -> int:
        """Send each signal and wait its seconds for the end; after the last one, SIGKILL."""
        for signal_, seconds in steps:
            self.send(signal_)
            with contextlib.suppress(TimeoutError):
                return await asyncio.wait_for(self.exited(), seconds)
        self.send(signal.SIGKILL)
        return await self.exited()

    async def output(self) -> str:
        """Its output since its start, at most the last 64 KiB."""
        return await asyncio.to_thread(self._read_log)

    async def last_lines(self, count: int = 10) -> list[str]:
        """The last lines of its output."""
        return (await self.output()).splitlines()[-count:]

    def _read_log(self) -> str:
        with self.log.open("rb") as file:
            file.seek(max(self._log_start, self.log.stat().st_size - 65536))
            return file.read().decode(errors="replace")


async def _readable(descriptor: int) -> None:
    """Wait until the descriptor is readable, then close it."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
