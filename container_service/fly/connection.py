"""What can happen to a connection that httpx does not report as an error of its own."""

from __future__ import annotations

import os
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx

if TYPE_CHECKING:
    from collections.abc import Generator


#: The bytes that the kernel receives ahead of the reader of a streamed answer. The kernel doubles
#: it, and limits it to `net.core.rmem_max`. On a line of 50 ms it allows 10 MB/s.
RECEIVE_BYTES = 256 * 1024


def read_in_small_amounts(response: httpx.Response) -> None:
    """Limit what is received ahead of the reader of this answer.

    The kernel would let it grow to tens of megabytes, and uvloop reads up to 8 MB of it at once,
    before any other call: 10 to 50 ms in a list of 100,000 machines.
    """
    stream = response.extensions.get("network_stream")
    found = None if stream is None else stream.get_extra_info("socket")
    if found is None:
        return
    # What uvloop gives has no options, but the number of the socket.
    with socket.socket(fileno=os.dup(found.fileno())) as duplicate:
        duplicate.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)


@contextmanager
def closed_as_opened() -> Generator[None]:
    """Around one request of httpx: raise httpx.ReadError if the other side closed the connection as
    it was opened.

    anyio asks the new connection for its peer, and uvloop has no socket any more: httpx lets the
    AttributeError through (httpx 0.28.1, anyio 4.16.0, uvloop 0.23).
    """
    try:
        yield
    except AttributeError as error:
        raise httpx.ReadError("the connection was closed as it was opened") from error
