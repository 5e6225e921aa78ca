"""What the operator's commands share: their configuration, and their faults as one line each."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from typing import TYPE_CHECKING, Any

import psycopg

from session_service import logs
from session_service.config import Config, ConfigError
from session_service.errors import StorageUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

#: How long to wait for a server that may not be there, in s.
CONNECT_TIMEOUT = 3


def run(name: str, work: Callable[[Config], Coroutine[Any, Any, int]]) -> int:
    """Run a command's work with the environment's configuration; its exit status, 2 where it
    failed. Logs less than a service does, unless told. Any: what coroutines send and receive,
    unused.
    """
    try:
        config = Config.from_env(os.environ)
    except ConfigError as error:
        return failed(name, str(error))
    try:
        logs.configure(config.log_level if os.environ.get("ROOST_LOG_LEVEL") else "ERROR")
        with asyncio.Runner() as runner:
            return runner.run(work(config))
    except (StorageUnavailable, psycopg.OperationalError):
        return failed(name, f"ROOST_DATABASE_URL: {why_not(config.database_url)}")
    except psycopg.errors.UndefinedTable:
        return failed(
            name,
            "ROOST_DATABASE_URL: the database has no tables of Roost: is it the right one? "
            "Then run `python -m session_service migrate`",
        )
    except KeyboardInterrupt:
        return 130


def why_not(database_url: str) -> str:
    """Why the database is of no use, in the server's own word where it refuses us. What the driver
    says besides may hold what is secret in the address.
    """
    try:
        psycopg.connect(database_url, connect_timeout=CONNECT_TIMEOUT).close()
    except psycopg.Error as error:
        if said := re.search(r"FATAL: +(.+)", str(error)):
            return f"the database refuses: {said[1]}"
    return "the database does not answer; try again"


def failed(name: str, message: str) -> int:
    """Say it in one line, and give the status."""
    sys.stderr.write(f"session_service {name}: {message}\n")
    return 2
