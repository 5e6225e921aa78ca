"""Makes processes of a service cheaply: imports it once, and forks for each.

Run as a program: `python -m tests.zygote MODULE DESCRIPTOR`. On the descriptor, a SEQPACKET socket,
comes an order in JSON, with the new process's stdin, stdout and stderr beside it; it is answered by
a pid, or by the exit status of a process that has ended. It and all it made end with that socket.
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
ORDER_BYTES = 200_000


def serve(main: Callable[[Sequence[str]], int], line: socket.socket) -> None:
    """Do what is ordered until the other end is gone."""
    while True:
        data, descriptors, _, _ = socket.recv_fds(line, ORDER_BYTES, 3)
        if not data:
            return
        order = json.loads(data)
        if (pid := order.get("reap")) is not None:
            _, status = os.waitpid(pid, 0)
            line.send(str(os.waitstatus_to_exitcode(status)).encode())
            continue
        pid = os.fork()
        if not pid:
            line.close()
            become(main, order, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        line.send(str(pid).encode())


def become(
    main: Callable[[Sequence[str]], int], order: Mapping[str, object], streams: Sequence[int]
) -> None:
    """Be the process that was ordered. Returns never."""
    status = 1
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        for number, descriptor in enumerate(streams):
            os.dup2(descriptor, number)
            os.close(descriptor)
        arguments, environment = order["arguments"], order["environment"]
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
    serve(
        importlib.import_module(f"{sys.argv[1]}.main").main, socket.socket(fileno=int(sys.argv[2]))
    )
