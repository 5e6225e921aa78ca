"""The program that forks, ties down and reaps the processes of guests for one emulator process.

Run as a script: `process_server.py ROOT`, with one end of a SEQPACKET socket pair as its stdin.
`ROOT` is the folder from which `local` can be imported. Each message is one request, answered by
one number as text:

- `start` with four descriptors: a file with the JSON of `{"argv", "cwd", "env"}`, and the process's
  stdin, stdout and stderr. The answer is its pid, once it leads a session of its own; or minus the
  number of the error (errno) for which there is no process.
- `reap PID`: the process has ended (its pidfd is readable). The answer is its exit code, or minus
  the signal that ended it. Until then the kernel gives its pid to no other process.

End of file means that the emulator has ended, whatever ended it. Then the program kills every
process of every session that it has started and not reaped, and ends. If the program itself is
killed, the kernel kills the leaders of the sessions (PR_SET_PDEATHSIG).

The program is single-threaded, so Python code can run between fork and exec. An image that is one
of our own modules (`python -m local.…`) is imported once here, and a fork runs its `main`: that
takes a few milliseconds, a new interpreter a tenth of a second.
"""

import array
import contextlib
import ctypes
import errno
import importlib
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1
_KILL_ROUNDS = 100
_DESCRIPTORS = 4
_MESSAGE_BYTES = 100
#: A module of this package runs in the fork itself.
OWN = "local."
# The interpreter ignores SIGPIPE and expects SIGINT; an executed command gets the defaults of both.
_RESET = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP)


def main(root: str) -> None:
    """Serve requests until the other end is closed; then kill what is left."""
    # Before the first guest, because a signal to this process's group is not meant for it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.path.insert(0, root)
    libc = ctypes.CDLL(None)
    sessions: set[int] = set()
    try:
        # The emulator may end between its request and our answer.
        with socket.socket(fileno=0) as line, contextlib.suppress(ConnectionError):
            while message := _receive(line):
                request, descriptors = message
                if request == b"start":
                    try:
                        answer = _start(libc, descriptors, line)
                        sessions.add(answer)
                    except OSError as error:
                        # No process or descriptor is left: this start fails, and no other guest.
                        answer = -(error.errno or errno.EAGAIN)
                else:
                    pid = int(request.partition(b" ")[2])
                    _, status = os.waitpid(pid, 0)
                    sessions.discard(pid)
                    answer = os.waitstatus_to_exitcode(status)
                line.send(str(answer).encode())
    finally:
        # A process may fork while we scan /proc, so repeat until a scan finds nothing.
        for _ in range(_KILL_ROUNDS):
            if not sessions or not _kill(sessions):
                break
            time.sleep(0.01)


def _receive(line: socket.socket) -> tuple[bytes, list[int]] | None:
    """The next request and its descriptors; None when the other end is closed."""
    size = socket.CMSG_SPACE(_DESCRIPTORS * array.array("i").itemsize)
    data, ancillary, _, _ = line.recvmsg(_MESSAGE_BYTES, size)
    found = array.array("i")
    for _, _, content in ancillary:
        found.frombytes(content)
    return (data, list(found)) if data else None


def _start(libc: ctypes.CDLL, descriptors: Sequence[int], line: socket.socket) -> int:
    """Fork a process, and return its pid once it leads its session."""
    try:
        if len(descriptors) < _DESCRIPTORS:
            raise OSError(errno.EMFILE, "the descriptors did not arrive")
        request, *streams = descriptors
        with open(request, "rb", closefd=False) as file:
            wanted = json.load(file)
        own = _own_module(wanted["argv"])
        server = os.getpid()
        ready_read, ready_write = os.pipe()
        try:
            pid = os.fork()
        except OSError:
            os.close(ready_read)
            os.close(ready_write)
            raise
        if not pid:
            os.close(request)
            os.close(ready_read)
            line.close()
            _become(libc, server, wanted, streams, ready_write, own)
        os.close(ready_write)
        # End of file: the process leads its session, and has executed its command or is about to.
        os.read(ready_read, 1)
        os.close(ready_read)
        return pid
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _own_module(argv: Sequence[str]) -> str:
    """The module of this package that the command runs, imported; else empty. One that cannot be
    imported is executed like any other command, and an interpreter of its own says why.
    """
    if len(argv) == 3 and argv[0] == sys.executable and argv[1] == "-m" and argv[2].startswith(OWN):
        with contextlib.suppress(Exception):
            importlib.import_module(argv[2])
            return argv[2]
    return ""


def _become(
    libc: ctypes.CDLL,
    server: int,
    wanted: dict[str, object],
    streams: Sequence[int],
    ready: int,
    own: str,
) -> None:
    """Become the wanted process. Never returns."""
    status = 126
    try:
        os.setsid()
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # If the server ended before that call, no signal will come.
        if os.getppid() != server:
            os._exit(137)
        for number, descriptor in enumerate(streams):
            os.dup2(descriptor, number)
            os.close(descriptor)
        for name in _RESET:
            signal.signal(name, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        argv, env, cwd = wanted["argv"], wanted["env"], wanted["cwd"]
        assert isinstance(argv, list)
        assert isinstance(env, dict)
        os.chdir(str(cwd))
        os.environ.clear()
        os.environ.update(env)
        if own:
            os.close(ready)
            sys.argv[:] = [own]
            importlib.import_module(own).main()
            status = 0
        else:
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            status = _execute([str(part) for part in argv])
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # noqa: BLE001  # as the interpreter itself would end
        traceback.print_exc()
        status = 1
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _execute(argv: list[str]) -> int:
    """Execute a command; if that fails, say so on stderr and return a shell's status for it."""
    try:
        os.execvp(argv[0], argv)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        os.write(2, f"{argv[0]}: {reason}\n".encode())
        return 127 if isinstance(error, FileNotFoundError) else 126


def _kill(sessions: set[int]) -> int:
    """Kill the processes of these sessions; return how many.

    Their leaders are not reaped, so the kernel has given none of these ids to another session.
    """
    killed = 0
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                killed += _kill_one(int(name), sessions)
    return killed


def _kill_one(pid: int, sessions: set[int]) -> bool:
    # Open the pidfd first, then read: if the pid is reused in between, what we read is the new
    # process, whose pidfd we do not have, and the signal goes nowhere.
    descriptor = os.pidfd_open(pid)
    try:
        with open(f"/proc/{pid}/stat") as stat:
            values = stat.read().rpartition(")")[2].split()
        found = int(values[3]) in sessions and values[0] != "Z"
        if found:
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        return found
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    main(sys.argv[1])
