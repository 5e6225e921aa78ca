"""The embedded PostgreSQL: no committed data is lost, no process is left, no other one is hit."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from local.ports import free_port
from local.postgres.folder import FolderInUse, PostgresFailed
from local.postgres.server import EmbeddedPostgres, PortTaken
from tests.eventually import eventually
from tests.needs import needs

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


def servers_on(data: Path) -> list[int]:
    """The processes that live in the folder, as every process of PostgreSQL does."""
    found = []
    for link in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if link.readlink().is_relative_to(data):
                found.append(int(link.parent.name))
        except OSError:
            continue
    return found


@asynccontextmanager
async def command(*arguments: str) -> AsyncGenerator[tuple[asyncio.subprocess.Process, str]]:
    """`python -m local postgres` as a process of its own, and the address that it printed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "local", "postgres", *arguments),
        stdout=subprocess.PIPE,
    )
    assert process.stdout
    try:
        line = (await asyncio.wait_for(process.stdout.readline(), 30)).decode()
        match = re.fullmatch(r"PostgreSQL is ready: (\S+)\n", line)
        assert match, line
        yield process, match[1]
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def write_until_cut_off(url: str, acknowledged: list[int]) -> None:
    """Insert 1, 2, 3, … and note each number that was acknowledged, until the server goes away."""
    connection = await psycopg.AsyncConnection.connect(url, autocommit=True)
    await connection.execute("CREATE TABLE numbers (number bigint PRIMARY KEY)")
    with pytest.raises(psycopg.OperationalError):
        while True:
            number = len(acknowledged) + 1
            await connection.execute("INSERT INTO numbers VALUES (%s)", [number])
            acknowledged.append(number)
    await connection.close()


async def test_a_killed_parent_takes_the_server_along_and_no_acknowledged_row(
    tmp_path: Path,
) -> None:
    acknowledged: list[int] = []
    async with command("--data", str(tmp_path), "--port", "0") as (process, url):
        writer = asyncio.create_task(write_until_cut_off(url, acknowledged))
        await eventually(lambda: len(acknowledged) > 100)
        process.send_signal(signal.SIGKILL)
        await asyncio.wait_for(writer, 30)
        await eventually(lambda: not servers_on(tmp_path))
    async with EmbeddedPostgres(tmp_path) as server:
        connection = await psycopg.AsyncConnection.connect(server.url("roost"))
        rows = await (await connection.execute("SELECT number FROM numbers")).fetchall()
        await connection.close()
    assert {row[0] for row in rows} >= set(acknowledged)


@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGTERM])
async def test_the_command_stops_when_asked_and_leaves_no_process(
    tmp_path: Path, signal_: signal.Signals
) -> None:
    async with command("--data", str(tmp_path), "--port", "0") as (process, _):
        assert servers_on(tmp_path)
        process.send_signal(signal_)
        assert await asyncio.wait_for(process.wait(), 30) == 0
        assert not servers_on(tmp_path)


async def test_a_second_start_finds_the_same_cluster_and_password(tmp_path: Path) -> None:
    async with EmbeddedPostgres(tmp_path, durable=False) as first:
        await first.ensure_database("roost")
        await first.ensure_database("roost")
        password = first.folder.password
    async with EmbeddedPostgres(tmp_path, durable=False) as second:
        assert second.folder.password == password
        await (await psycopg.AsyncConnection.connect(second.url("roost"))).close()
    assert (tmp_path / "password").stat().st_mode & 0o777 == 0o600
    assert not servers_on(tmp_path)


async def test_a_stale_pid_file_ends_no_other_process(tmp_path: Path) -> None:
    async with EmbeddedPostgres(tmp_path, durable=False) as server:
        cluster = server.folder.cluster
    bystander = await asyncio.create_subprocess_exec("sleep", "60")
    try:
        (cluster / "postmaster.pid").write_text(f"{bystander.pid}\n{cluster}\n1\n5432\n\n\n")
        async with EmbeddedPostgres(tmp_path, durable=False) as server:
            await server.ensure_database("roost")
        assert bystander.returncode is None
    finally:
        bystander.kill()
        await bystander.wait()


async def test_a_folder_in_use_is_rejected_and_its_server_stays(tmp_path: Path) -> None:
    async with EmbeddedPostgres(tmp_path, durable=False) as server:
        with pytest.raises(FolderInUse, match="runs on"):
            await EmbeddedPostgres(tmp_path, durable=False, lock_seconds=0.2).__aenter__()
        await server.ensure_database("roost")


async def test_a_server_that_was_started_by_other_means_is_seen(tmp_path: Path) -> None:
    async with EmbeddedPostgres(tmp_path, durable=False) as server:
        # As if the lock file had been deleted while the server runs.
        (tmp_path / "lock").unlink()
        with pytest.raises(FolderInUse, match=f"pid {server.child.pid}"):
            await EmbeddedPostgres(tmp_path, durable=False).__aenter__()
        await server.ensure_database("roost")


async def test_a_taken_port_is_one_clear_error_and_leaves_nothing(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        with pytest.raises(PortTaken, match=f"^PostgreSQL: port {port} is taken$"):
            await EmbeddedPostgres(tmp_path, port, durable=False).__aenter__()
    assert not servers_on(tmp_path)


async def test_port_0_chooses_another_one_when_it_loses_the_race(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        taken = stranger.getsockname()[1]
        offers = iter([taken, free_port()])
        async with EmbeddedPostgres(
            tmp_path, durable=False, choose_port=lambda: next(offers)
        ) as server:
            assert server.port != taken
            await server.ensure_database("roost")


async def test_an_initdb_that_was_killed_half_way_is_begun_again(tmp_path: Path) -> None:
    unfinished = tmp_path / "postgres-18.unfinished"
    unfinished.mkdir()
    (unfinished / "PG_VERSION").write_text("18\n")
    async with EmbeddedPostgres(tmp_path, durable=False) as server:
        await server.ensure_database("roost")
    assert not unfinished.exists()


async def test_a_failure_quotes_the_output_of_the_program(tmp_path: Path) -> None:
    cluster = tmp_path / "postgres-18"
    cluster.mkdir()
    (tmp_path / "password").write_text("secret")
    with pytest.raises(PostgresFailed, match=r"^postgres ended with status 2: .* No such file"):
        await EmbeddedPostgres(tmp_path).__aenter__()


async def test_it_is_started_from_the_main_thread_only(tmp_path: Path) -> None:
    errors: list[BaseException] = []

    def start() -> None:
        try:
            asyncio.run(EmbeddedPostgres(tmp_path, durable=False).__aenter__())
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    await asyncio.to_thread(thread.join, 10)
    assert "main thread" in str(errors[0])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root needs a user namespace")
async def test_closed_user_namespaces_are_reported_with_a_way_out(tmp_path: Path) -> None:
    script = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    process = await asyncio.create_subprocess_exec(
        *(needs("unshare"), "--user", "--map-root-user", "sh", "-c", script, "-"),
        *(sys.executable, "-m", "local", "postgres", "--data", str(tmp_path), "--port", "0"),
        stderr=subprocess.PIPE,
    )
    _, stderr = await asyncio.wait_for(process.communicate(), 30)
    if process.returncode == 1:
        pytest.skip("user namespaces are closed here already")
    assert process.returncode == 2
    assert stderr.decode().startswith("PostgreSQL refuses to run as root, and user namespaces")
    assert stderr.count(b"\n") == 1
