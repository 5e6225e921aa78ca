"""`stats`: what sessions did in a time span, as a table or as JSON."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from google.protobuf import json_format

from session_service.cli import command
from session_service.domain.session import DEFAULT_TENANT
from session_service.domain.stats import LONGEST, Span
from session_service.rpc.session import stats
from session_service.stats import table
from session_service.stats.service import Stats

if TYPE_CHECKING:
    from collections.abc import Sequence

    from session_service.config import Config
    from session_service.domain.stats import Figures

NAME = "stats"
USUAL = timedelta(days=7)
#: The dashboard of the same statistics, by its path in the repository.
DASHBOARD = "docs/grafana/roost.json"


def main(argv: Sequence[str]) -> int:
    """Status 0: shown. 2: an error."""
    parser = argparse.ArgumentParser(
        prog=f"python -m session_service {NAME}",
        description="Counts what sessions did in a time span, as GetSessionStats does. Needs the "
        "environment of a session_service; changes nothing.",
    )
    parser.add_argument("--project", help="only this project; by default all of them")
    parser.add_argument(
        "--from",
        dest="start",
        type=_time,
        metavar="TIME",
        help="start, included; in UTC unless it has an offset; by default a week before --to",
    )
    parser.add_argument(
        "--to", dest="end", type=_time, metavar="TIME", help="end, not included; by default now"
    )
    parser.add_argument("--json", action="store_true", help="print GetSessionStatsResponse as JSON")
    # A former option, which drew a picture.
    parser.add_argument("--svg", nargs="?", const="", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.svg is not None:
        return command.failed(
            NAME,
            f"--svg no longer exists; the Grafana dashboard {DASHBOARD} in the repository of Roost "
            "draws the five statistics",
        )
    try:
        span = _span(arguments, datetime.now(UTC))
    except ValueError as error:
        parser.error(str(error))
    return command.run(NAME, lambda config: _run(config, span, arguments))


def _time(text: str) -> datetime:
    """Parse a date or time in ISO 8601."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a date nor a time") from None
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)


def _span(arguments: argparse.Namespace, now: datetime) -> Span:
    end = arguments.end or now
    start = arguments.start or end - USUAL
    if not start < end:
        raise ValueError("--to must be after --from")
    if end - start > LONGEST:
        raise ValueError(f"--to must be at most {LONGEST.days} days after --from")
    return Span(DEFAULT_TENANT, arguments.project, start, end)


async def _run(config: Config, span: Span, arguments: argparse.Namespace) -> int:
    async with command.database_of(config) as database:
        figures = await Stats(database).figures(span)
    sys.stdout.write(_json(figures) if arguments.json else table.text(figures))
    return 0


def _json(figures: Figures) -> str:
    message = stats.render(figures)
    return json_format.MessageToJson(message, always_print_fields_with_no_presence=True) + "\n"
