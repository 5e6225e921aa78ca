"""Log lines: a sentence for people, then keys for machines, the call's request id among them."""

from __future__ import annotations

import json
import logging
import sys
import time
from contextvars import ContextVar

#: The id of the call that is being answered; empty outside of one.
request_id: ContextVar[str] = ContextVar("request_id", default="")

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class KeyValueFormatter(logging.Formatter):
    """`time LEVEL logger: sentence key=value …`, one line a record but for a traceback."""

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """The line, with the record's extra keys behind it."""
        keys = {k: v for k, v in vars(record).items() if k not in _STANDARD}
        if request_id.get():
            keys["request_id"] = request_id.get()
        line = super().formatMessage(record).replace("\n", "\\n")
        return " ".join([line, *(f"{key}={_value(value)}" for key, value in keys.items())])


def configure(level: str) -> None:
    """Send the process's log to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(KeyValueFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # It writes a line per request, with the query in it.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("httpcore").setLevel(logging.WARNING)


def _value(value: object) -> str:
    text = str(value)
    plain = text and all(c.isalnum() or c in "-_.:/+" for c in text)
    return text if plain else json.dumps(text)
