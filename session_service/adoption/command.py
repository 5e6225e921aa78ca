"""`import-preview-sessions`: import an older platform's session table."""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import sys
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO

import psycopg

from grpc_edge import tls
from grpc_edge.certificates import CertificateError
from session_service.adoption import importer, mapping, report
from session_service.adoption.importer import ImportRunning, Options
from session_service.adoption.mapping import BadColumns, Field
from session_service.adoption.probe import MachineProbe
from session_service.adoption.rows import RowOptions
from session_service.adoption.sources import BadSource, CsvSource, table_source
from session_service.cli import command
from session_service.clients.containers import GrpcContainers
from session_service.config import Config, ConfigError
from session_service.domain.policy import Policy
from session_service.errors import StorageUnavailable
from session_service.storage import installation
from session_service.storage.refusals import DatabaseRefused

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from uuid import UUID

    from session_service.adoption.mapping import Meaning
    from session_service.adoption.sources import Source

NAME = "import-preview-sessions"
_SECRET = re.compile(r"://[^/\s]*@")
_TABLE = re.compile(r"[^.\s]{1,63}(\.[^.\s]{1,63})?")
_SOURCE = re.compile(r"\S{1,128}")


class _Parser(argparse.ArgumentParser):
    """Reports errors as one line, without secrets."""

    def error(self, message: str) -> NoReturn:
        """Write the message and exit with status 2."""
        plain = _SECRET.sub("://…@", " ".join(message.split()))
        self.exit(2, f"session_service {NAME}: {plain}; see --help\n")


def main(argv: Sequence[str]) -> int:
    """Run the import. Returns the exit status: 0 if no row was skipped, 1 if some were skipped, 2
    after an error, 130 after Ctrl-C.
    """
    arguments = _parser().parse_args(argv)
    try:
        with ExitStack() as stack:
            config = Config.from_env(os.environ)
            source = _csv(stack, arguments.from_csv)
            with asyncio.Runner() as runner:
                whole = runner.run(_run(arguments, config, source))
    except (ConfigError, CertificateError) as error:
        return _failed(str(error))
    except (BadColumns, BadSource) as error:
        return _failed(str(error))
    except ImportRunning:
        return _failed("another import is writing to this database: wait for its end")
    except DatabaseRefused as error:
        return _failed(str(error))
    except (StorageUnavailable, psycopg.OperationalError):
        return _failed("ROOST_DATABASE_URL: the database does not answer; import again")
    except psycopg.errors.UndefinedTable:
        return _failed(
            "ROOST_DATABASE_URL: the database has no tables of Roost. If it is the right database, "
            "run `python -m session_service migrate`"
        )
    except OSError as error:
        return _failed(f"{error.filename}: {error.strerror}")
    except KeyboardInterrupt:
        return 130
    return 0 if whole else 1


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=f"python -m session_service {NAME}",
        description="Imports the rows of an older platform's preview_sessions table as sessions "
        "into the database of ROOST_DATABASE_URL. Of the live rows of a project and user, the "
        "newest becomes their session; the other rows are imported as ENDED. The command may be "
        "repeated: rows that were imported stay as they are. docs/adoption.md explains it in full.",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--from-url",
        type=_checked("a postgresql:// address", _url),
        metavar="URL",
        help="the database with the table; by default ROOST_DATABASE_URL. The password may be in "
        "PGPASSWORD or ~/.pgpass",
    )
    where.add_argument("--from-csv", metavar="FILE", help="a CSV file with a header line; - for "
                       "standard input")  # fmt: skip
    parser.add_argument(
        "--table",
        default="preview_sessions",
        type=_checked("TABLE or SCHEMA.TABLE", lambda text: _full(_TABLE, text)),
        help="the table; by default preview_sessions",
    )
    parser.add_argument(
        "--source",
        metavar="NAME",
        type=_checked("1 to 128 characters without spaces", lambda text: _full(_SOURCE, text)),
        help="a name for the older platform, by default preview_sessions. Session ids are derived "
        "from it: the rows of a second platform need another name",
    )
    parser.add_argument(
        "--column",
        action="append",
        default=[],
        type=_checked("FIELD=COLUMN with a FIELD of: " + ", ".join(Field), _column),
        metavar="FIELD=COLUMN",
        help="the column of a field; usual column names are found without this option",
    )
    parser.add_argument(
        "--status",
        action="append",
        default=[],
        type=_checked("WORD=live, WORD=ended or WORD=skip", _status),
        metavar="WORD=live|ended|skip",
        help="the meaning of a word in the status column",
    )
    parser.add_argument(
        "--machine-pattern",
        type=_pattern,
        metavar="REGEX",
        help="finds the machine's id in container_url: with a group (?P<machine>…), and optionally "
        "(?P<app>…)",
    )
    parser.add_argument(
        "--app",
        type=_checked("an app's name", _app),
        help="the app of machines whose row and address give no app; by default ROOST_FLY_APP",
    )
    parser.add_argument(
        "--image",
        help="the image for rows without an image, used when a container has to be created; by "
        "default ROOST_DEFAULT_IMAGE",
    )
    parser.add_argument(
        "--keeps-files",
        action="store_true",
        help="the machines keep their root file system over a stop (rootfs.persist); by Fly's "
        "default they do not",
    )
    parser.add_argument(
        "--keep-machines",
        action="store_true",
        help="never destroy the machines of live rows in whose place a newer row became the "
        "session; by default they are destroyed after the grace period",
    )
    parser.add_argument("--offline", action="store_true", help="do not ask the provider for the "
                        "state of machines: the first start probes them")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="report the result of each row, and "
                        "write nothing")  # fmt: skip
    parser.add_argument(
        "--report", choices=("text", "json"), default="text", help="format of the report"
    )
    return parser


def _checked(rule: str, parse: Callable[[str], object]) -> Callable[[str], object]:
    """A parser for argparse whose error names the rule and not the value, which may be secret."""

    def check(text: str) -> object:
        try:
            return parse(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be {rule}") from None

    return check


def _full(pattern: re.Pattern[str], text: str) -> str:
    if not pattern.fullmatch(text):
        raise ValueError
    return text


def _url(text: str) -> str:
    if not text.startswith(("postgresql://", "postgres://")):
        raise ValueError
    return text


def _app(text: str) -> str:
    if not mapping.is_app_name(text):
        raise ValueError
    return text


def _column(text: str) -> tuple[Field, str]:
    field, separator, name = text.partition("=")
    if not separator or not name:
        raise ValueError
    return Field(field), name


def _status(text: str) -> tuple[str, Meaning]:
    word, separator, means = text.rpartition("=")
    if not separator or not word.strip() or means not in mapping.STATUS_OPTIONS:
        raise ValueError
    return word.strip().casefold(), mapping.STATUS_OPTIONS[means]


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return mapping.machine_pattern(text)
    except mapping.BadPattern as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _csv(stack: ExitStack, name: str | None) -> CsvSource | None:
    """Open the CSV file. Raises OSError, BadSource."""
    if name is None:
        return None
    file: TextIO = sys.stdin
    if name == "-":
        sys.stdin.reconfigure(encoding="utf-8-sig", newline="")  # type: ignore[union-attr]
    else:
        file = Path(name).open(encoding="utf-8-sig", newline="")  # noqa: SIM115  # the stack's
        stack.push(file)
    return CsvSource(file, "standard input" if name == "-" else name)


async def _run(arguments: argparse.Namespace, config: Config, source: Source | None) -> bool:
    """Import the rows and write the report. Returns True if no row was skipped."""
    async with AsyncExitStack() as stack:
        if source is None:
            address = arguments.from_url or config.direct_url
            source = await stack.enter_async_context(table_source(address, arguments.table))
        database = await stack.enter_async_context(command.database_of(config))
        found = await installation.read(database)
        if not found.original:
            sys.stderr.write(
                f"session_service {NAME}: this database is a copy; the import does not change the "
                "original\n"
            )
        options = _options(arguments, config, source, found.installation_id)
        probe = None
        if not arguments.offline:
            config.check_target()
            channel = await stack.enter_async_context(
                tls.channel(config.container_target, config.container_tls)
            )
            probe = MachineProbe(GrpcContainers(channel), config.lag_window)
        connection = await stack.enter_async_context(database.connection())
        # No time limit: some statements process the whole table.
        connection.limit = None
        await importer.run(connection, source, probe, options)
        return await report.write(
            connection,
            sys.stdout,
            as_json=arguments.report == "json",
            dry_run=arguments.dry_run,
        )


def _options(
    arguments: argparse.Namespace, config: Config, source: Source, namespace: UUID
) -> Options:
    image = arguments.image or config.default_image
    given: Mapping[Field, str] = dict(arguments.column)
    rows = RowOptions(
        namespace=namespace,
        source=arguments.source or "preview_sessions",
        statuses=dict(arguments.status),
        app=arguments.app or config.app,
        image=image,
        keeps_files=arguments.keeps_files,
        pattern=arguments.machine_pattern,
    )
    return Options(
        rows,
        Policy(grace_period=config.grace_period),
        given,
        keep_machines=arguments.keep_machines,
        writes=not arguments.dry_run,
    )


def _failed(message: str) -> int:
    sys.stderr.write(f"session_service {NAME}: {message}\n")
    return 2
