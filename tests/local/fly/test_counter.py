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

from local.ports import free_port


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
    deadline = time.monotonic() + 30
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
    async with client(url) as http:
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
        async with client(url) as http:
            assert (await http.post("/click", content=b"x" * 1000)).text == "4"
            assert (await http.get("/none")).status_code == 404
            assert (await http.get("/")).headers["content-type"].startswith("text/plain")


async def test_clicks_at_once_are_all_counted(tmp_path: Path) -> None:
    async with (
        counter(tmp_path) as (_, url),
        client(url) as http,
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
        assert await asyncio.wait_for(process.wait(), 30) == 0


def client(url: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=url, trust_env=False, verify=False, timeout=30)


@pytest.mark.parametrize("form", ["length", "chunks"])
async def test_the_state_hook_hands_out_and_takes_back(tmp_path: Path, form: str) -> None:
    async with counter(tmp_path, COUNTER_STATE_BYTES="200000") as (_, url), client(url) as http:
        await texts(url, "/click", "/click")
        state = (await http.get("/state")).content
        assert (state[:2], len(state)) == (b"2\n", 200_002)
        assert (await http.get("/state")).content == state

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(state), 7777):
            yield state[start : start + 7777]

    async with counter(tmp_path, COUNTER_FILE="count") as (_, url), client(url) as http:
        body = state if form == "length" else chunks()
        assert (await http.put("/state", content=body)).status_code == 200
        assert (await http.get("/state")).content == state
        assert await texts(url, "/click") == ["3"]
    assert (tmp_path / "count").read_text() == "3"


@pytest.mark.parametrize("wrong", [b"", b"2", b"two\n", b"9" * 30, b"2\nother", b"-1\n"])
async def test_the_state_hook_takes_all_or_nothing(tmp_path: Path, wrong: bytes) -> None:
    async with counter(tmp_path) as (_, url), client(url) as http:
        await texts(url, "/click")
        assert (await http.put("/state", content=wrong)).status_code == 400
        assert (await http.get("/state")).content == b"1\n"


async def test_a_state_that_breaks_off_changes_nothing(tmp_path: Path) -> None:
    async with counter(tmp_path) as (_, url):
        for head in ("content-length: 100", "transfer-encoding: chunked"):
            port = httpx.URL(url).port
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            body = "5\n" if "length" in head else "2\r\n5\n\r\n"
            writer.write(f"PUT /state HTTP/1.1\r\nhost: x\r\n{head}\r\n\r\n{body}".encode())
            writer.write_eof()
            assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()
        assert await texts(url, "/state") == ["0\n"]
