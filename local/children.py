"""Child processes that end with us, however we end, and that we wait for without blocking."""

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

_LEASH = Path(__file__).with_name("leash.py")


class Child:
    """A running child, its output in a log file, in a process session of its own.

    Its own session, so that a terminal's Ctrl-C reaches only us and we choose the order of the end.
    It is sent `death_signal` by the kernel when we die without having stopped it.
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
        """Start it. `drop_root` makes it another uid when we are root; `keep_open` is inherited."""
        if threading.current_thread() is not threading.main_thread():
            # The kernel takes the end of the forking thread for the end of the parent.
            raise RuntimeError("a child on a leash must be started from the main thread")
        self.name = name
        self.log = log
        drop = "drop" if drop_root and os.geteuid() == 0 else "keep"
        leash = [sys.executable, "-I", "-S", str(_LEASH), str(os.getpid()), str(int(death_signal))]
        with log.open("ab") as output:
            self._log_start = output.tell()
            self._process = subprocess.Popen(
                [*leash, drop, *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=keep_open,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Its process id; another process may bear it once `status` is known."""
        return self._process.pid

    @property
    def status(self) -> int | None:
        """Its exit status (minus the signal that ended it), None while it runs."""
        return self._process.poll()

    async def exited(self) -> int:
        """Wait for its end, however long it takes, and return its status."""
        status = self._process.poll()
        if status is None:
            await _readable(os.pidfd_open(self.pid))
            # The kernel says that it is over, so this does not block.
            status = self._process.wait()
        return status

    def send(self, signal_: signal.Signals) -> None:
        """Send a signal; nothing happens when it has ended."""
        self._process.send_signal(signal_)

    async def stop(self, *steps: tuple[signal.Signals, float]) -> int:
        """Send each signal in turn and wait so many seconds for the end; then SIGKILL."""
        for signal_, seconds in steps:
            self.send(signal_)
            with contextlib.suppress(TimeoutError):
                return await asyncio.wait_for(self.exited(), seconds)
        self.send(signal.SIGKILL)
        return await self.exited()

    async def output(self) -> str:
        """What it has written since its start, at most the last 64 KiB."""
        return await asyncio.to_thread(self._read_log)

    async def last_lines(self, count: int = 10) -> list[str]:
        """The last lines it wrote since its start."""
        return (await self.output()).splitlines()[-count:]

    def _read_log(self) -> str:
        with self.log.open("rb") as file:
            file.seek(max(self._log_start, self.log.stat().st_size - 65536))
            return file.read().decode(errors="replace")


async def _readable(descriptor: int) -> None:
    """Wait until the descriptor can be read, then close it."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
