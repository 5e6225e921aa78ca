"""`serve` and `migrate`: run the service until a signal, or only bring the database up to date."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from typing import TYPE_CHECKING

import psycopg
import sqlalchemy.exc

from grpc_edge import exposure
from grpc_edge.binding import PortTaken
from grpc_edge.certificates import CertificateError
from grpc_edge.signals import until_signal
from session_service import failpoints
from session_service.cli import command
from session_service.clients.bucket import LibraryMissing
from session_service.config import Config, ConfigError, check_names, describe
from session_service.errors import StorageUnavailable
from session_service.metrics import exporter
from session_service.server.replica import bring_up_to_date, serve
from session_service.storage import refusals
from session_service.storage.refusals import DatabaseRefused, ReadOnlyDatabase
from session_service.storage.revision import SchemaMismatch

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Sequence

_log = logging.getLogger(__name__)

#: Ends the message about an address that cannot be bound.
CANNOT_BIND = "cannot be served on: is it taken, or not this machine's?"


def main(argv: Sequence[str]) -> int:
    """Serve until SIGTERM or SIGINT. Status 2 for wrong configuration, 1 for an unusable
    database.
    """
    _parse("serve", "Serves session_service until SIGTERM or SIGINT.", argv)
    return _run(_serve)


def migrate(argv: Sequence[str]) -> int:
    """Bring the database up to date. The exit statuses are those of `serve`."""
    _parse("migrate", "Brings the database up to date, and ends.", argv)
    return _run(_migrate)


def _migrate(config: Config) -> None:
    with refusals.of(config.direct_variable):
        bring_up_to_date(config.direct_url)


def _parse(name: str, description: str, argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog=f"python -m session_service {name}",
        description=description,
        epilog=describe(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args(argv)


def _run(work: Callable[[Config], None]) -> int:
    try:
        config = Config.from_env(os.environ)
        failpoints.arm(os.environ)
        command.configure(config.log_level)
        if names := check_names(os.environ):
            listed = ", ".join(names)
            _log.warning("unknown variables are ignored: %s", listed, extra={"action": "configure"})
    except (ConfigError, failpoints.BadFailpoint) as error:
        return _failed(str(error), 2)
    try:
        work(config)
    except (ConfigError, exposure.Exposed, LibraryMissing, CertificateError) as error:
        return _failed(str(error), 2)
    except exporter.AddressTaken as error:
        return _failed(f"ROOST_METRICS_LISTEN: {error} {CANNOT_BIND}", 2)
    except PortTaken as error:
        return _failed(f"{error.variable}: {error} {CANNOT_BIND}", 2)
    except (StorageUnavailable, psycopg.OperationalError, sqlalchemy.exc.OperationalError):
        return _failed(command.why_not(config), 1)
    except (DatabaseRefused, ReadOnlyDatabase, SchemaMismatch) as error:
        return _failed(str(error), 1)
    return 0


def _serve(config: Config) -> None:
    exposure.admit(config.exposed, insecure=config.insecure)
    with asyncio.Runner(loop_factory=fast_loop()) as runner:
        runner.run(_until_signal(config))


async def _until_signal(config: Config) -> None:
    """Serve until SIGTERM or SIGINT, and for `config.lame_duck` seconds more, which a second signal
    cuts short. Then calls in flight finish, and one more signal kills the process.
    """

    def told(number: signal.Signals) -> None:
        more = {"action": "stop", "lame_duck": config.lame_duck}
        _log.info("stopping on %s", number.name, extra=more)

    async with serve(config) as running:

        def ready() -> None:
            about = {"action": "serving", "config": config}
            _log.info("serving on %s", running.target, extra=about)
            if running.metrics_target:
                url = f"http://{running.metrics_target}{exporter.PATH}"
                _log.info("metrics at %s", url, extra={"action": "metrics"})

        await until_signal(running.leave, config.lame_duck, ready, told)
    _log.info("stopped", extra={"action": "stopped"})


def fast_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Uvloop's event loop where uvloop is installed; None means asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _failed(message: str, status: int) -> int:
    print(f"session_service: {message}", file=sys.stderr)  # noqa: T201
    return status
