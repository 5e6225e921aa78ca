"""nginx and HAProxy in front of a server, with the settings of docs/production.md."""

from __future__ import annotations

import asyncio
import os
import re
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from local.ports import HOST, free_port
from tests.eventually import eventually
from tests.needs import needs

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

DOCUMENT = Path(__file__).parents[2] / "docs" / "production.md"
#: The addresses of the document, which a test replaces by its own.
LISTEN, SERVER = "50050", "127.0.0.1:50051"


def printed(language: str) -> str:
    """The settings that the document prints for this proxy."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", DOCUMENT.read_text(), re.M | re.S)
    return str(found)


@asynccontextmanager
async def nginx(folder: Path, target: str, settings: str) -> AsyncGenerator[str]:
    """Nginx with this `server` and `upstream`; its address."""
    port = free_port()
    text = settings.replace(SERVER, target).replace(f"listen {LISTEN}", f"listen {HOST}:{port}")
    paths = "".join(
        f"{kind}_temp_path {folder}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = folder / "nginx.conf"
    config.write_text(
        f"daemon off; master_process off; pid {folder}/nginx.pid; error_log stderr;\n"
        f"events {{}}\nhttp {{\naccess_log off;\n{paths}{text}\n}}\n"
    )
    async with _running(port, needs("nginx"), "-c", str(config), "-p", str(folder)):
        yield f"{HOST}:{port}"


@asynccontextmanager
async def haproxy(folder: Path, target: str, settings: str) -> AsyncGenerator[str]:
    """HAProxy with these sections; its address."""
    port = free_port()
    text = settings.replace(SERVER, target).replace(f":{LISTEN}", f"{HOST}:{port}")
    config = folder / "haproxy.cfg"
    config.write_text(text)
    async with _running(port, needs("haproxy"), "-db", "-f", str(config)):
        yield f"{HOST}:{port}"


@asynccontextmanager
async def _running(port: int, *command: str) -> AsyncGenerator[None]:
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, env={"PATH": os.environ["PATH"]}
    )
    try:

        async def listening() -> bool:
            assert process.returncode is None, "it ended"
            try:
                _, writer = await asyncio.open_connection(HOST, port)
            except OSError:
                return False
            writer.close()
            return True

        assert await eventually(listening)
        yield
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
