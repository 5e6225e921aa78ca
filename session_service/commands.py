"""What the operator's commands share: their configuration, and their faults as one line each."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING, Any

import psycopg

from session_service import logs
from session_service.config import Config, ConfigError
from session_service.errors import StorageUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


def run(name: str, work: Callable[[Config], Coroutine[Any, Any, int]]) -> int:
    """Run a command's work with the environment's configuration; its exit status, 2 where it
    failed. Logs less than a service does, unless told. Any: what coroutines send and receive,
    unused.
    """
    try:
        config = Config.from_env(os.environ)
        logs.configure(config.log_level if os.environ.get("ROOST_LOG_LEVEL") else "ERROR")
        with asyncio.Runner() as runner:
            return runner.run(work(config))
    except ConfigError as error:
        return failed(name, str(error))
    except (StorageUnavailable, psycopg.OperationalError):
        return failed(name, "ROOST_DATABASE_URL: the database does not answer; try again")
    except psycopg.errors.UndefinedTable:
        return failed(
            name,
            "ROOST_DATABASE_URL: the database has no tables of Roost: is it the right one? "
            "Then run `python -m session_service migrate`",
        )
    except KeyboardInterrupt:
        return 130


def failed(name: str, message: str) -> int:
    """Say it in one line, and give the status."""
    sys.stderr.write(f"session_service {name}: {message}\n")
    return 2
