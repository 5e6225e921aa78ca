"""What can happen to a connection that httpx does not report as an error of its own."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx

if TYPE_CHECKING:
    from collections.abc import Generator


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
