"""The emulator whole, to be run inside an event loop: `async with serve(settings) as emulator`."""

import contextlib
import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass

from local.fly.app import build_api
from local.fly.proxy import build_proxy
from local.fly.servers import serving
from local.fly.settings import Settings
from local.fly.store import write_atomically
from local.fly.world import opened


@dataclass(frozen=True)
class Emulator:
    """Where a running emulator is."""

    api_url: str
    """Base URL of the Machines API, without `/v1`; `/_emulator` is there too."""

    proxy_url: str
    """Base URL of the proxy."""


@contextlib.asynccontextmanager
async def serve(settings: Settings) -> AsyncIterator[Emulator]:
    """Run until the block ends; then every guest is gone.

    While it runs `ready.json` in the data folder holds `pid`, `api_url` and `proxy_url`. Raises
    `SettingError` when a port or the folder cannot be had.
    """
    ready = settings.data / "ready.json"
    async with contextlib.AsyncExitStack() as stack:
        world = await stack.enter_async_context(opened(settings))
        proxy = await stack.enter_async_context(build_proxy(world))
        host = settings.host
        port = await stack.enter_async_context(
            serving(build_api(world), host, settings.port, "port")
        )
        proxy_port = await stack.enter_async_context(
            serving(proxy, host, settings.proxy_port, "proxy_port")
        )
        emulator = Emulator(f"http://{host}:{port}", f"http://{host}:{proxy_port}")
        told = announcement(emulator) + "\n"
        await world.disk.run(lambda: write_atomically(ready, told))
        stack.push_async_callback(world.disk.run, lambda: ready.unlink(missing_ok=True))
        yield emulator


def announcement(emulator: Emulator) -> str:
    """One line of JSON that tells a parent process where the emulator is."""
    told = {"pid": os.getpid(), "api_url": emulator.api_url, "proxy_url": emulator.proxy_url}
    return json.dumps(told)
