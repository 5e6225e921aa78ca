"""Processes of a service for tests, forked from a fork server that has imported it.

To import a service takes an interpreter a second; to fork one that has done so, a hundredth of it.
Tests of what `python -m` itself does use `spawn`, which starts a new interpreter.
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

#: Longest time, in s, until the last output of an ended process arrives.
_CLOSING_SECONDS = 1.0


class ForkServer:
    """The client of one fork server, which ends with this process."""

    def __init__(self, module: str) -> None:
        self._one = threading.Lock()
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", "tests.fork_server", module, str(theirs.fileno())],
                env={"PATH": os.environ["PATH"], "GRPC_VERBOSITY": "NONE"},
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )

    def fork(self, request: Mapping[str, object], streams: Sequence[int]) -> int:
        """Fork a process; return its pid, which is valid until it is reaped."""
        with self._one:
            socket.send_fds(self._line, [json.dumps(request).encode()], streams)
            return self._answer()

    def reap(self, pid: int) -> int:
        """Reap an ended process; return its exit status, or minus the signal."""
        with self._one:
            self._line.send(json.dumps({"reap": pid}).encode())
            return self._answer()

    def close(self) -> None:
        """End the server and its remaining processes."""
        self._line.close()
        self._popen.wait(60)

    def _answer(self) -> int:
        answer = self._line.recv(100)
        assert answer, "the fork server has ended: see its output"
        return int(answer)


@cache
def fork_server(module: str) -> ForkServer:
    """The fork server of a service for this run; `close_fork_servers` ends it."""
    _SERVERS.append(ForkServer(module))
    return _SERVERS[-1]


_SERVERS: list[ForkServer] = []


def close_fork_servers() -> None:
    """End all fork servers."""
    fork_server.cache_clear()
    while _SERVERS:
        _SERVERS.pop().close()


class Forked:
    """A forked process, with the part of asyncio's `Process` that tests need."""

    def __init__(self, parent: ForkServer, pid: int, out: _Pipe, err: _Pipe) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.stdout, self.stderr = out.reader, err.reader
        self._parent, self._pipes = parent, (out, err)
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._pidfd = os.pidfd_open(pid)
        self._loop.add_reader(self._pidfd, self._reap)

    async def wait(self) -> int:
        """Wait for its end; its exit status, or minus the signal that ended it."""
        status = await asyncio.shield(self._ended)
        for pipe in self._pipes:
            await pipe.close()
        return status

    async def communicate(self) -> tuple[bytes, bytes]:
        """Wait for its end; its stdout and stderr."""
        out, err = await asyncio.gather(self.stdout.read(), self.stderr.read())
        await self.wait()
        return out, err

    def send_signal(self, number: int) -> None:
        """Signal it, unless it has ended."""
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
    """The reading end of a pipe."""

    def __init__(self) -> None:
        self.reader = asyncio.StreamReader()
        super().__init__(self.reader)
        self._closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._reading: asyncio.ReadTransport | None = None

    async def open(self) -> int:
        """Create the pipe; return the descriptor for writing."""
        reads, writes = os.pipe()
        loop = asyncio.get_running_loop()
        pipe = os.fdopen(reads, "rb", 0)
        self._reading, _ = await loop.connect_read_pipe(lambda: self, pipe)
        return writes

    async def close(self) -> None:
        """Wait for the rest of the output, and close."""
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
    """Run `main` of a service in a forked process; `data` is its stdin."""
    out, err = _Pipe(), _Pipe()
    with tempfile.TemporaryFile() as stdin:
        stdin.write(data)
        stdin.seek(0)
        streams = [stdin.fileno(), await out.open(), await err.open()]
        try:
            parent = fork_server(module)
            request = {"arguments": arguments, "environment": dict(environment)}
            # In a thread, because the first one waits until the service is imported.
            pid = await asyncio.to_thread(parent.fork, request, streams)
        finally:
            for descriptor in streams[1:]:
                os.close(descriptor)
    return Forked(parent, pid, out, err)


async def spawn(module: str, *arguments: str, environment: Mapping[str, str]) -> Process:
    """Run `python -m MODULE` in a new interpreter, as a user does; stdin is empty."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, *arguments),
        env=dict(environment),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
