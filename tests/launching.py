"""Processes of a service for tests: real ones, forked from one that has imported it already.

An interpreter takes a second of work to import a service, and a fork of one that has done so takes
a hundredth. What `python -m` itself does is seen by tests that say `anew`.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import Mapping, Sequence

#: How long what a process wrote may be on its way when it has ended, in s.
_CLOSING_SECONDS = 1.0


class Zygote:
    """What forks the processes of one service, as long as this process lives."""

    def __init__(self, module: str) -> None:
        self._one = threading.Lock()
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", "tests.zygote", module, str(theirs.fileno())],
                env={"PATH": os.environ["PATH"], "GRPC_VERBOSITY": "NONE"},
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )

    def fork(self, order: Mapping[str, object], streams: Sequence[int]) -> int:
        """Start a process; its pid, which stays its own until it is reaped."""
        with self._one:
            socket.send_fds(self._line, [json.dumps(order).encode()], streams)
            return self._answer()

    def reap(self, pid: int) -> int:
        """The exit status of a process that has ended, or minus the signal."""
        with self._one:
            self._line.send(json.dumps({"reap": pid}).encode())
            return self._answer()

    def close(self) -> None:
        """End it, and what is left of its processes."""
        self._line.close()
        self._popen.wait(10)

    def _answer(self) -> int:
        answer = self._line.recv(100)
        assert answer, "the zygote has ended: see what it wrote"
        return int(answer)


@cache
def zygote(module: str) -> Zygote:
    """The zygote of a service for this run; `close_zygotes` ends it."""
    _ZYGOTES.append(Zygote(module))
    return _ZYGOTES[-1]


_ZYGOTES: list[Zygote] = []


def close_zygotes() -> None:
    """End every zygote that was needed."""
    zygote.cache_clear()
    while _ZYGOTES:
        _ZYGOTES.pop().close()


class Forked:
    """A process that a zygote forked, with as much of asyncio's `Process` as tests need."""

    def __init__(self, parent: Zygote, pid: int, out: _Pipe, err: _Pipe) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.stdout, self.stderr = out.reader, err.reader
        self._parent, self._pipes = parent, (out, err)
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._pidfd = os.pidfd_open(pid)
        self._loop.add_reader(self._pidfd, self._reap)

    async def wait(self) -> int:
        """Its exit status, or minus the signal that ended it."""
        status = await asyncio.shield(self._ended)
        for pipe in self._pipes:
            await pipe.close()
        return status

    async def communicate(self) -> tuple[bytes, bytes]:
        """What it wrote to stdout and to stderr, once it has ended."""
        out, err = await asyncio.gather(self.stdout.read(), self.stderr.read())
        await self.wait()
        return out, err

    def send_signal(self, number: int) -> None:
        """Signal it, if it is there."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(9)

    def _reap(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self.returncode = self._parent.reap(self.pid)
        self._ended.set_result(self.returncode)


class _Pipe(asyncio.StreamReaderProtocol):
    """The end of a pipe that we read."""

    def __init__(self) -> None:
        self.reader = asyncio.StreamReader()
        super().__init__(self.reader)
        self._closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._reading: asyncio.ReadTransport | None = None

    async def open(self) -> int:
        """Make the pipe; the descriptor to write to."""
        reads, writes = os.pipe()
        loop = asyncio.get_running_loop()
        pipe = os.fdopen(reads, "rb", 0)
        self._reading, _ = await loop.connect_read_pipe(lambda: self, pipe)
        return writes

    async def close(self) -> None:
        """Take in what was written, where there is room for it, and close."""
        await asyncio.wait([self._closed], timeout=_CLOSING_SECONDS)
        if self._reading is not None:
            self._reading.close()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if not self._closed.done():
            self._closed.set_result(None)


async def fork(
    module: str, *arguments: str, environment: Mapping[str, str], data: bytes = b""
) -> Forked:
    """`python -m MODULE`, but for its beginning; `data` is what it reads from stdin."""
    out, err = _Pipe(), _Pipe()
    with tempfile.TemporaryFile() as stdin:
        stdin.write(data)
        stdin.seek(0)
        streams = [stdin.fileno(), await out.open(), await err.open()]
        try:
            parent = zygote(module)
            order = {"arguments": arguments, "environment": dict(environment)}
            # In a thread: the first one waits until the service is imported.
            pid = await asyncio.to_thread(parent.fork, order, streams)
        finally:
            for descriptor in streams[1:]:
                os.close(descriptor)
    return Forked(parent, pid, out, err)


async def anew(module: str, *arguments: str, environment: Mapping[str, str]) -> Process:
    """`python -m MODULE` as a user would run it; nothing is on stdin."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, *arguments),
        env=dict(environment),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
