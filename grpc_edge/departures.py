"""A client that goes away in the middle of its call is no error of the server.

grpc.aio learns of it a moment after its core. What a handler sends in between cannot be sent, and
grpc.aio logs that at ERROR, with a traceback that shows the handler's code.
"""

from __future__ import annotations

import logging

from grpc._cython.cygrpc import ExecuteBatchError  # type: ignore[import-not-found]

#: The logger of grpc.aio's server.
_LOGGER = "grpc._cython.cygrpc"


def log_departures_as_debug() -> None:
    """From now on such lines have the level DEBUG. May be called again."""
    # The same filter is added once.
    logging.getLogger(_LOGGER).addFilter(_as_debug)


def _as_debug(record: logging.LogRecord) -> bool:
    if record.exc_info and isinstance(record.exc_info[1], ExecuteBatchError):
        record.levelno, record.levelname = logging.DEBUG, "DEBUG"
        return logging.getLogger(_LOGGER).isEnabledFor(logging.DEBUG)
    return True
