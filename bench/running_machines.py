"""Create many running machines with the rows of their sessions, without Fly's rate limits."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import httpx
import psycopg

from local.stack.programs import TOKEN
from session_service.domain import policy as policies

if TYPE_CHECKING:
    from collections.abc import Sequence

    from local.stack.stack import Stack

#: Creates in progress at once.
AT_ONCE = 16
SESSIONS = """
INSERT INTO sessions (session_id, tenant, project_id, user_id, slot, state, generation, epoch,
    spec, fingerprint, policy, verified_at, start_time, last_active_time, due_at, create_time,
    change_time)
SELECT lpad(to_hex(%(first)s + n), 32, '0')::uuid, 'default', 'project-' || mod(n, 10),
    'u' || (%(first)s + n), 'default', 'ACTIVE', 1, 3, '{"image": "roost/counter"}',
    md5('x') || md5('y'), %(policy)s::jsonb, now() + interval '1 day', now(), now(),
    now() + interval '1 day', now() - interval '1 hour', now() - interval '1 hour'
FROM generate_series(0, %(count)s - 1) AS n
"""
CONTAINERS = """
INSERT INTO containers (session_id, generation, name, app, container_id, state, region, start_time,
    create_time)
SELECT lpad(to_hex(%(first)s + n), 32, '0')::uuid, 1, 'roost-' || n, %(app)s, machine, 'STARTED',
    'iad', now(), now() - interval '1 hour'
FROM unnest(%(machines)s::text[]) WITH ORDINALITY AS m(machine, place), LATERAL
    (SELECT place - 1 AS n) AS at
"""


async def make_machines(stack: Stack, count: int) -> list[str]:
    """Create this many machines, wait until all are started, and return their ids."""
    room = asyncio.Semaphore(AT_ONCE)
    url = f"{stack.fly_url}/v1/apps/{stack.settings.app}/machines"
    headers = {"authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(trust_env=False, timeout=60, headers=headers) as http:

        async def make(number: int) -> str:
            body = {"name": f"bench-{number}", "config": {"image": "roost/counter"}}
            async with room:
                answer = await http.post(url, json=body)
                answer.raise_for_status()
                machine = str(answer.json()["id"])
                wait = await http.get(f"{url}/{machine}/wait?state=started&timeout=60")
                wait.raise_for_status()
            return machine

        return await asyncio.gather(*(make(number) for number in range(count)))


async def seed(url: str, app: str, first: int, machines: Sequence[str]) -> None:
    """An ACTIVE session for each machine, numbered from `first`, active now and not due for a day.

    They count as verified for a day, so that a start does not ask the provider.
    """
    policy = policies.dump(policies.DEFAULT)
    params = {"first": first, "count": len(machines), "policy": policy}
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute(SESSIONS, params)
        await connection.execute(
            CONTAINERS, {"first": first, "app": app, "machines": list(machines)}
        )
        await connection.execute("VACUUM ANALYZE sessions, containers")
