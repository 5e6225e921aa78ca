"""Addresses of PostgreSQL: what libpq takes, with one or several hosts, and what refusals say."""

from __future__ import annotations

import asyncio
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from local.ports import free_port
from local.stack.up import without_password
from session_service.config import Config, ConfigError
from session_service.storage import installation, refusals
from session_service.storage.database import Database, network
from session_service.storage.listening import listening
from session_service.storage.migrate import upgrade
from session_service.storage.revision import read
from tests.session.clusters import both
from tests.session.database_faults import rows
from tests.session.test_process import launch, outcome

if TYPE_CHECKING:
    from collections.abc import Iterator

VARIABLES = ("ROOST_DATABASE_URL", "ROOST_DATABASE_DIRECT_URL")


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://roost:secret@db/roost",
        "postgres://db",
        "postgresql://roost:secret@one:5432,two:5433/roost?target_session_attrs=read-write",
        "postgresql://roost@one,two/roost?connect_timeout=2&load_balance_hosts=random",
        "postgresql://roost@[::1]:5432/roost?sslmode=require",
        "postgresql:///roost?host=/var/run/postgresql",
        "postgresql://roost@%2Fvar%2Frun%2Fpostgresql/roost",
        "host=one,two port=5432,5433 dbname=roost user=roost password='a b'",
        "host=one,two port=5432 dbname=roost",
        "service=roost",
    ],
)
def test_what_libpq_takes_is_taken(address: str) -> None:
    environment = dict.fromkeys(VARIABLES, address)
    config = Config.from_env(environment)
    assert (config.database_url, config.database_direct_url) == (address, address)
    assert "secret" not in repr(config)


@pytest.mark.parametrize(
    "address",
    [
        "mysql://roost:secret@db/roost",
        "postgresql+psycopg://roost:secret@db/roost",
        "postgresql://roost:secret@db:port/roost",
        "postgresql://roost:secret@db:0/roost",
        "postgresql://roost:secret@db:65536/roost",
        "postgresql://roost:secret@db/roost?sslmod=require",
        "host=one,two,three port=1,2 password=secret",
        "db:5432",
        "roost",
    ],
)
def test_what_libpq_does_not_take_is_refused(address: str) -> None:
    """In one line that shows no password."""
    for name in VARIABLES:
        environment = {"ROOST_DATABASE_URL": "postgresql://db", name: address}
        with pytest.raises(ConfigError, match=f"^{name}: its value is not") as raised:
            Config.from_env(environment)
        assert "secret" not in str(raised.value)
        assert "\n" not in str(raised.value)


def test_of_several_hosts_the_primary_is_meant() -> None:
    """Unless the address says otherwise; and each host has a limit of its own."""
    several = network("postgresql://one,two/roost")
    assert several["target_session_attrs"] == "read-write"
    assert several["connect_timeout"] == 3
    assert "target_session_attrs" not in network("postgresql://one,two/?target_session_attrs=any")
    assert "target_session_attrs" not in network("postgresql://one/roost")
    assert "connect_timeout" not in network("host=one connect_timeout=9")


def test_the_local_stack_hides_the_password_in_each_form() -> None:
    for address in (
        "postgresql://roost:secret@one:1,two:2/roost?sslmode=require",
        "postgresql://one/roost?user=roost&password=secret",
        "host=one user=roost password='sec ret' dbname=roost",
    ):
        shown = without_password(address)
        assert "sec" not in shown
        assert "one" in shown
    assert without_password("postgresql://roost@one/roost").startswith("postgresql://roost@one")


@contextmanager
def silent() -> Iterator[int]:
    """A port that takes connections and answers nothing, as if packets vanished."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


async def test_a_host_that_vanished_is_passed_by(empty_database_url: str) -> None:
    """For migrations, for calls and for listeners; and so is one that refuses connections."""
    with silent() as port:
        parts = urlsplit(empty_database_url)
        for gone in (port, free_port()):
            lost = parts._replace(netloc=f"{parts.username}:x@127.0.0.1:{gone}").geturl()
            url = both(lost, empty_database_url, connect_timeout="2")
            url = url.replace(":x@", f":{parts.password}@")
            await asyncio.to_thread(upgrade, url)
            # Each of them waits 2 s for the host that is silent.
            await asyncio.gather(asyncio.to_thread(read, url), called(url), heard(url))


async def called(url: str) -> None:
    async with Database(url, timeout=20.0) as database:
        assert (await installation.read(database)).original


async def heard(url: str) -> None:
    async with listening(url, "birds") as payloads:
        await rows(url, "SELECT pg_notify('birds', 'wren')")
        assert await anext(payloads) == "wren"


def failure(url: str) -> psycopg.OperationalError:
    with pytest.raises(psycopg.OperationalError) as raised:
        psycopg.connect(url, **network(url))
    return raised.value


def test_a_refusal_by_one_host_is_no_final_one(database_url: str) -> None:
    """The other may be the one that is meant; each is named with what it said."""
    port, gone = urlsplit(database_url).port, free_port()
    given = conninfo_to_dict(database_url)
    lost = database_url.replace(f":{port}/", f":{gone}/")
    wrong = both(database_url, lost).replace(str(given["password"]), "swordfish")
    error = failure(wrong)
    said = refusals.said(error) or ""
    assert f"127.0.0.1:{port}: password authentication failed for user" in said
    assert f"127.0.0.1:{gone}: it does not answer" in said
    assert "swordfish" not in said
    assert not refusals.is_final(error)
    both_refuse = failure(both(database_url, database_url).replace(str(given["password"]), "x"))
    assert refusals.is_final(both_refuse)
    assert refusals.said(failure(lost)) is None
    other_kind = failure(both(database_url, database_url, target_session_attrs="standby"))
    assert "it is no standby" in (refusals.said(other_kind) or "")


async def test_a_command_says_what_each_host_said(database_url: str) -> None:
    """In one line."""
    missing = urlsplit(database_url)._replace(path="/missing").geturl()
    for arguments, status in ((("tier", "get", "default"), 2), (("migrate",), 1)):
        process = await launch(*arguments, ROOST_DATABASE_URL=both(missing, missing))
        answer = await outcome(process)
        assert answer[0] == status
        assert answer[2].count("\n") == 1, answer[2]
        assert answer[2].count('database "missing" does not exist') == 1
