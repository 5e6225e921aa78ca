"""The emulator as a child process, for tests that kill it or need the event loop."""

import asyncio
import contextlib
import json
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from dataclasses import dataclass

from local.fly.command import arguments
from local.fly.guests.guest_processes import launcher
from local.fly.settings import Settings

READY_WITHIN_S = 50.0


@dataclass(frozen=True)
class EmulatorProcess:
    """A running emulator process and its addresses."""

    process: Process
    api_url: str
    proxy_url: str


class NotReady(Exception):
    """The emulator process ended before it was ready."""


@contextlib.asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[EmulatorProcess]:
    """Run the emulator in a process of its own until the block ends; then stop it."""
    process = await asyncio.create_subprocess_exec(
        *launcher(),
        *(sys.executable, "-m", "local", "fly"),
        *arguments(settings),
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=None,
        env=os.environ,
    )
    try:
        addresses = await asyncio.wait_for(_announced(process), READY_WITHIN_S)
        yield EmulatorProcess(process, addresses["api_url"], addresses["proxy_url"])
    finally:
        await _stop(process)


async def _announced(process: Process) -> dict[str, str]:
    assert process.stdout is not None
    line = await process.stdout.readline()
    if not line:
        raise NotReady(f"the emulator ended with status {await process.wait()}")
    addresses: dict[str, str] = json.loads(line)
    return addresses


async def _stop(process: Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), 10)
    except TimeoutError:
        process.kill()
        await process.wait()
