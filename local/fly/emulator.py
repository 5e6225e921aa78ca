"""The whole emulator in the caller's event loop: `async with serve(settings) as emulator`."""

import contextlib
import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass

from local.fly.api.application import build_api
from local.fly.http_server import serving
from local.fly.proxy.proxy import build_proxy
from local.fly.settings import Settings
from local.fly.store import write_atomically
from local.fly.wiring import open_backend


@dataclass(frozen=True)
class Emulator:
    """The addresses of a running emulator."""

    api_url: str
    """Base URL of the Machines API, without `/v1`; `/_emulator` is below it too."""

    proxy_url: str
    """Base URL of the proxy."""


@contextlib.asynccontextmanager
async def serve(settings: Settings) -> AsyncIterator[Emulator]:
    """Run until the block ends; every guest has ended by then.

    While it runs, `ready.json` in the data folder holds `pid`, `api_url` and `proxy_url`. Raises
    SettingError when a port or the folder cannot be used.
    """
    ready = settings.data / "ready.json"
    async with contextlib.AsyncExitStack() as stack:
        backend = await stack.enter_async_context(open_backend(settings))
        proxy = await stack.enter_async_context(build_proxy(backend))
        host = settings.host
        port = await stack.enter_async_context(
            serving(build_api(backend), host, settings.port, "port")
        )
        proxy_port = await stack.enter_async_context(
            serving(proxy, host, settings.proxy_port, "proxy_port")
        )
        emulator = Emulator(f"http://{host}:{port}", f"http://{host}:{proxy_port}")
        line = announcement(emulator) + "\n"
        await backend.disk.run(lambda: write_atomically(ready, line))
        stack.push_async_callback(backend.disk.run, lambda: ready.unlink(missing_ok=True))
        yield emulator


def announcement(emulator: Emulator) -> str:
    """One line of JSON with the emulator's pid and addresses, for a parent process."""
    values = {"pid": os.getpid(), "api_url": emulator.api_url, "proxy_url": emulator.proxy_url}
    return json.dumps(values)
