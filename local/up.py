"""`python -m local up`: the whole stack in the foreground."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from local.signals import stop_requested
from local.stack import Stack, StackFailed
from local.stack_settings import StackSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

START = '{"key": {"project_id": "demo", "user_id": "me"}}'

TABLE = """\
Roost is up. Ctrl-C stops it; its data stays in {data}/, and the next `up` finds it.

{rows}

Try it: start a session, then list the sessions.

  {start}

  {list}
"""


def main(argv: list[str]) -> int:
    """Run until Ctrl-C or SIGTERM. Status 2: it cannot start so; 1: a part failed."""
    try:
        return asyncio.run(run(settings(argv, os.environ)))
    except StackFailed as failure:
        print(failure, file=sys.stderr)
        return failure.status


def settings(argv: list[str], environment: Mapping[str, str]) -> StackSettings:
    """The settings that a command line and the environment ask for."""
    parser = argparse.ArgumentParser(
        prog="python -m local up",
        description="Run PostgreSQL, the Fly emulator, container_service and session_service in the"
        " foreground, until Ctrl-C. A port of 0 is a free one.",
        epilog="ROOST_DATABASE_URL takes the place of the embedded PostgreSQL; ROOST_FLY_APP names"
        " the Fly app; the services see every other ROOST_* variable.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    default = StackSettings()
    add = parser.add_argument
    add("--data", type=Path, default=default.data, metavar="DIR", help="what is kept, and logs")
    add("--session-port", type=_port, default=50051, help="session_service, gRPC")
    add("--container-port", type=_port, default=50052, help="container_service, gRPC")
    add("--fly-port", type=_port, default=4280, help="the emulator's Machines API")
    add("--proxy-port", type=_port, default=4281, help="the emulator's proxy: previews")
    add("--postgres-port", type=_port, default=0, help="the embedded PostgreSQL")
    given = parser.parse_args(argv)
    return StackSettings(
        data=given.data,
        session_ports=(given.session_port,),
        container_port=given.container_port,
        fly_port=given.fly_port,
        proxy_port=given.proxy_port,
        postgres_port=given.postgres_port,
        database_url=environment.get("ROOST_DATABASE_URL") or None,
        app=environment.get("ROOST_FLY_APP") or default.app,
        environment={k: v for k, v in environment.items() if k.startswith("ROOST_")},
    )


async def run(wanted: StackSettings) -> int:
    """Run the stack until we are asked to stop, while it starts too, or until a part fails."""
    async with stop_requested() as stop:
        stack = asyncio.create_task(_serve(wanted), name="stack")
        asked = asyncio.create_task(stop.wait(), name="stop")
        await asyncio.wait({stack, asked}, return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        if stack.done():
            raise stack.result()
        print("Stopping ...", flush=True)
        stack.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await stack
    return 0


async def _serve(wanted: StackSettings) -> StackFailed:
    async with Stack(wanted) as stack:
        print(table(stack), flush=True)
        return await stack.failure()


def table(stack: Stack) -> str:
    """What listens where, where logs and data are, and what to try first."""
    wanted = stack.settings
    url = wanted.url_template.format(container_id="<container_id>", app=wanted.app)
    if stack.postgres:
        postgres = (stack.database_url, str(stack.postgres.folder.log))
    else:
        # Somebody's own server: its password is not for a terminal's history.
        postgres = (re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", stack.database_url), "(not ours)")
    rows = [
        ("", "where", "log"),
        *((part.name, part.address, str(part.log)) for part in stack.parts.values()),
        ("previews", url, ""),
        ("PostgreSQL", *postgres),
    ]
    wide = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"  {a:{wide[0]}}   {b:{wide[1]}}   {c}".rstrip() for a, b, c in rows]
    buf = os.path.relpath(Path(sys.executable).with_name("buf"))
    call = f"{buf} curl --protocol grpc --http2-prior-knowledge"
    service = f"http://{stack.session_targets[0]}/roost.session.v1.SessionService"
    return TABLE.format(
        data=wanted.data,
        rows="\n".join(lines),
        start=f"{call} -d '{START}' {service}/StartSession",
        list=f"{call} -d '{{}}' {service}/ListSessions",
    )


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 0 to 65535")
    return int(text)
