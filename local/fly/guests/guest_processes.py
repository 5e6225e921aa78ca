"""The processes of guests: started, signalled and reaped so that none outlives the emulator.

`process_server`, a process of ours, forks and reaps them. An orderly end of the emulator kills its
guests itself. When the emulator is killed, the kernel closes its end of the socket to the process
server, and that kills every process of every session that it has started. When the process server
is killed, the kernel kills the main process of each guest; the emulator then sees its guests end,
and starts a new process server with the next guest.
"""

import asyncio
import atexit
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

_SERVER = str(Path(__file__).with_name("process_server.py"))
_ROOT = str(Path(__file__).parents[3])
_LAUNCHER = str(Path(__file__).with_name("launcher.py"))
#: Longest time, in s, to wait for an answer of the process server, which takes milliseconds.
_ANSWER_SECONDS = 30.0
_ENDING_SECONDS = 10.0


class ServerEnded(Exception):
    """The process server has ended, and with it all guests."""


class _Server:
    """The client of one process server. Its calls block for the few milliseconds of a fork."""

    def __init__(self) -> None:
        self._one = threading.Lock()
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._line.settimeout(_ANSWER_SECONDS)
        with theirs:
            self._popen = subprocess.Popen(
                [sys.executable, "-I", "-S", _SERVER, _ROOT],
                stdin=theirs.fileno(),
                start_new_session=True,
            )

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self._popen.poll() is None

    def start(self, argv: Sequence[str], cwd: Path, env: Mapping[str, str], *streams: int) -> int:
        """Start a process; its pid. Raises OSError if there is none to be had, and ServerEnded."""
        # In a file, because a message is limited to a few hundred kilobytes.
        with os.fdopen(os.memfd_create("start"), "r+b", buffering=0) as request:
            request.write(json.dumps({"argv": argv, "cwd": str(cwd), "env": dict(env)}).encode())
            request.seek(0)
            answer = self._ask(b"start", [request.fileno(), *streams])
        if answer < 0:
            raise OSError(-answer, os.strerror(-answer))
        return answer

    def reap(self, pid: int) -> int:
        """Reap an ended process; its exit code, or minus the signal. Raises ServerEnded."""
        return self._ask(b"reap %d" % pid, [])

    def close(self) -> None:
        """End it, and every process that it has started."""
        self._line.close()
        try:
            self._popen.wait(_ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()

    def _ask(self, request: bytes, descriptors: Sequence[int]) -> int:
        with self._one:
            try:
                socket.send_fds(self._line, [request], list(descriptors))
                answer = self._line.recv(100)
            except OSError as error:
                self._end()
                raise ServerEnded(f"the process server does not answer: {error}") from error
            if not answer:
                self._end()
                raise ServerEnded("the process server has ended")
        return int(answer)

    def _end(self) -> None:
        """End a server that did not answer. A late answer would be taken for that of the next
        request. The kernel kills its guests with it.
        """
        self._line.close()
        self._popen.kill()
        self._popen.wait()


class _Servers:
    """The process server of this process. Emulators in one process share it, as tests run many."""

    def __init__(self) -> None:
        self._current: _Server | None = None

    def current(self) -> _Server:
        """The running process server, started with the first guest."""
        if self._current is None or not self._current.alive:
            self.close()
            self._current = _Server()
        return self._current

    def close(self) -> None:
        """End it."""
        if self._current is not None:
            self._current.close()
            self._current = None


_SERVERS = _Servers()
atexit.register(_SERVERS.close)


class ChildProcess:
    """One process, leader of its own session and process group, reaped by the event loop.

    A pidfd becomes readable when the process ends. It is reaped only after its group was killed:
    until then the kernel cannot give its pid to another process, so a signal sent while `running`
    is true never reaches a process of someone else.
    """

    def __init__(self, server: _Server, pid: int, argv: Sequence[str]) -> None:
        self.pid = pid
        """Its process id, which is also the id of its group and session."""
        self.argv = tuple(argv)
        """The command that it was started with."""
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._pidfd = os.pidfd_open(pid)
        self._loop.add_reader(self._pidfd, self._reap)

    @property
    def running(self) -> bool:
        """Whether it has not ended, or has ended and is not reaped yet."""
        return not self._ended.done()

    async def wait(self) -> int:
        """Wait for its end; the exit code, or minus the signal that ended it."""
        return await asyncio.shield(self._ended)

    def signal(self, number: int) -> None:
        """Signal only this process, as an init signals its main child."""
        if self.running:
            # It may be gone only if the process server was killed, and init has reaped it.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def signal_group(self, number: int) -> None:
        """Signal its process group: itself and its descendants that did not leave the group."""
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def _reap(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        # Kill the other processes of the group before the leader is reaped: after that the kernel
        # may give the group's number to another process.
        self.signal_group(signal.SIGKILL)
        try:
            status = self._server.reap(self.pid)
        except ServerEnded:
            # The kernel killed the process with the server.
            status = -signal.SIGKILL
        self._ended.set_result(status)


class Spawner:
    """Starts the processes of guests; the module's docstring explains how they end."""

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
        """Run `argv`; a command that cannot be run exits 126 or 127, as in a shell.

        Blocks the event loop for a few milliseconds. Raises ServerEnded.
        """
        with open(os.devnull, "r+b", buffering=0) as nothing:
            streams = [(each or nothing).fileno() for each in (stdin, stdout, stderr)]
            server = _SERVERS.current()
            try:
                pid = server.start(argv, cwd, env, *streams)
            except ServerEnded:
                # Killed a moment ago: nothing of it runs any more.
                server = _SERVERS.current()
                pid = server.start(argv, cwd, env, *streams)
        return ChildProcess(server, pid, argv)


def launcher() -> list[str]:
    """The start of a command line that ties a command's life to this process."""
    return [sys.executable, "-I", "-S", _LAUNCHER, str(os.getpid())]
