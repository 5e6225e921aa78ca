"""The command line of the emulator: options, the ready line, invalid settings."""

import asyncio
import json
import signal
import sys
from asyncio.subprocess import PIPE
from dataclasses import replace
from pathlib import Path

import pytest

from local.fly.command import arguments, main, parse
from local.fly.settings import SettingError, Settings
from tests.local.fly.api_client import ApiClient
from tests.open_processes import ended


async def run(*args: str) -> tuple[int | None, str, str]:
    """Run the command to its end: status, stdout, stderr."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "local", "fly", *args, stdout=PIPE, stderr=PIPE
    )
    out, err = await ended(process)
    return process.returncode, out.decode(), err.decode()


async def test_it_announces_itself_serves_and_ends_on_a_signal(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "local", "fly", "--port", "0", "--proxy-port", "0"),
        *("--data", str(tmp_path / "fly"), "--token", "secret"),
        stdout=PIPE,
    )
    assert process.stdout is not None
    line = json.loads(await asyncio.wait_for(process.stdout.readline(), 30))
    assert line["pid"] == process.pid
    async with ApiClient(line["api_url"], "secret") as client:
        await client.expect(201, "POST", "/v1/apps", {"name": "birds", "org_slug": "x"})
    async with ApiClient(line["api_url"], "other") as client:
        await client.expect(401, "GET", "/v1/apps/birds")
    process.send_signal(signal.SIGINT)
    assert await asyncio.wait_for(process.wait(), 30) == 0


async def test_help_names_the_options() -> None:
    status, out, _ = await run("--help")
    assert status == 0
    for word in ("--data", "--port", "--proxy-port", "--token", "--no-limits", "resume_ms"):
        assert word in out


@pytest.mark.parametrize(
    ("args", "word"),
    [
        ((), "--data"),
        (("--data", "{dir}", "--port", "many"), "port"),
        (("--data", "{dir}", "--port", "70000"), "port"),
        (("--data", "{dir}", "--proxy-port", "4280"), "proxy_port"),
        (("--data", "{dir}", "--set", "resume_ms=-1"), "resume_ms"),
        (("--data", "{dir}", "--set", "resume=1"), "resume"),
        (("--data", "{dir}", "--set", "limits=perhaps"), "limits"),
        (("--data", "{dir}", "--set", "stale_nonce=maybe"), "stale_nonce"),
        (("--data", "{dir}", "--set", "resume_ms"), "--set"),
        (("--data", "{dir}", "--image", "x"), "--image"),
        (("--data", "{dir}", "--pace", "slow"), "--pace"),
        (("--data", "{dir}", "--host", "256.0.0.1", "--port", "0"), "port"),
        (("--data", "/proc/nowhere", "--port", "0"), "data"),
        (("--bogus",), "--data"),
    ],
)
def test_a_wrong_setting_is_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], args: tuple[str, ...], word: str
) -> None:
    try:
        status: object = main([arg.replace("{dir}", str(tmp_path)) for arg in args])
    except SystemExit as ended:
        status = ended.code
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith("local fly: ")
    assert word in err


async def test_a_taken_port_is_one_line_and_status_2(tmp_path: Path) -> None:
    async def ignore(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(ignore, "127.0.0.1", 0)
    async with server:
        port = str(server.sockets[0].getsockname()[1])
        status, _, err = await run("--data", str(tmp_path), "--port", port)
    assert status == 2
    message = f"cannot listen on 127.0.0.1:{port}: Address already in use; 0 chooses a free one"
    assert err == f"local fly: port: {message}\n"


def test_a_command_line_says_all_that_settings_hold(settings: Settings) -> None:
    full = replace(
        settings,
        token="secret",
        limits=True,
        stale_nonce="accept",
        autostart_default=False,
        images={"acme/app": ("sh", "-c", "echo 'a b'; sleep 9")},
    )
    assert parse(arguments(full)) == full
    assert parse(arguments(settings)) == settings


def test_the_pace_of_fly_is_slower_and_yields_to_single_settings(tmp_path: Path) -> None:
    settings = parse(["--data", str(tmp_path), "--pace", "fly", "--set", "resume_ms=7"])
    assert settings.start_ms == Settings(data=tmp_path).at_fly_pace().start_ms >= 1000
    assert settings.resume_ms == 7


def test_the_token_is_not_in_the_settings_text(tmp_path: Path) -> None:
    assert "secret" not in repr(Settings(data=tmp_path, token="secret"))


def test_numbers_must_make_sense(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="must not be negative"):
        Settings(data=tmp_path, suspend_ms=-1)
