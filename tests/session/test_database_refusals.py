"""A database that says no: the reason at once, or in the log of a replica that waits for it."""

from __future__ import annotations

import asyncio
import logging
import re
import signal
from collections import Counter
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from grpc_health.v1 import health_pb2
from psycopg import sql

from container_service.main import serve as serve_containers
from local.ports import free_port
from session_service.cli.command import Sparse
from session_service.server import replica
from session_service.server.replica import prepare
from session_service.storage.migrate import upgrade
from session_service.storage.refusals import DatabaseRefused, ReadOnlyDatabase
from session_service.storage.revision import SchemaMismatch
from tests.container.harness import config_for
from tests.eventually import eventually
from tests.session.harness import session_config
from tests.session.test_process import health, running

if TYPE_CHECKING:
    from collections.abc import Iterator

    import grpc.aio

    from local.fly.emulator import Emulator
    from tests.database import Databases

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def changed(url: str, *, user: str | None = None, password: str = "", name: str = "") -> str:
    """The address with another user, password or database name."""
    parts = urlsplit(url)
    who = f"{user or parts.username}:{password or parts.password}"
    netloc = f"{who}@{parts.hostname}:{parts.port}"
    return urlunsplit(parts._replace(netloc=netloc, path=f"/{name}" if name else parts.path))


async def refused(url: str, *, migrate: bool) -> str:
    """The refusal of a replica that starts with the address; it comes without a wait."""
    config = session_config(url, "127.0.0.1:1", "http://127.0.0.1:1/", migrate=migrate)
    began = monotonic()
    with pytest.raises(DatabaseRefused) as raised:
        await prepare(config)
    assert monotonic() - began < replica.DATABASE_PATIENCE / 2, "it waited"
    return str(raised.value)


@pytest.mark.parametrize("migrate", [True, False])
async def test_a_wrong_password_user_or_database_ends_the_start(
    database_url: str, migrate: bool
) -> None:
    """With the server's words, in one line, without the password."""
    for url, words in {
        changed(database_url, password="swordfish"): "password authentication failed",
        changed(database_url, user="nobody"): "password authentication failed",
        changed(
            database_url, name="no_such_database"
        ): 'database "no_such_database" does not exist',
    }.items():
        message = await refused(url, migrate=migrate)
        assert words in message
        assert "\n" not in message
        assert "swordfish" not in message


async def test_a_start_says_why_it_waits(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Once at first, and then rarely, for a server that is not there."""
    config = session_config(
        changed(database_url).replace(str(urlsplit(database_url).port), str(free_port())),
        "127.0.0.1:1",
        "http://127.0.0.1:1/",
    )
    with caplog.at_level(logging.WARNING):
        starting = asyncio.ensure_future(prepare(config))
        assert await eventually(lambda: "waiting for the database" in caplog.text, timeout=30)
        # Some more tries, each half a second after the one before.
        done, _ = await asyncio.wait({starting}, timeout=1.5)
    assert not done
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    waits = [record.getMessage() for record in caplog.records if "waiting" in record.getMessage()]
    assert waits == ["waiting for the database: it does not answer"]


def test_repeated_lines_of_a_loop_are_written_rarely() -> None:
    """The same message with other values is the same, and that of another loop is another."""
    sparse = Sparse()
    records = [
        logging.makeLogRecord({"msg": "a round failed: %s", "args": (number,), "action": action})
        for number in range(3)
        for action in ("retention", "reconcile")
    ]
    assert [sparse.filter(record) for record in records] == [True, True, *[False] * 4]
    whole = Sparse(values=True)
    records = [logging.makeLogRecord({"msg": "waits: %s", "args": (why,)}) for why in "abab"]
    assert [whole.filter(record) for record in records] == [True, True, False, False]


async def test_a_service_whose_database_refuses_it_says_so_rarely(
    database_url: str, emulator: Emulator
) -> None:
    """Each of its parts says it once, and again after 30 s; nothing has a traceback."""
    name = sql.Identifier(urlsplit(database_url).path[1:])
    allow = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
    server = changed(database_url, name="postgres")
    async with (
        serve_containers(config_for(emulator)) as containers,
        running(database_url, containers.target) as (process, channel),
    ):
        assert process.stderr is not None
        assert await eventually(lambda: _status(channel, SERVING), timeout=60)
        with psycopg.connect(server, autocommit=True) as admin:
            began = monotonic()
            admin.execute(allow.format(name, sql.Literal(False)))
            admin.execute(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = %s",
                [urlsplit(database_url).path[1:]],
            )
            assert await eventually(lambda: _status(channel, NOT_SERVING), timeout=60)
            admin.execute(allow.format(name, sql.Literal(True)))
        assert await eventually(lambda: _status(channel, SERVING), timeout=60)
        times = 1 + (monotonic() - began) // Sparse.EVERY
        process.send_signal(signal.SIGTERM)
        _, err = await process.communicate()
    lines = err.decode().splitlines()
    assert any("not currently accepting connections" in line for line in lines)
    assert any("action=listen" in line for line in lines)
    # The pool's lines have the time and the address of each try, and the loops' how often.
    kinds = Counter(
        re.sub(r"\d+", "", re.sub(r"error connecting.*", "error connecting", line))
        for line in lines
        if "WARNING" in line or "ERROR" in line
    )
    assert max(kinds.values()) <= times, err.decode()
    assert "Traceback" not in err.decode()


async def _status(channel: grpc.aio.Channel, status: int) -> bool:
    return await health(channel) == status


@contextmanager
def new_database(databases: Databases) -> Iterator[str]:
    """An empty database."""
    url = databases.create()
    try:
        yield url
    finally:
        databases.drop(url)


async def test_a_standby_is_named_and_waited_for(
    databases: Databases, caplog: pytest.LogCaptureFixture
) -> None:
    """A read-only database answers as a standby does. When it takes writes, the start goes on."""
    with new_database(databases) as url:
        name = sql.Identifier(urlsplit(url).path.removeprefix("/"))
        setting = sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = {}")
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(setting.format(name, sql.Literal("on")))
        with pytest.raises(ReadOnlyDatabase, match="standby"):
            await asyncio.to_thread(upgrade, url)
        config = session_config(url, "127.0.0.1:1", "http://127.0.0.1:1/", migrate=True)
        with caplog.at_level(logging.WARNING):
            starting = asyncio.ensure_future(prepare(config))
            assert await eventually(lambda: "standby" in caplog.text, timeout=30)
        assert not starting.done()
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("SET default_transaction_read_only = off")
            connection.execute(setting.format(name, sql.Literal("off")))
        async with asyncio.timeout(45):
            await starting


async def test_a_user_who_may_not_create_is_told_what_to_grant(databases: Databases) -> None:
    """One line with the grant, instead of Alembic's traceback."""
    with new_database(databases) as url:
        user = f"u{urlsplit(url).path[-12:].replace('_', '')}"
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(
                sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'swordfish'").format(sql.Identifier(user))
            )
        try:
            with pytest.raises(SchemaMismatch) as raised:
                await asyncio.to_thread(upgrade, changed(url, user=user, password="swordfish"))
            message = str(raised.value)
            assert f'GRANT USAGE, CREATE ON SCHEMA public TO "{user}"' in message
            assert "\n" not in message
            assert "swordfish" not in message
        finally:
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(user)))
