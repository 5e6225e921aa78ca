"""`python -m local postgres`: run only the embedded PostgreSQL, in the foreground."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from local.postgres.folder import PostgresFailed
from local.postgres.server import EmbeddedPostgres
from local.processes.stop_signals import stop_requested

DATABASE = "roost"


def main(argv: list[str]) -> int:
    """Run until SIGINT or SIGTERM. Status 2: it cannot start; 1: it ended by itself."""
    parser = argparse.ArgumentParser(prog="python -m local postgres", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(".roost/postgres"), metavar="DIR")
    parser.add_argument("--port", type=int, default=54329, help="0 chooses a free one")
    arguments = parser.parse_args(argv)
    try:
        return asyncio.run(run(arguments.data, arguments.port))
    except PostgresFailed as error:
        print(error, file=sys.stderr)
        return 2


async def run(data: Path, port: int) -> int:
    """Run the server until a stop signal arrives or it ends by itself."""
    async with stop_requested() as stop, EmbeddedPostgres(data, port) as server:
        await server.ensure_database(DATABASE)
        print(f"PostgreSQL is ready: {server.url(DATABASE)}", flush=True)
        ended = asyncio.create_task(server.child.exited(), name="postgres")
        asked = asyncio.create_task(stop.wait(), name="stop")
        await asyncio.wait({ended, asked}, return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        if ended.done():
            print("\n".join(await server.child.last_lines()), file=sys.stderr)
            return 1
        ended.cancel()
        return 0
