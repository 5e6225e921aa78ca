"""Makes session_service processes cheaply: imports it once, and forks for each.

Run as a program: a line of JSON on stdin, `{"environment": {...}, "log": "..."}`, is answered by
`began PID`; the end of each process by `ended PID STATUS`. All of them end with it.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import select
import signal
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Self

from session_service import main as service

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping
    from pathlib import Path

_PR_SET_PDEATHSIG = 1


class Zygote:
    """The program's other end."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._began: asyncio.Queue[int] = asyncio.Queue()
        self._ended: dict[int, asyncio.Future[int]] = {}
        self._one = asyncio.Lock()

    @classmethod
    @asynccontextmanager
    async def running(cls) -> AsyncGenerator[Self]:
        """Run it; whatever it forked ends with this context."""
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.chaos.zygote"), stdin=pipe, stdout=pipe
        )
        zygote = cls(process)
        reading = asyncio.create_task(zygote._read())
        try:
            yield zygote
        finally:
            assert process.stdin is not None
            process.stdin.close()
            await process.wait()
            await reading

    async def fork(self, environment: Mapping[str, str], log: Path) -> int:
        """Start a session_service; its pid."""
        assert self._process.stdin is not None
        async with self._one:
            order = json.dumps({"environment": dict(environment), "log": str(log)})
            self._process.stdin.write(order.encode() + b"\n")
            return await self._began.get()

    async def ended(self, pid: int) -> int:
        """Wait for its end: the exit status, or minus the signal."""
        return await asyncio.shield(self._end_of(pid))

    def _end_of(self, pid: int) -> asyncio.Future[int]:
        return self._ended.setdefault(pid, asyncio.get_running_loop().create_future())

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            word, *numbers = line.split()
            if word == b"began":
                self._began.put_nowait(int(numbers[0]))
            else:
                self._end_of(int(numbers[0])).set_result(int(numbers[1]))


def _serve() -> None:
    """The program."""
    children: set[int] = set()
    rest = b""
    while True:
        ready, _, _ = select.select([0], [], [], 0.02)
        if ready:
            data = os.read(0, 65536)
            if not data:
                break
            *orders, rest = (rest + data).split(b"\n")
            for order in orders:
                children.add(_fork(json.loads(order)))
        _reap(children)
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _reap(children: set[int]) -> None:
    for pid in list(children):
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            children.discard(pid)
            print(f"ended {pid} {os.waitstatus_to_exitcode(status)}", flush=True)


def _fork(order: Mapping[str, object]) -> int:
    pid = os.fork()
    if pid:
        print(f"began {pid}", flush=True)
        return pid
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    log = os.open(str(order["log"]), os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    os.close(0)
    os.environ.clear()
    environment = order["environment"]
    assert isinstance(environment, dict)
    os.environ.update(environment)
    os._exit(service.main([]))


if __name__ == "__main__":
    _serve()
