"""`python -m local up`: run the whole stack in the foreground."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from local.processes.stop_signals import stop_requested
from local.stack.stack import Stack, StackFailed
from local.stack.stack_settings import StackSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

START = '{"key": {"project_id": "demo", "user_id": "me"}}'

TABLE = """\
Roost is running. Ctrl-C stops it; the data stays in {data}/ and is there at the next `up`.

{rows}

Try it: start a session, then list all sessions.

  {start}

  {list}
"""


def main(argv: list[str]) -> int:
    """Run until SIGINT or SIGTERM. Status 2: it cannot start; 1: a program ended by itself."""
    try:
        return asyncio.run(run(settings(argv, os.environ)))
    except StackFailed as failure:
        print(failure, file=sys.stderr)
        return failure.status


#: Not passed on: everything here talks on loopback, and two services cannot share an address.
OWN = ("ROOST_TLS_", "ROOST_CONTAINER_TLS_", "ROOST_HEALTH_LISTEN")


def passed_on(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that the services get from the environment of `local up`."""
    return {
        name: value
        for name, value in environment.items()
        if name.startswith("ROOST_") and not name.startswith(OWN)
    }


def settings(argv: list[str], environment: Mapping[str, str]) -> StackSettings:
    """Read the settings from the command line and the environment."""
    parser = argparse.ArgumentParser(
        prog="python -m local up",
        description="Run PostgreSQL, the Fly emulator, container_service and session_service in the"
        " foreground until Ctrl-C. Port 0 chooses a free one.",
        epilog="ROOST_DATABASE_URL replaces the embedded PostgreSQL, ROOST_FLY_APP names the Fly"
        " app. All other ROOST_* variables are passed to both services.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    default = StackSettings()
    add = parser.add_argument
    add("--data", type=Path, default=default.data, metavar="DIR", help="folder for data and logs")
    add("--session-port", type=_port, default=50051, help="session_service, gRPC")
    add("--container-port", type=_port, default=50052, help="container_service, gRPC")
    add("--fly-port", type=_port, default=4280, help="the emulator's Machines API")
    add("--proxy-port", type=_port, default=4281, help="the emulator's proxy, for previews")
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
        environment=passed_on(environment),
    )


async def run(wanted: StackSettings) -> int:
    """Run the stack until a stop signal (also during the start) or until a program ends."""
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
    database = "" if wanted.database_url else "PostgreSQL, "
    services = "the Fly emulator, container_service and session_service"
    print(f"Starting {database}{services} ...", flush=True)
    async with Stack(wanted) as stack:
        print(table(stack), flush=True)
        return await stack.failure()


def table(stack: Stack) -> str:
    """The addresses, the folders of logs and data, and two example calls."""
    wanted = stack.settings
    previews = [
        template.format(container_id="<container_id>", app=wanted.app)
        for template in (wanted.url_template, wanted.browser_template)
    ]
    if stack.postgres:
        postgres = (stack.database_url, str(stack.postgres.folder.log))
    else:
        # The user's own server: keep its password off the terminal.
        postgres = (without_password(stack.database_url), "(external)")
    rows = [
        ("", "address", "log"),
        *((program.name, program.address, str(program.log)) for program in stack.programs.values()),
        ("previews", previews[0], ""),
        ("  in a browser", previews[1], ""),
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


def without_password(address: str) -> str:
    """An address of PostgreSQL, in any form that libpq takes, as it may be shown."""
    shown = re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", address)
    if conninfo_to_dict(shown).get("password") in (None, "***"):
        return shown
    return make_conninfo(address, password="***")


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 0 to 65535")
    return int(text)
