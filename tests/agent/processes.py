"""session_service as a process on a port that stays, to be killed and started again."""

from __future__ import annotations

import asyncio
import os
import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from tests.service_processes import fork

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from tests.service_processes import Forked


class Service:
    """The process; `target` stays the same when it is started again."""

    def __init__(self, database_url: str, target: str, more: Mapping[str, str]) -> None:
        self.target = target
        self._url = database_url
        self._more = dict(more)
        self._process: Forked | None = None

    async def start(self) -> None:
        """Start it, and wait until it serves."""
        self._process = await fork(
            "session_service",
            environment={
                "PATH": os.environ["PATH"],
                "ROOST_DATABASE_URL": self._url,
                "ROOST_SESSION_LISTEN": self.target,
                # Agent sessions need no containers: nothing listens here.
                "ROOST_CONTAINER_TARGET": "127.0.0.1:9",
                **self._more,
            },
        )
        line = ""
        while not re.search(r"serving on (\S+)", line):
            line = (await asyncio.wait_for(self._process.stderr.readline(), 50)).decode()
            assert line, "it ended"

    async def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


@asynccontextmanager
async def service(database_url: str, target: str, **more: str) -> AsyncGenerator[Service]:
    """A running process, with `more` in its environment; it is killed at the end."""
    running = Service(database_url, target, more)
    try:
        await running.start()
        yield running
    finally:
        await running.kill()
