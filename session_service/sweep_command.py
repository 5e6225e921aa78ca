"""`python -m session_service sweep`: one pass of the sweeper, at once, and what it saw and did."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from session_service import commands, wiring
from session_service.domain.survey import Verdict
from session_service.errors import RoostError, StorageUnavailable
from session_service.ports import ContainerAbsent
from session_service.storage.database import Database

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from session_service.config import Config
    from session_service.lifecycle.reaping import Orphan
    from session_service.lifecycle.sweeper import Swept

NAME = "sweep"
HEAD = ("CONTAINER", "SESSION", "GEN", "STATE", "CREATED", "PASSES", "WHY", "DONE")


@dataclass(slots=True)
class Passes:
    """What the passes over the apps came to."""

    acted: bool
    swept: list[Swept] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    """Apps that could not be listed, and why."""


def main(argv: Sequence[str]) -> int:
    """Status 0 if every app was passed over, 1 if the provider did not list one, 2 on failure."""
    parser = argparse.ArgumentParser(
        prog=f"python -m session_service {NAME}",
        description="Compares the provider's containers with the rows, once and at once, and tells "
        "of those that no session has. Needs the environment of a session_service.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--report", action="store_true", help="change nothing: neither rows nor containers"
    )
    what.add_argument(
        "--act",
        action="store_true",
        help="do what a pass of the running service does, under the same guards: follow the "
        "provider, count orphans, destroy those that were seen in enough passes running",
    )
    parser.add_argument("--app", help="this app only; every app that has containers by default")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    arguments = parser.parse_args(argv)
    return commands.run(NAME, lambda config: _run(config, arguments))


async def _run(config: Config, arguments: argparse.Namespace) -> int:
    passes = await _sweep(config, arguments.app, act=arguments.act)
    sys.stdout.write(_as_json(passes) if arguments.json else _as_text(passes))
    for app, error in passes.failed.items():
        sys.stderr.write(f"session_service {NAME}: {_name(app)} was not swept: {error}\n")
    return 1 if passes.failed else 0


async def _sweep(config: Config, app: str | None, *, act: bool) -> Passes:
    """A pass over the app, or over all. Raises StorageUnavailable."""
    passes = Passes(act)
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(Database(config.database_url, max_size=4))
        channel = await stack.enter_async_context(wiring.channel(config))
        outside = await wiring.reach(stack, config, database, channel)
        ownership = wiring.own(config, database)
        sweeper = wiring.build(config, outside, ownership).background.sweeper
        # What a pass begins, as putting to rest what traffic woke, is seen to its end.
        stack.push_async_callback(ownership.drain, config.start_budget.total_seconds())
        for each in [app] if app is not None else await sweeper.apps(config.app):
            try:
                passes.swept.append(await (sweeper.act(each) if act else sweeper.report(each)))
            except StorageUnavailable:
                raise
            except (RoostError, ContainerAbsent) as error:
                passes.failed[each] = str(error)
    return passes


def _as_json(passes: Passes) -> str:
    """The document: ids, counts and reasons, by app."""
    apps = [
        {
            "app": swept.app,
            "listed": swept.listed,
            "tracked": swept.tracked,
            "followed": _followed(swept),
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


def _lines(swept: Swept, *, acted: bool) -> Iterable[str]:
    yield (
        f"{_name(swept.app)}: listed {swept.listed}, in the rows {swept.tracked}, "
        f"orphans {len(swept.orphans)}, destroyed {len(swept.destroyed)}"
    )
    seen = ", ".join(f"{verdict} {count}" for verdict, count in _followed(swept).items())
    if seen:
        yield f"{'The provider did by itself, and was followed' if acted else 'To follow'}: {seen}"
    if swept.stopped_because:
        yield f"None is destroyed: {swept.stopped_because}"
    rows = [HEAD, *(_row(orphan) for orphan in swept.orphans)] if swept.orphans else []
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()
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


def _followed(swept: Swept) -> dict[str, int]:
    """What the listing said of the rows, but for what calls for nothing."""
    told = {str(verdict): count for verdict, count in swept.followed.items()}
    told.pop(Verdict.NOTHING, None)
    return dict(sorted(told.items()))


def _name(app: str) -> str:
    return app or "the default app"


def _time(moment: datetime | None) -> str:
    return "" if moment is None else f"{moment:%Y-%m-%dT%H:%M:%SZ}"
