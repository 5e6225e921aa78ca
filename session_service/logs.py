"""Log lines: a sentence for people, then keys for machines."""

from __future__ import annotations

import json
import logging
import sys
import time

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
        line = super().formatMessage(record).replace("\n", "\\n")
        return " ".join([line, *(f"{key}={_value(value)}" for key, value in keys.items())])


def configure(level: str) -> None:
    """Send the process's log to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(KeyValueFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # They write a line per request, with addresses in it.
    for name in ("httpx", "httpcore", "psycopg.pool", "alembic"):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))


def _value(value: object) -> str:
    text = str(value)
    plain = text and all(char.isalnum() or char in "-_.:/+" for char in text)
    return text if plain else json.dumps(text)
