"""`python -m session_service import-preview-sessions`: adopts an older platform's session table."""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import sys
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO

import grpc.aio
import psycopg

from session_service.adoption import importing, machines, report, words
from session_service.adoption.columns import BadColumns, Field
from session_service.adoption.importing import ImportRunning, Wish
from session_service.adoption.rows import Terms
from session_service.adoption.sighting import Sighting
from session_service.adoption.sources import BadSource, CsvSource, table_source
from session_service.clients.containers import GrpcContainers
from session_service.config import Config, ConfigError
from session_service.domain.policy import Policy
from session_service.errors import StorageUnavailable
from session_service.storage import installation
from session_service.storage.database import Database

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from uuid import UUID

    from session_service.adoption.sources import Source
    from session_service.adoption.words import Meaning

NAME = "import-preview-sessions"
_SECRET = re.compile(r"://[^/\s]*@")
_TABLE = re.compile(r"[^.\s]{1,63}(\.[^.\s]{1,63})?")
_SOURCE = re.compile(r"\S{1,128}")


class _Parser(argparse.ArgumentParser):
    """One line for a fault, without what may be secret."""

    def error(self, message: str) -> NoReturn:
        """Say it and end with status 2."""
        plain = _SECRET.sub("://…@", " ".join(message.split()))
        self.exit(2, f"session_service {NAME}: {plain}; see --help\n")


def main(argv: Sequence[str]) -> int:
    """Status 0 if every row came to something, 1 if some were skipped, 2 where it failed."""
    arguments = _parser().parse_args(argv)
    try:
        with ExitStack() as stack:
            config = Config.from_env(os.environ)
            source = _csv(stack, arguments.from_csv)
            with asyncio.Runner() as runner:
                whole = runner.run(_run(arguments, config, source))
    except ConfigError as error:
        return _failed(str(error))
    except (BadColumns, BadSource) as error:
        return _failed(str(error))
    except ImportRunning:
        return _failed("another import is writing to this database: wait for its end")
    except (StorageUnavailable, psycopg.OperationalError):
        return _failed("ROOST_DATABASE_URL: the database does not answer; import again")
    except psycopg.errors.UndefinedTable:
        return _failed(
            "ROOST_DATABASE_URL: the database has no tables of Roost: is it the right one? "
            "Then run `python -m session_service migrate`"
        )
    except OSError as error:
        return _failed(f"{error.filename}: {error.strerror}")
    except KeyboardInterrupt:
        return 130
    return 0 if whole else 1


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=f"python -m session_service {NAME}",
        description="Adopts the rows of an older platform's preview_sessions table as sessions of "
        "this database (ROOST_DATABASE_URL). The newest row of each project and user becomes its "
        "session, the others are imported as ENDED. May be repeated: what was imported is left as "
        "it is. docs/adoption.md tells the whole.",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--from-url",
        type=_checked("a postgresql:// address", _url),
        metavar="URL",
        help="the database that has the table; this database where not given. The password may "
        "come by PGPASSWORD or ~/.pgpass",
    )
    where.add_argument("--from-csv", metavar="FILE", help="a CSV file with a header line; - for "
                       "standard input")  # fmt: skip
    parser.add_argument(
        "--table",
        default="preview_sessions",
        type=_checked("TABLE or SCHEMA.TABLE", lambda text: _full(_TABLE, text)),
        help="the table; preview_sessions by default",
    )
    parser.add_argument(
        "--source",
        metavar="NAME",
        type=_checked("1 to 128 characters without spaces", lambda text: _full(_SOURCE, text)),
        help="what the rows' ids are of, preview_sessions by default: sessions' ids are derived "
        "from it, so that a second platform's rows need another name",
    )
    parser.add_argument(
        "--column",
        action="append",
        default=[],
        type=_checked("FIELD=COLUMN with a FIELD of: " + ", ".join(Field), _column),
        metavar="FIELD=COLUMN",
        help="which column has what; the usual names are found by themselves",
    )
    parser.add_argument(
        "--status",
        action="append",
        default=[],
        type=_checked("WORD=live, WORD=ended or WORD=skip", _status),
        metavar="WORD=live|ended|skip",
        help="what a word of the status column means",
    )
    parser.add_argument(
        "--machine-pattern",
        type=_pattern,
        metavar="REGEX",
        help="takes the machine's id out of container_url: a group (?P<machine>…), and perhaps "
        "(?P<app>…)",
    )
    parser.add_argument(
        "--app",
        type=_checked("an app's name", _app),
        help="the app of machines whose row does not say; ROOST_FLY_APP by default",
    )
    parser.add_argument(
        "--image",
        help="the image of rows that do not say, for when a container has to be created; "
        "ROOST_DEFAULT_IMAGE by default",
    )
    parser.add_argument(
        "--keeps-files",
        action="store_true",
        help="the machines' root file systems outlive a stop (rootfs.persist); Fly's default is "
        "that they do not",
    )
    parser.add_argument(
        "--keep-machines",
        action="store_true",
        help="leave the machines of superseded rows alone for ever, rather than having them "
        "destroyed a grace period from now",
    )
    parser.add_argument("--offline", action="store_true", help="do not ask the provider how the "
                        "machines are: the first start looks")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="say what would become of each row, "
                        "and write nothing")  # fmt: skip
    parser.add_argument("--report", choices=("text", "json"), default="text", help="its form")
    return parser


def _checked(rule: str, parse: Callable[[str], object]) -> Callable[[str], object]:
    """A parser for argparse whose fault names the rule, and not the value."""

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
    if not machines.sound_app(text):
        raise ValueError
    return text


def _column(text: str) -> tuple[Field, str]:
    field, separator, name = text.partition("=")
    if not separator or not name:
        raise ValueError
    return Field(field), name


def _status(text: str) -> tuple[str, Meaning]:
    word, separator, means = text.rpartition("=")
    if not separator or not word.strip() or means not in words.TELLABLE:
        raise ValueError
    return word.strip().casefold(), words.TELLABLE[means]


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return machines.pattern(text)
    except machines.BadPattern as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _csv(stack: ExitStack, name: str | None) -> CsvSource | None:
    """The CSV file, open. Raises OSError, BadSource."""
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
    """Import and report; whether every row came to something."""
    async with AsyncExitStack() as stack:
        if source is None:
            address = arguments.from_url or config.database_url
            source = await stack.enter_async_context(table_source(address, arguments.table))
        database = await stack.enter_async_context(Database(config.database_url, max_size=2))
        found = await installation.read(database)
        if not found.original:
            sys.stderr.write(
                f"session_service {NAME}: this database was copied from another cluster; what is "
                "imported here is not imported there\n"
            )
        wish = _wish(arguments, config, source, found.installation_id)
        sighting = None
        if not arguments.offline:
            channel = grpc.aio.insecure_channel(config.container_target)
            await stack.enter_async_context(channel)
            sighting = Sighting(GrpcContainers(channel), config.lag_window)
        connection = await stack.enter_async_context(database.connection())
        # Whole tables are compared in one statement, and somebody sits before it.
        connection.limit = None
        await importing.run(connection, source, sighting, wish)
        return await report.write(
            connection,
            sys.stdout,
            as_json=arguments.report == "json",
            dry_run=arguments.dry_run,
        )


def _wish(arguments: argparse.Namespace, config: Config, source: Source, namespace: UUID) -> Wish:
    image = arguments.image or config.default_image
    told: Mapping[Field, str] = dict(arguments.column)
    terms = Terms(
        namespace=namespace,
        source=arguments.source or "preview_sessions",
        statuses=dict(arguments.status),
        app=arguments.app or config.app,
        image=image,
        keeps_files=arguments.keeps_files,
        pattern=arguments.machine_pattern,
    )
    return Wish(
        terms,
        Policy(grace_period=config.grace_period),
        told,
        keep_machines=arguments.keep_machines,
        writes=not arguments.dry_run,
    )


def _failed(message: str) -> int:
    sys.stderr.write(f"session_service {NAME}: {message}\n")
    return 2
