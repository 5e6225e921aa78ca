"""A real PgBouncer before a test's database."""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import psycopg

from local.ports import free_port
from local.processes.child import Child
from tests.eventually import eventually
from tests.needs import needs

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

SETTINGS = """
[databases]
* = host={host} port={port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {own}
unix_socket_dir =
auth_type = trust
auth_file = {users}
pool_mode = {mode}
default_pool_size = {size}
query_wait_timeout = 30
"""


@asynccontextmanager
async def pgbouncer(url: str, mode: str, size: int = 20) -> AsyncGenerator[str]:
    """The database's address through a PgBouncer that pools sessions, transactions or statements,
    with `size` server connections; 20 is its default. Skips the test if there is no PgBouncer here.
    """
    program = needs("pgbouncer")
    parts = urlsplit(url)
    own = free_port()
    through = parts._replace(netloc=f"{parts.username}@127.0.0.1:{own}").geturl()
    with tempfile.TemporaryDirectory(prefix="roost-pgbouncer-") as folder:
        users, settings = Path(folder, "users"), Path(folder, "pgbouncer.ini")
        texts = {users: f'"{parts.username}" "{parts.password}"\n'}
        texts[settings] = SETTINGS.format(
            host=parts.hostname, port=parts.port, own=own, users=users, mode=mode, size=size
        )
        for file, text in texts.items():
            await asyncio.to_thread(file.write_text, text)
        # It refuses to run as root, as PostgreSQL does.
        child = Child(
            "pgbouncer", [program, str(settings)], log=Path(folder, "log"), drop_root=True
        )
        try:
            ready = await eventually(lambda: _answers(through, child), timeout=30)
            assert ready, await child.output()
            yield through
        finally:
            await child.stop()


async def _answers(url: str, child: Child) -> bool:
    assert child.status is None, await child.output()
    try:
        connection = await psycopg.AsyncConnection.connect(url, connect_timeout=5)
    except psycopg.OperationalError:
        return False
    await connection.close()
    return True
