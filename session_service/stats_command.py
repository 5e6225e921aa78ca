"""`python -m session_service stats`: the five figures of a span, as a table, JSON, or a picture."""

from __future__ import annotations

import argparse
import asyncio
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from google.protobuf import json_format

from session_service import commands
from session_service.domain.figures import LONGEST, Span
from session_service.domain.session import DEFAULT_TENANT
from session_service.figures import picture, table
from session_service.figures.stats import Stats
from session_service.rpc import stats_fields
from session_service.storage.database import Database

if TYPE_CHECKING:
    from collections.abc import Sequence

    from session_service.config import Config
    from session_service.domain.figures import Figures

NAME = "stats"
USUAL = timedelta(days=7)


def main(argv: Sequence[str]) -> int:
    """Status 0 where it was told, 2 on failure."""
    parser = argparse.ArgumentParser(
        prog=f"python -m session_service {NAME}",
        description="Counts what sessions did in a time span, as GetSessionStats does. Needs the "
        "environment of a session_service; changes nothing.",
    )
    parser.add_argument("--project", help="of this project only; of all where not given")
    parser.add_argument(
        "--from",
        dest="start",
        type=_time,
        metavar="TIME",
        help="from this time on, by UTC where it does not say; a week before --to where not given",
    )
    parser.add_argument(
        "--to", dest="end", type=_time, metavar="TIME", help="before this time; now by default"
    )
    parser.add_argument("--json", action="store_true", help="GetSessionStatsResponse, as JSON")
    parser.add_argument(
        "--svg", type=Path, metavar="FILE", help="draw reuse rate and latencies into this file"
    )
    arguments = parser.parse_args(argv)
    try:
        span = _span(arguments, datetime.now(UTC))
    except ValueError as error:
        parser.error(str(error))
    return commands.run(NAME, lambda config: _run(config, span, arguments))


def _time(text: str) -> datetime:
    """A date, or a time as ISO 8601 has it."""
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
    async with Database(config.database_url, max_size=2) as database:
        figures = await Stats(database).figures(span)
    sys.stdout.write(_json(figures) if arguments.json else table.text(figures))
    if arguments.svg is not None:
        try:
            await asyncio.to_thread(arguments.svg.write_text, picture.svg(figures), "utf-8")
        except OSError as error:
            return commands.failed(NAME, f"--svg: {error}")
    return 0


def _json(figures: Figures) -> str:
    message = stats_fields.render(figures)
    return json_format.MessageToJson(message, always_print_fields_with_no_presence=True) + "\n"
