"""What every subcommand shares: logs, running with a configuration, and one line on an error."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
from contextlib import asynccontextmanager
from math import inf
from typing import TYPE_CHECKING, Any

import psycopg

from grpc_edge.certificates import CertificateError
from session_service.clients.bucket import LibraryMissing
from session_service.config import Config, ConfigError
from session_service.errors import StorageUnavailable
from session_service.storage import pooler, refusals
from session_service.storage.database import Database, network
from session_service.storage.refusals import DatabaseRefused

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine


_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class Sparse(logging.Filter):
    """Lets each message of a logger through at most once in `EVERY` s. While the database is away
    or refuses its clients, the pool, the listeners and the background loops log every try, several
    times a second.
    """

    EVERY = 30.0

    def __init__(self, *, values: bool = False) -> None:
        """`values`: whether the same message with other values counts as another message."""
        super().__init__()
        self._values = values
        self._passed: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is written."""
        message = record.getMessage() if self._values else str(record.msg)
        key = message, str(getattr(record, "action", ""))
        if time.monotonic() - self._passed.get(key, -inf) < self.EVERY:
            return False
        self._passed[key] = time.monotonic()
        return True


#: Loggers whose messages are repeated for as long as the database is away.
SPARSE = (
    "psycopg.pool",
    "session_service.loops",
    "session_service.storage.notifications",
)


class KeyValueFormatter(logging.Formatter):
    """`time LEVEL logger: sentence key=value …`: one line per record, tracebacks apart."""

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """The line, followed by the record's extra fields."""
        keys = {k: v for k, v in vars(record).items() if k not in _STANDARD}
        line = super().formatMessage(record).replace("\n", "\\n")
        return " ".join([line, *(f"{key}={_value(value)}" for key, value in keys.items())])


def configure(level: str) -> None:
    """Send the process's log to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(KeyValueFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # These write a line per request, with addresses in it.
    for name in ("httpx", "httpcore", "psycopg.pool", "alembic"):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))
    for name in SPARSE:
        logging.getLogger(name).addFilter(Sparse())
    # Few values: what it waits for.
    logging.getLogger("session_service.server.health").addFilter(Sparse(values=True))


def _value(value: object) -> str:
    text = str(value)
    plain = text and all(char.isalnum() or char in "-_.:/+" for char in text)
    return text if plain else json.dumps(text)


#: How long to wait for PostgreSQL to accept a connection, in s.
CONNECT_TIMEOUT = 3


def run(name: str, work: Callable[[Config], Coroutine[Any, Any, int]]) -> int:
    """Run a command with the configuration of the environment. Returns its exit status; 2 after an
    error. Logs errors only, unless ROOST_LOG_LEVEL is set. Any: the types of the values that are
    sent to and yielded by the coroutine; neither is used.
    """
    try:
        config = Config.from_env(os.environ)
    except ConfigError as error:
        return failed(name, str(error))
    try:
        configure(config.log_level if os.environ.get("ROOST_LOG_LEVEL") else "ERROR")
        with asyncio.Runner() as runner:
            return runner.run(work(config))
    except DatabaseRefused as error:
        return failed(name, str(error))
    except (LibraryMissing, CertificateError, ConfigError) as error:
        return failed(name, str(error))
    except (StorageUnavailable, psycopg.OperationalError):
        return failed(name, why_not(config))
    except psycopg.errors.UndefinedTable:
        return failed(
            name,
            "ROOST_DATABASE_URL: the database has no tables of Roost. If it is the right database, "
            "run `python -m session_service migrate`",
        )
    except KeyboardInterrupt:
        return 130


def why_not(config: Config) -> str:
    """Which address of the database cannot be used, and why. Quotes the server's own FATAL message
    if there is one, and nothing else of the driver's text, which may contain the password of the
    address.
    """
    for variable, url in (
        (config.direct_variable, config.direct_url),
        ("ROOST_DATABASE_URL", config.database_url),
    ):
        try:
            psycopg.connect(url, **network(url) | {"connect_timeout": CONNECT_TIMEOUT}).close()
        except psycopg.Error as error:
            if message := refusals.said(error):
                return f"{variable}: the database rejects the connection: {message}"
            return f"{variable}: the database does not answer; try again"
    return "ROOST_DATABASE_URL: the database does not answer; try again"


@asynccontextmanager
async def database_of(config: Config, max_size: int = 2) -> AsyncGenerator[Database]:
    """The database, for the time of a command. Raises DatabaseRefused if the address leads to a
    pooler that pools transactions.
    """
    with refusals.of(config.direct_variable):
        await pooler.check_direct(config.direct_url)
    async with Database(config.direct_url, max_size=max_size) as database:
        yield database


def failed(name: str, message: str) -> int:
    """Write the message as one line, and return the exit status 2."""
    sys.stderr.write(f"session_service {name}: {message}\n")
    return 2
