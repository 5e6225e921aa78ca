"""The baselines of AppendTurn, served by bare grpc.aio handlers over the same pool.

floor: one UPDATE … RETURNING of a row as wide as a session's. reference: the design that this
service replaces, one jsonb array to which each append adds, so that all of it is written again.
memory: a call that touches only memory.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from typing import TYPE_CHECKING, Any

import grpc.aio

from grpc_edge.options import SERVER_OPTIONS
from session_service.cli.serve import fast_loop
from session_service.storage.database import Database, Statement

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

SERVICE = "bench.Agents"
TABLES = """
CREATE TABLE bench_floor (LIKE llm_sessions INCLUDING DEFAULTS) WITH (fillfactor = 70);
ALTER TABLE bench_floor ADD PRIMARY KEY (tenant, session_id);
CREATE TABLE bench_reference (session_id text PRIMARY KEY, agent_role text NOT NULL,
    startup_context text, conversation_history jsonb NOT NULL DEFAULT '[]',
    turn_count int NOT NULL DEFAULT 0, total_tokens int NOT NULL DEFAULT 0,
    last_query_at timestamptz NOT NULL DEFAULT now());
"""
FLOOR = Statement(
    "UPDATE bench_floor SET turn_count = turn_count + 1, last_query_at = clock_timestamp()"
    " WHERE tenant = 'default' AND session_id = %(id)s RETURNING *",
    {},
    len,
)
REFERENCE = Statement(
    "UPDATE bench_reference SET conversation_history = conversation_history ||"
    " jsonb_build_object('role', 'user', 'content', %(content)s::text, 'tokens', 250),"
    " turn_count = turn_count + 1, total_tokens = total_tokens + 250, last_query_at = now()"
    " WHERE session_id = %(id)s RETURNING turn_count, total_tokens",
    {},
    len,
)
REPLY = b"x" * 200
_DRAW = random.Random(3)
#: 1 kB of text that does not compress to almost nothing, as a repeated word would.
CONTENT = " ".join("".join(_DRAW.choices("etaoinshrdlu", k=6)) for _ in range(147))[:1024]


def handlers(database: Database) -> dict[str, Callable[[bytes, object], Awaitable[bytes]]]:
    """The methods; a request is the session's id."""
    kept: dict[bytes, int] = {}

    async def floor(request: bytes, context: object) -> bytes:
        await database.fetch_one(FLOOR, {"id": request[:64].decode().strip()})
        return REPLY

    async def reference(request: bytes, context: object) -> bytes:
        params = {"id": request[:64].decode().strip(), "content": CONTENT}
        await database.fetch_one(REFERENCE, params)
        return REPLY

    async def memory(request: bytes, context: object) -> bytes:
        kept[request[:64]] = kept.get(request[:64], 0) + 1
        return REPLY

    return {"Floor": floor, "Reference": reference, "Memory": memory}


async def serve() -> None:
    """Serve on the address and database of the environment until killed."""
    async with Database(os.environ["ROOST_DATABASE_URL"]) as database:
        server = grpc.aio.server(options=SERVER_OPTIONS)
        # Any: raw bytes in and out, for which the stubs have no types.
        methods: dict[str, Any] = {
            name: grpc.unary_unary_rpc_method_handler(behavior)
            for name, behavior in handlers(database).items()
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
        server.add_insecure_port(os.environ["ROOST_SESSION_LISTEN"])
        await server.start()
        await server.wait_for_termination()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=fast_loop()) as runner:
        runner.run(serve())
    sys.exit(0)
