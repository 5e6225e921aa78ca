"""`sweep`: run the inventory pass once, and show what it found and did."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from session_service.cli import command
from session_service.domain.inventory import Verdict
from session_service.errors import RoostError, StorageUnavailable
from session_service.ports import ContainerAbsent
from session_service.server import composition

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from session_service.config import Config
    from session_service.reconcile.inventory import InventoryCounts
    from session_service.reconcile.orphans import Orphan

NAME = "sweep"
HEAD = ("CONTAINER", "SESSION", "GEN", "STATE", "CREATED", "PASSES", "WHY", "DONE")


@dataclass(slots=True)
class Passes:
    """The results of the passes over the apps."""

    acted: bool
    swept: list[InventoryCounts] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    """Apps that the provider did not list, with the error."""


def main(argv: Sequence[str]) -> int:
    """Status 0: every app was compared. 1: the provider did not list one. 2: an error."""
    parser = argparse.ArgumentParser(
        prog=f"python -m session_service {NAME}",
        description="Compares the provider's containers with the rows once, and lists the orphans: "
        "containers that no session has. Needs the environment of a session_service.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--report", action="store_true", help="only report: change neither rows nor containers"
    )
    what.add_argument(
        "--act",
        action="store_true",
        help="do what a pass of the running service does, under the same guards: update rows from "
        "the listing, count orphans, and destroy those that enough passes in a row have seen",
    )
    parser.add_argument("--app", help="only this app; by default every app that has containers")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    arguments = parser.parse_args(argv)
    return command.run(NAME, lambda config: _run(config, arguments))


async def _run(config: Config, arguments: argparse.Namespace) -> int:
    passes = await _sweep(config, arguments.app, act=arguments.act)
    sys.stdout.write(_as_json(passes) if arguments.json else _as_text(passes))
    for app, error in passes.failed.items():
        sys.stderr.write(f"session_service {NAME}: {_name(app)} was not compared: {error}\n")
    return 1 if passes.failed else 0


async def _sweep(config: Config, app: str | None, *, act: bool) -> Passes:
    """A pass over the app, or over every app. Raises StorageUnavailable, LibraryMissing."""
    passes = Passes(act)
    bucket = composition.bucket_of(config)
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(command.database_of(config, 4))
        channel = await stack.enter_async_context(composition.channel(config))
        outside = await composition.reach(stack, config, database, channel, bucket)
        ownership = composition.own(config, database)
        inventory_pass = composition.build(config, outside, ownership).background.inventory_pass
        # A pass can begin transitions, such as pausing a container that traffic woke: wait for
        # their end.
        stack.push_async_callback(ownership.drain, config.start_budget.total_seconds())
        for each in [app] if app is not None else await inventory_pass.apps(config.app):
            try:
                passes.swept.append(
                    await (inventory_pass.act(each) if act else inventory_pass.report(each))
                )
            except StorageUnavailable:
                raise
            except (RoostError, ContainerAbsent) as error:
                passes.failed[each] = str(error)
    return passes


def _as_json(passes: Passes) -> str:
    """The JSON document: ids, counts and reasons, by app."""
    apps = [
        {
            "app": swept.app,
            "listed": swept.listed,
            "tracked": swept.tracked,
            "followed": _followed(swept),
            "orphan_count": swept.orphan_count,
            "orphans": [_plain(orphan) for orphan in swept.orphans],
            "destroyed": swept.destroyed,
            "stopped_because": swept.stopped_because,
        }
        for swept in passes.swept
    ]
    document = {"acted": passes.acted, "apps": apps, "failed": passes.failed}
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _plain(orphan: Orphan) -> dict[str, object]:
    return asdict(orphan) | {"create_time": _time(orphan.create_time)}


def _as_text(passes: Passes) -> str:
    return "\n".join(line for swept in passes.swept for line in _lines(swept, acted=passes.acted))


def _lines(swept: InventoryCounts, *, acted: bool) -> Iterable[str]:
    yield (
        f"{_name(swept.app)}: listed {swept.listed}, in the rows {swept.tracked}, "
        f"orphans {swept.orphan_count}, destroyed {len(swept.destroyed)}"
    )
    seen = ", ".join(f"{verdict} {count}" for verdict, count in _followed(swept).items())
    if seen:
        yield f"Changed by the provider{', rows updated' if acted else ''}: {seen}"
    if swept.stopped_because:
        yield f"No orphan is destroyed: {swept.stopped_because}"
    rows = [HEAD, *(_row(orphan) for orphan in swept.orphans)] if swept.orphans else []
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()
    if swept.orphan_report.more:
        yield f"... and {swept.orphan_report.more} more orphans, that are not shown"
    yield ""


def _row(orphan: Orphan) -> tuple[str, ...]:
    return (
        orphan.container_id,
        orphan.session_id or "-",
        orphan.generation or "-",
        orphan.state,
        _time(orphan.create_time) or "unknown",
        str(orphan.pass_count or "-"),
        orphan.why,
        "destroyed" if orphan.destroyed else f"kept: {orphan.spared_because}",
    )


def _followed(swept: InventoryCounts) -> dict[str, int]:
    """Verdicts on the containers with a row, except the verdict that nothing changed."""
    counts = {str(verdict): count for verdict, count in swept.verdicts.items()}
    counts.pop(Verdict.NOTHING, None)
    return dict(sorted(counts.items()))


def _name(app: str) -> str:
    return app or "the default app"


def _time(moment: datetime | None) -> str:
    return "" if moment is None else f"{moment:%Y-%m-%dT%H:%M:%SZ}"
