"""A fork server: it imports a service once and forks a process of it on each request.

Run as a program: `python -m tests.fork_server MODULE DESCRIPTOR`. The descriptor is a SEQPACKET
socket. A request to fork is JSON, with the new process's stdin, stdout and stderr as ancillary
descriptors; the answer is the pid. A request to reap is answered with the exit status. The server
and all of its processes end when the other end of the socket is closed.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import socket
import sys
import traceback
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_PR_SET_PDEATHSIG = 1
#: Modules that a service's `main` loads when it needs them, imported here once for all processes.
LATER = {
    "session_service": (
        "session_service.cli.serve",
        "session_service.cli.sweep",
        "session_service.cli.tier",
        "session_service.adoption.command",
    ),
}
REQUEST_BYTES = 200_000


def serve(main: Callable[[Sequence[str]], int], line: socket.socket) -> None:
    """Serve requests until the other end is closed."""
    while True:
        data, descriptors, _, _ = socket.recv_fds(line, REQUEST_BYTES, 3)
        if not data:
            return
        request = json.loads(data)
        if (pid := request.get("reap")) is not None:
            _, status = os.waitpid(pid, 0)
            line.send(str(os.waitstatus_to_exitcode(status)).encode())
            continue
        pid = os.fork()
        if not pid:
            line.close()
            become(main, request, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        line.send(str(pid).encode())


def become(
    main: Callable[[Sequence[str]], int], request: Mapping[str, object], streams: Sequence[int]
) -> None:
    """Become the requested process. Never returns."""
    status = 1
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        for number, descriptor in enumerate(streams):
            os.dup2(descriptor, number)
            os.close(descriptor)
        arguments, environment = request["arguments"], request["environment"]
        assert isinstance(arguments, list)
        assert isinstance(environment, dict)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv[1:] = arguments
        status = main(arguments)
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    except BaseException:  # noqa: BLE001  # as the interpreter itself would end
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    for name in LATER.get(sys.argv[1], ()):
        importlib.import_module(name)
    serve(
        importlib.import_module(f"{sys.argv[1]}.main").main, socket.socket(fileno=int(sys.argv[2]))
    )
