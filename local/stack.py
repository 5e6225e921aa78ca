"""The whole stack as child processes: PostgreSQL, the Fly emulator, both services."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Self

import httpx

from local.children import Child
from local.fly.admin import Admin
from local.fly_app import AppRefused, ensure_app
from local.health import serving
from local.lock import FolderLock
from local.ports import is_taken
from local.postgres import EmbeddedPostgres
from local.postgres_folder import PostgresFailed
from local.stack_parts import TOKEN, Part, plan

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from local.stack_settings import StackSettings

DATABASE = "roost"
START_SECONDS = 60.0
#: More than the services' own grace for calls in flight.
STOP_STEPS = ((signal.SIGTERM, 20.0),)


class StackFailed(Exception):
    """The stack cannot run, or runs no more. `status` is the exit status that says so."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


class Stack:
    """Everything running and serving, as long as this context; no process is left after it.

    Enter it in the main thread. Parts are named `emulator`, `container_service`, `session_service`,
    `session_service_2`, …; each can be killed and started anew at its address.
    """

    def __init__(
        self, settings: StackSettings, rewire: Callable[[Part], Part] | None = None
    ) -> None:
        """`rewire` may change what a part is started with: to put something in between."""
        self.settings = settings
        self._rewire = rewire
        self.parts: dict[str, Part] = {}
        self.database_url = settings.database_url or ""
        self.postgres: EmbeddedPostgres | None = None
        self.admin: Admin
        self._lock = FolderLock(settings.data)
        self._children: dict[str, Child] = {}
        self._dead: asyncio.Queue[Child] = asyncio.Queue()
        self._watchers: set[asyncio.Task[None]] = set()
        self._open = AsyncExitStack()

    @property
    def session_targets(self) -> list[str]:
        """Addresses of the session_service replicas."""
        return [p.target for name, p in self.parts.items() if name.startswith("session_service")]

    @property
    def container_target(self) -> str:
        """Address of container_service."""
        return self.parts["container_service"].target

    @property
    def fly_url(self) -> str:
        """Base URL of the emulator's Machines API."""
        return self.settings.fly_url

    @property
    def proxy_url(self) -> str:
        """Base URL of the emulator's proxy."""
        return self.settings.proxy_url

    @property
    def logs(self) -> Path:
        """Folder of the parts' logs."""
        return self.settings.logs

    async def start(self, name: str) -> None:
        """Start a part that does not run, and wait until it can be used."""
        if name in self._children:
            raise RuntimeError(f"{name} runs already")
        part = self.parts[name]
        child = Child(name, part.command, log=part.log, environment=part.environment)
        self._children[name] = child
        self._watch(child)
        await self._until_ready(part, child)

    async def stop(self, name: str) -> None:
        """Stop a part as an operator does; nothing happens when it does not run."""
        if child := self._children.pop(name, None):
            await child.stop(*STOP_STEPS)

    async def kill(self, name: str) -> None:
        """SIGKILL a part, and return when it is gone."""
        await self._children.pop(name).stop()

    async def kill_postgres(self) -> None:
        """Crash the embedded PostgreSQL: an immediate stop, all connections dropped."""
        assert self.postgres is not None, "the database is not ours to kill"
        del self._children["postgres"]
        await self.postgres.crash()

    async def start_postgres(self) -> None:
        """Start the embedded PostgreSQL again, at its address; it first replays its log."""
        assert self.postgres is not None, "the database is not ours to start"
        await self.postgres.recover()
        self._children["postgres"] = self.postgres.child
        self._watch(self.postgres.child)

    def runs(self, name: str) -> bool:
        """Whether the part runs: started, and neither stopped, killed nor ended by itself."""
        child = self._children.get(name)
        return child is not None and child.status is None

    def pid(self, name: str) -> int:
        """The process id of a running part."""
        return self._children[name].pid

    async def gone(self, name: str) -> int:
        """Wait until the part ends by itself, which is no failure then; its exit status."""
        child = self._children[name]
        status = await child.exited()
        if self._children.get(name) is child:
            del self._children[name]
        return status

    def send(self, name: str, signal_: signal.Signals) -> None:
        """Send a signal to a running part: SIGSTOP and SIGCONT, mostly."""
        self._children[name].send(signal_)

    async def failure(self) -> StackFailed:
        """Wait until a part ends that nobody stopped, and tell of it."""
        return await _death(await self._dead.get())

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as opened:
            self._open = opened
            await self._open_all()
            # All is well: closing is now up to __aexit__.
            self._open = opened.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._open.aclose()

    async def _open_all(self) -> None:
        self._open.callback(self._lock.release)
        try:
            await asyncio.to_thread(self._take_folder)
        except OSError as error:
            raise StackFailed(f"{self.settings.data} cannot be used: {error}", 2) from error
        self._open.push_async_callback(self._end_watchers)
        self.settings = self.settings.with_ports()
        if not self.database_url:
            await self._open_postgres()
        self.admin = await self._open.enter_async_context(Admin(self.fly_url))
        parts = plan(self.settings, self.database_url)
        if self._rewire is not None:
            parts = [self._rewire(part) for part in parts]
        self.parts = {part.name: part for part in parts}
        for name in self.parts:
            self._open.push_async_callback(self.stop, name)
            await self.start(name)
            if name == "emulator":
                await self._make_app()

    async def _make_app(self) -> None:
        try:
            await ensure_app(self.fly_url, TOKEN, self.settings.app)
        except (AppRefused, httpx.HTTPError) as error:
            raise StackFailed(f"the emulator makes no app: {error!r}") from error

    def _take_folder(self) -> None:
        if not self._lock.acquire():
            data = self.settings.data
            raise StackFailed(
                f"a stack runs on {data} already: stop that first, or give another --data", 2
            )
        for option, port in self.settings.fixed_ports():
            if is_taken(port):
                raise StackFailed(f"port {port} is taken: choose another one with {option}", 2)
        if self.settings.fresh:
            for name in ("postgres", "fly", "logs"):
                shutil.rmtree(self.settings.data / name, ignore_errors=True)
        self.logs.mkdir(exist_ok=True)

    async def _open_postgres(self) -> None:
        data, port = self.settings.data / "postgres", self.settings.postgres_port
        try:
            server = EmbeddedPostgres(data, port, self.settings.durable)
            self.postgres = await self._open.enter_async_context(server)
        except PostgresFailed as error:
            raise StackFailed(str(error), 2) from error
        await server.ensure_database(DATABASE)
        self.database_url = server.url(DATABASE)
        self._children["postgres"] = server.child
        self._open.callback(self._children.pop, "postgres", None)
        self._watch(server.child)

    async def _emulator_ready(self) -> None:
        ready = self.settings.data / "fly" / "ready.json"
        wanted = f'"pid": {self._children["emulator"].pid},'
        while wanted not in await asyncio.to_thread(_text, ready):  # noqa: ASYNC110
            await asyncio.sleep(0.02)

    async def _until_ready(self, part: Part, child: Child) -> None:
        waiting = self._emulator_ready() if part.name == "emulator" else serving(part.target)
        ready = asyncio.create_task(waiting, name=f"{part.name}-ready")
        ended = asyncio.create_task(child.exited(), name=f"{part.name}-ended")
        try:
            await asyncio.wait({ready, ended}, timeout=START_SECONDS, return_when="FIRST_COMPLETED")
            if ended.done():
                raise await _death(child)
            if not ready.done():
                raise StackFailed(f"{part.name} was not ready in {START_SECONDS:g} s: {part.log}")
            await ready
        finally:
            ready.cancel()
            ended.cancel()
            await asyncio.gather(ready, ended, return_exceptions=True)

    def _watch(self, child: Child) -> None:
        async def watch() -> None:
            await child.exited()
            # Whoever stops a part takes it out of the list first.
            if self._children.get(child.name) is child:
                self._dead.put_nowait(child)

        task = asyncio.create_task(watch(), name=f"watch-{child.name}")
        self._watchers.add(task)
        task.add_done_callback(self._watchers.discard)

    async def _end_watchers(self) -> None:
        for task in self._watchers:
            task.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)


async def _death(child: Child) -> StackFailed:
    """What to say of a part that ended by itself; status 2 where it says that of itself."""
    lines = await child.last_lines()
    if child.status == 2 and lines:
        return StackFailed(lines[-1], 2)
    said = "\n".join(f"  {line}" for line in lines)
    return StackFailed(f"{child.name} ended with status {child.status}; {child.log}:\n{said}")


def _text(path: Path) -> str:
    with contextlib.suppress(FileNotFoundError):
        return path.read_text()
    return ""
