"""The counter app, as the process that a machine runs."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from local.fly.ports import free_port


@contextlib.asynccontextmanager
async def counter(cwd: Path, **env: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A running counter and its URL."""
    port = str(free_port())
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "local.counter"),
        cwd=cwd,
        env={"PATH": os.environ["PATH"], "PORT": port, **env},
    )
    try:
        await accepting(int(port))
        yield process, f"http://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def accepting(port: int) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
            continue
        writer.close()
        await writer.wait_closed()
        return


async def texts(url: str, *paths: str) -> list[str]:
    async with httpx.AsyncClient(base_url=url, trust_env=False, verify=False) as http:
        return [(await http.get(path)).text for path in paths]


async def test_it_counts_clicks(tmp_path: Path) -> None:
    async with counter(tmp_path) as (_, url):
        assert await texts(url, "/", "/click", "/click", "/", "/click?a=b") == [
            "0",
            "1",
            "2",
            "2",
            "3",
        ]
        async with httpx.AsyncClient(base_url=url, trust_env=False, verify=False) as http:
            assert (await http.post("/click", content=b"x" * 1000)).text == "4"
            assert (await http.get("/none")).status_code == 404
            assert (await http.get("/")).headers["content-type"].startswith("text/plain")


async def test_clicks_at_once_are_all_counted(tmp_path: Path) -> None:
    async with (
        counter(tmp_path) as (_, url),
        httpx.AsyncClient(base_url=url, trust_env=False, verify=False) as http,
    ):
        replies = await asyncio.gather(*(http.get("/click") for _ in range(50)))
        assert sorted(int(reply.text) for reply in replies) == list(range(1, 51))


async def test_a_file_keeps_the_count_and_memory_does_not(tmp_path: Path) -> None:
    for expected in ("1", "2"):
        async with counter(tmp_path, COUNTER_FILE="count") as (_, url):
            assert await texts(url, "/click") == [expected]
    async with counter(tmp_path) as (_, url):
        assert await texts(url, "/") == ["0"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_it_ends_on_a_signal(tmp_path: Path, number: int) -> None:
    async with counter(tmp_path) as (process, _):
        process.send_signal(number)
        assert await asyncio.wait_for(process.wait(), 5) == 0
