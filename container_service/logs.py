"""The log format: a sentence for people, then `key=value` pairs, the RPC's request id included."""

from __future__ import annotations

import json
import logging
import sys
import time
from contextvars import ContextVar

#: The request id of the current RPC; empty outside of RPCs.
request_id: ContextVar[str] = ContextVar("request_id", default="")

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class KeyValueFormatter(logging.Formatter):
    """Formats a record as `time LEVEL logger: sentence key=value …`; a traceback may follow."""

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """Append the `extra` of the record as pairs."""
        keys = {k: v for k, v in vars(record).items() if k not in _STANDARD}
        if request_id.get():
            keys["request_id"] = request_id.get()
        line = super().formatMessage(record).replace("\n", "\\n")
        return " ".join([line, *(f"{key}={_value(value)}" for key, value in keys.items())])


def configure(level: str) -> None:
    """Log to standard error from `level` on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(KeyValueFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # httpx logs each request at INFO, query included.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("httpcore").setLevel(logging.WARNING)


def _value(value: object) -> str:
    text = str(value)
    plain = text and all(c.isalnum() or c in "-_.:/+" for c in text)
    return text if plain else json.dumps(text)
