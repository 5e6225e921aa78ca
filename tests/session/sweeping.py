"""Helpers for tests of losses and leaks: single passes, orphans, and snapshots of all rows."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from tests.container.harness import APP, TOKEN
from tests.session.harness import IMAGE, Replica, World

if TYPE_CHECKING:
    from collections.abc import Mapping

    from local.fly.emulator import Emulator
    from roost.session.v1 import session_pb2
    from session_service.reconcile.inventory import InventoryCounts
    from session_service.reconcile.orphans import Orphan

#: An orphan of any age is destroyed in its second pass. Any: settings of every type.
QUICK: dict[str, Any] = {"sweep_min_age": timedelta(0), "sweep_passes": 2}


async def sql(replica: Replica, statement: str, *values: object) -> list[tuple[Any, ...]]:
    """The rows of a statement in the replica's database. Any: columns of every type."""
    async with replica.running.database.connection() as connection:
        cursor = await connection.execute(statement.encode(), values)
        return await cursor.fetchall() if cursor.description is not None else []


async def an_hour_passes(roost: World) -> None:
    """Date every change back by an hour, so that a listing can be newer than it."""
    hour = "- interval '1 hour'"
    for table, columns in {
        "sessions": ("change_time", "create_time"),
        "containers": ("create_time", "destroy_time"),
    }.items():
        moved = ", ".join(f"{column} = {column} {hour}" for column in columns)
        await sql(roost.one, f"UPDATE {table} SET {moved}")


async def act(roost: World, at: int = 0) -> InventoryCounts:
    """One inventory pass that may destroy, an hour after the last change."""
    await an_hour_passes(roost)
    return await roost.replicas[at].running.background.inventory_pass.act(APP)


async def report(roost: World) -> InventoryCounts:
    """One inventory pass that changes nothing."""
    return await roost.one.running.background.inventory_pass.report(APP)


async def every_pass(roost: World) -> None:
    """A due pass, an inventory pass and a discard pass of each replica."""
    for number, replica in enumerate(roost.replicas):
        await replica.running.background.due_pass.settle()
        await act(roost, number)
        await replica.running.background.discarder.shot()


async def installation_id(roost: World) -> str:
    """The installation's id, as in the labels of machines."""
    ((found,),) = await sql(roost.one, "SELECT installation_id FROM installation")
    return str(found)


async def stray(roost: World, *, truth: Emulator | None = None, **labels: str) -> str:
    """Create a machine without a session directly at the provider; return its id.

    It carries the labels of this installation and of an invented session. `labels` replaces some of
    them; "" leaves a label out.
    """
    carried = {
        "roost_installation": await installation_id(roost),
        "roost_session": str(uuid4()),
        "roost_generation": "1",
        **labels,
    }
    metadata = {name: value for name, value in carried.items() if value}
    body = {"name": f"stray-{uuid4().hex[:8]}", "config": {"image": IMAGE, "metadata": metadata}}
    made = await fly(roost, "POST", "", body, truth=truth)
    await fly(roost, "GET", f"/{made['id']}/wait?state=started&timeout=30", truth=truth)
    return str(made["id"])


# Any: Fly's JSON.
async def fly(
    roost: World, method: str, path: str, body: object = None, *, truth: Emulator | None = None
) -> Any:
    """Call the provider directly; `truth` is the emulator itself if `roost.emulator` is a proxy."""
    url = f"{(truth or roost.emulator).api_url}/v1/apps/{APP}/machines{path}"
    answer = await roost.http.request(
        method, url, json=body, headers={"authorization": f"Bearer {TOKEN}"}
    )
    answer.raise_for_status()
    return answer.json()


async def machines(roost: World, *, truth: Emulator | None = None) -> dict[str, str]:
    """The provider's machines and their states."""
    listed = await fly(roost, "GET", "", truth=truth)
    return {made["id"]: made["state"] for made in listed if made["state"] != "destroyed"}


def by_id(swept: InventoryCounts) -> Mapping[str, Orphan]:
    """The orphans of a pass by the id of their machine."""
    return {orphan.container_id: orphan for orphan in swept.orphans}


async def everything(roost: World) -> dict[str, list[str]]:
    """Every row of every table, as text."""
    tables = await sql(
        roost.one, "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'"
        " AND table_type = 'BASE TABLE'"
    )  # fmt: skip
    found = {}
    for (table,) in tables:
        rows = await sql(roost.one, f'SELECT to_jsonb(t)::text FROM "{table}" t')
        found[table] = sorted(json.dumps(row[0]) for row in rows)
    return found


async def events(roost: World, session: session_pb2.Session) -> list[str]:
    """The types of the session's events, oldest first."""
    rows = await sql(
        roost.one,
        "SELECT type FROM session_events WHERE session_id = %s ORDER BY sequence",
        session.session_id,
    )
    return [row[0] for row in rows]
