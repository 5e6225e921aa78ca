"""Background passes with much to do: rows a second, and the CPU of each row.

The trim of set-aside branches, the deletion of forgotten sessions, and an export of agent sessions:
each with a durable PostgreSQL on this machine. `busy` is the time in which the pass and PostgreSQL
would have worked on an idle core each, of which the longer one limits the rate: on a machine that
does other things too, the rate of the clock says little.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import grpc
import psutil
import psycopg

from bench.agents import serving
from bench.cpu import cpu, cpu_of_server, grown
from bench.starts import in_force
from local.postgres.server import EmbeddedPostgres
from roost.agent.v1 import agent_session_service_pb2
from session_service.domain.next_action import Timings
from session_service.reconcile.forgetting import Forgetting
from session_service.storage.agent import expiry
from session_service.storage.database import Database
from session_service.storage.migrate import upgrade

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

DATA = Path(".roost/bench-passes")
COUNT = int(os.environ.get("ROOST_BENCH_ROWS", "20000"))
#: What each pass is to reach on an idle core, in rows a second.
TARGET = 10_000
#: Turns of a branch that was set aside, and of a session that is exported.
TURNS = 2
SEED_TURNS = """
INSERT INTO llm_turns (branch_id, turn_number, tokens, estimated_tokens, size_bytes, tokens_after,
    estimated_after, bytes_after, create_time, request_id, request_hash, tenant, roles, contents,
    token_counts)
SELECT branch_id, t, 250, 0, 200, t * 250, 0, t * 200, now(), gen_random_uuid(),
    decode(repeat('00', 32), 'hex'), 'default', '{user}',
    ARRAY['the owls of branch ' || branch_id || ' roosted in the barn, turn ' || t], '{250}'
FROM llm_branches, generate_series(1, %(turns)s) AS t
"""
SEED_SEARCH = """
INSERT INTO llm_search (branch_id, turn_number, message_index, turn_id, create_time, tenant, role,
    document, agent_role)
SELECT branch_id, turn_number, 0, turn_id, create_time, tenant, 'user',
    to_tsvector('english', contents[1]), '' FROM llm_turns
"""
#: Branches that no session has any more.
SEED_TRIM = (
    "INSERT INTO llm_branches (tenant) SELECT 'default' FROM generate_series(1, %(count)s)",
    SEED_TURNS,
    SEED_SEARCH,
)
SEED_EXPORT = (
    """
    WITH branch AS (
        INSERT INTO llm_branches (tenant, session_id)
        SELECT 'default', 's' || n FROM generate_series(1, %(count)s / 2) AS n
        RETURNING branch_id, session_id
    )
    INSERT INTO llm_sessions (tenant, session_id, agent_role, startup_context, state, labels,
        head_branch, turn_count, total_tokens, total_bytes, due_at)
    SELECT 'default', session_id, 'ceo', 'You are the CEO.', 'ACTIVE', '{}', branch_id, %(turns)s,
        %(turns)s * 250, %(turns)s * 200, now() + interval '1 day' FROM branch
    """,
    SEED_TURNS,
)
#: Sessions that ended long ago, with two containers and two events each.
SEED_FORGET = (
    """
    INSERT INTO sessions (session_id, tenant, project_id, user_id, slot, state, generation, epoch,
        spec, fingerprint, policy, start_time, end_time, purge_time, end_reason, change_time,
        due_at)
    SELECT gen_random_uuid(), 'default', 'project-' || mod(n, 100), 'u' || n, 'default', 'ENDED', 2,
        3, '{"image": "roost/counter"}', md5('x') || md5('y'), %(policy)s::jsonb,
        now() - interval '90 days', now() - interval '80 days', now() - interval '79 days',
        'EXPIRED', now() - interval '79 days', now() - interval '1 day'
    FROM generate_series(1, %(count)s) AS n
    """,
    """
    INSERT INTO containers (session_id, generation, name, app, container_id, state, destroy_time)
    SELECT session_id, g, 'roost-' || session_id || '-' || g, 'roost-local',
        substr(md5(session_id::text || g), 1, 14), 'DESTROYED', now() - interval '79 days'
    FROM sessions, generate_series(1, 2) AS g
    """,
    """
    INSERT INTO session_events (session_id, sequence, type, state, generation)
    SELECT session_id, e, 'ENDED', 'ENDED', 2 FROM sessions, generate_series(1, 2) AS e
    """,
)


async def run() -> None:
    """Measure and print."""
    shutil.rmtree(DATA, ignore_errors=True)
    async with EmbeddedPostgres(DATA, 0) as server:
        postmaster = psutil.Process(server.child.pid)
        print(f"passes over {COUNT} rows; target {TARGET} a second")
        for name, seed, measure in (
            ("trim", SEED_TRIM, _trim),
            ("forget", SEED_FORGET, _forget),
            ("export", SEED_EXPORT, _export),
        ):
            await server.ensure_database(name)
            url = server.url(name)
            await asyncio.to_thread(upgrade, url)
            await _fill(url, seed)
            await measure(url, postmaster)


async def _fill(url: str, statements: tuple[str, ...]) -> None:
    params = {"count": COUNT, "turns": TURNS, "policy": in_force(url)}
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        for statement in statements:
            await connection.execute(statement.encode(), params)
        await connection.execute("VACUUM ANALYZE")
        await connection.execute("CHECKPOINT")


async def _trim(url: str, postmaster: psutil.Process) -> None:
    async with Database(url, max_size=2) as database:

        async def trim() -> int:
            turns = await expiry.delete_unreachable_turns(database)
            assert turns == COUNT * TURNS
            return COUNT

        await _measured("branches trimmed", trim, psutil.Process(), postmaster)


async def _forget(url: str, postmaster: psutil.Process) -> None:
    async with Database(url, max_size=2) as database:

        async def forget() -> int:
            work = Forgetting(database, Timings())
            while await work.batch():
                pass
            assert work.forgotten == COUNT
            return work.forgotten

        await _measured("sessions forgotten", forget, psutil.Process(), postmaster)


async def _export(url: str, postmaster: psutil.Process) -> None:
    async with (
        serving("session_service", url) as (process, target),
        grpc.aio.insecure_channel(target) as channel,
    ):
        # Raw bytes: nothing is parsed.
        call: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(
            "/roost.agent.v1.AgentSessionService/ExportAgentSessions"
        )
        await channel.channel_ready()

        async def export(ids: tuple[str, ...] = ()) -> int:
            request = agent_session_service_pb2.ExportAgentSessionsRequest(session_ids=ids)
            return len([None async for _ in call(request.SerializeToString())])

        assert await export(("s1",)) == 1 + TURNS
        await _measured("records exported", export, process, postmaster)


async def _measured(
    name: str,
    work: Callable[[], Awaitable[int]],
    process: psutil.Process,
    postmaster: psutil.Process,
) -> None:
    began, mine, before = perf_counter(), cpu(process), cpu_of_server(postmaster)
    count = await work()
    seconds = perf_counter() - began
    mine, server = cpu(process) - mine, grown(before, cpu_of_server(postmaster))
    load = os.getloadavg()[0]
    print(
        f"  {count} {name}: {count / seconds:.0f} a second at load {load:.1f}; CPU of one "
        f"{mine / count * 1e6:.0f} us, {server / count * 1e6:.0f} us in PostgreSQL: "
        f"{count / max(mine, server):.0f} a second with an idle core each, "
        f"{count / (mine + server):.0f} with one"
    )
