"""The floor: a bare grpc.aio handler with one UPDATE … RETURNING through the same psycopg pool.

Same event loop, same row width, a reply of the same size; no parsing, no building, no decision.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING, Any
from uuid import UUID

import grpc.aio
import sqlalchemy as sa

from grpc_edge.options import SERVER_OPTIONS
from session_service.cli.serve import fast_loop
from session_service.storage.database import Database, compiled
from session_service.storage.session.reads import session_columns
from session_service.storage.tables import sessions

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

REPLY = b"x" * 600
STATEMENT = compiled(
    lambda: (
        sa.update(sessions)
        .where(sessions.c.session_id == sa.bindparam("id", type_=sessions.c.session_id.type))
        .values(last_active_time=sa.func.now(), start_count=sessions.c.start_count + 1)
        .returning(*session_columns())
    ),
    len,
)


def handler(database: Database) -> Callable[[bytes, object], Awaitable[bytes]]:
    """The one method."""

    async def update(request: bytes, context: object) -> bytes:
        await database.fetch_one(STATEMENT, {"id": UUID(bytes=request)})
        return REPLY

    return update


async def serve() -> None:
    """Serve on the address and database of the environment until killed."""
    async with Database(os.environ["ROOST_DATABASE_URL"]) as database:
        server = grpc.aio.server(options=SERVER_OPTIONS)
        # Any: raw bytes in and out, for which the stubs have no types.
        method: Any = grpc.unary_unary_rpc_method_handler(handler(database))
        generic = grpc.method_handlers_generic_handler("bench.Floor", {"Update": method})
        server.add_generic_rpc_handlers((generic,))
        server.add_insecure_port(os.environ["ROOST_SESSION_LISTEN"])
        await server.start()
        await server.wait_for_termination()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=fast_loop()) as runner:
        runner.run(serve())
    sys.exit(0)
