"""Helpers of the import tests: an older platform's table and machines, and the command."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from tests.container.harness import APP, TOKEN
from tests.service_processes import fork
from tests.session.harness import IMAGE, LAG_WINDOW

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.session.harness import World

TABLE = """
CREATE TABLE IF NOT EXISTS preview_sessions (
    id serial PRIMARY KEY, project_id text, user_id text, status text, container_url text,
    machine_id text, created_at timestamptz, updated_at timestamp, last_active_at timestamptz
)
"""


@dataclass(frozen=True)
class Outcome:
    """The result of the command."""

    status: int | None
    out: str
    err: str

    @property
    def report(self) -> dict[str, Any]:
        """The report of `--report json`. Any: JSON."""
        found: dict[str, Any] = json.loads(self.out)
        return found

    @property
    def results(self) -> dict[str, int]:
        """The number of rows by result, without zeros."""
        return {word: count for word, count in self.report["results"].items() if count}

    @property
    def reasons(self) -> dict[str, str]:
        """The reason of each skipped row, by its id."""
        return {row["row"]: row["reason"] for row in self.report["rows"] if row["reason"]}


@dataclass(frozen=True)
class Row:
    """A row of the older table."""

    status: str = "active"
    machine: str | None = None
    url: str | None = None
    project: str | None = "nest"
    user: str | None = "wren"
    active: str | None = "2026-01-02 03:04:05+00"


async def fill(url: str, rows: Sequence[Row]) -> None:
    """Create the older table and insert rows; their ids count from 1."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute(TABLE)
        for row in rows:
            await connection.execute(
                "INSERT INTO preview_sessions (project_id, user_id, status, container_url,"
                " machine_id, created_at, updated_at, last_active_at)"
                " VALUES (%s, %s, %s, %s, %s, '2026-01-01Z', '2026-01-02', %s)",
                [row.project, row.user, row.status, row.url, row.machine, row.active],
            )


async def adopt(
    database_url: str, *options: str, target: str = "127.0.0.1:9", data: str = ""
) -> Outcome:
    """Run the command. Without a target its container_service does not answer."""
    process = await fork(
        "session_service",
        *("import-preview-sessions", *options),
        environment=environment(database_url, target),
        data=data.encode(),
    )
    out, err = await asyncio.wait_for(process.communicate(), 50)
    return Outcome(process.returncode, out.decode(), err.decode())


def environment(database_url: str, target: str) -> dict[str, str]:
    """The command's environment."""
    return {
        "PATH": os.environ["PATH"],
        "ROOST_DATABASE_URL": database_url,
        "ROOST_CONTAINER_TARGET": target,
        "ROOST_FLY_APP": APP,
        "ROOST_DEFAULT_IMAGE": IMAGE,
        "ROOST_LAG_WINDOW": str(LAG_WINDOW.total_seconds()),
    }


async def contents(url: str) -> dict[str, str]:
    """A hash of every row of every table of the database, by table."""
    query = (
        "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace"
        " WHERE relkind = 'r' AND n.nspname NOT IN ('pg_catalog', 'information_schema')"
    )
    found: dict[str, str] = {}
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        for schema, table in await (await connection.execute(query)).fetchall():
            name = sql.Identifier(schema, table)
            select = sql.SQL("SELECT t::text FROM {} t ORDER BY 1").format(name)
            rows = await (await connection.execute(select)).fetchall()
            found[f"{schema}.{table}"] = hashlib.sha256(repr(rows).encode()).hexdigest()
    return found


async def rows_of(url: str, query: str) -> list[tuple[Any, ...]]:
    """The rows of a query; empty for other statements. Any: columns of every type."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        cursor = await connection.execute(query.encode())
        return await cursor.fetchall() if cursor.description else []


async def machine(roost: World, **config: Any) -> str:
    """Create a running counter without labels, past Roost; return its id. Any: JSON."""
    port = {"port": 80, "handlers": ["http"]}
    service = {"protocol": "tcp", "internal_port": 8080, "ports": [port], "autostart": True}
    made = await fly(
        roost, "POST", "", {"config": {"image": IMAGE, "services": [service], **config}}
    )
    await fly(roost, "GET", f"/{made['id']}/wait?state=started&timeout=10")
    return str(made["id"])


async def fly(roost: World, method: str, path: str, body: object = None) -> dict[str, Any]:
    """One call to the Machines API, as the older platform made it. Any: JSON."""
    answer = await roost.http.request(
        method,
        f"{roost.emulator.api_url}/v1/apps/{APP}/machines{path}",
        json=body,
        headers={"authorization": f"Bearer {TOKEN}"},
    )
    answer.raise_for_status()
    found: dict[str, Any] = answer.json() if answer.content else {}
    return found
