"""The whole stack as child processes: PostgreSQL, the Fly emulator, both services."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Self

import httpx

from local.fly.admin import Admin
from local.ports import is_taken
from local.postgres.folder import PostgresFailed
from local.postgres.server import EmbeddedPostgres
from local.processes.child import Child
from local.processes.folder_lock import FolderLock
from local.stack.fly_app import AppNotCreated, ensure_app
from local.stack.grpc_health import serving
from local.stack.programs import TOKEN, Program, plan

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from local.stack.stack_settings import StackSettings

DATABASE = "roost"
#: Longer than the services' own grace period for calls in progress.
STOP_STEPS = ((signal.SIGTERM, 20.0),)


class StackFailed(Exception):
    """The stack cannot start, or has stopped. `status` is the exit status of the command."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


class Stack:
    """A running stack, as long as this context. No process is left after it.

    Enter it in the main thread. The programs are named `emulator`, `container_service`,
    `session_service`, `session_service_2`, …; each can be killed and started again at its address.
    """

    def __init__(
        self, settings: StackSettings, rewire: Callable[[Program], Program] | None = None
    ) -> None:
        """`rewire` may change a program before its start, for example to insert a relay."""
        self.settings = settings
        self._rewire = rewire
        self.programs: dict[str, Program] = {}
        self.database_url = settings.database_url or ""
        self.postgres: EmbeddedPostgres | None = None
        self.admin: Admin
        self._lock = FolderLock(settings.data)
        self._children: dict[str, Child] = {}
        self._ended_children: asyncio.Queue[Child] = asyncio.Queue()
        self._watchers: set[asyncio.Task[None]] = set()
        self._open = AsyncExitStack()

    @property
    def session_targets(self) -> list[str]:
        """Addresses of the session_service replicas."""
        return [p.target for name, p in self.programs.items() if name.startswith("session_service")]

    @property
    def container_target(self) -> str:
        """Address of container_service."""
        return self.programs["container_service"].target

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
        """Folder of the programs' logs."""
        return self.settings.logs

    async def start(self, name: str) -> None:
        """Start a program that does not run, and wait until it is ready. Raises StackFailed."""
        if name in self._children:
            raise RuntimeError(f"{name} is already running")
        program = self.programs[name]
        child = Child(name, program.command, log=program.log, environment=program.environment)
        self._children[name] = child
        self._watch(child)
        await self._until_ready(program, child)

    async def stop(self, name: str) -> None:
        """Stop a program by SIGTERM; no effect when it does not run."""
        if child := self._children.pop(name, None):
            await child.stop(*STOP_STEPS)

    async def kill(self, name: str) -> None:
        """Kill a program by SIGKILL and wait for its end."""
        await self._children.pop(name).stop()

    async def kill_postgres(self) -> None:
        """Crash the embedded PostgreSQL: immediate shutdown, all connections dropped."""
        assert self.postgres is not None, "the stack does not run the database"
        del self._children["postgres"]
        await self.postgres.crash()

    async def start_postgres(self) -> None:
        """Start the embedded PostgreSQL again at its address; it replays its log first."""
        assert self.postgres is not None, "the stack does not run the database"
        await self.postgres.recover()
        self._children["postgres"] = self.postgres.child
        self._watch(self.postgres.child)

    def runs(self, name: str) -> bool:
        """Whether the program runs: started, and neither stopped, killed nor ended by itself."""
        child = self._children.get(name)
        return child is not None and child.status is None

    def pid(self, name: str) -> int:
        """The process id of a running program."""
        return self._children[name].pid

    async def wait_for_end(self, name: str) -> int:
        """Wait until a program ends by itself; its exit status. It does not count as a failure."""
        child = self._children[name]
        status = await child.exited()
        if self._children.get(name) is child:
            del self._children[name]
        return status

    def send(self, name: str, signal_: signal.Signals) -> None:
        """Send a signal, such as SIGSTOP or SIGCONT, to a running program."""
        self._children[name].send(signal_)

    async def failure(self) -> StackFailed:
        """Wait until a program ends that was not stopped; return the error that describes it."""
        return await _ended_error(await self._ended_children.get())

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as opened:
            self._open = opened
            await self._open_all()
            # Everything has started: from now on __aexit__ closes.
            self._open = opened.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._open.aclose()

    async def _open_all(self) -> None:
        self._open.callback(self._lock.release)
        try:
            await asyncio.to_thread(self._lock_folder)
        except OSError as error:
            raise StackFailed(f"{self.settings.data} cannot be used: {error}", 2) from error
        self._open.push_async_callback(self._end_watchers)
        self.settings = self.settings.with_ports()
        if not self.database_url:
            await self._open_postgres()
        self.admin = await self._open.enter_async_context(Admin(self.fly_url))
        programs = plan(self.settings, self.database_url)
        if self._rewire is not None:
            programs = [self._rewire(program) for program in programs]
        self.programs = {program.name: program for program in programs}
        for name in self.programs:
            self._open.push_async_callback(self.stop, name)
            await self.start(name)
            if name == "emulator":
                await self._make_app()

    async def _make_app(self) -> None:
        try:
            await ensure_app(self.fly_url, TOKEN, self.settings.app)
        except (AppNotCreated, httpx.HTTPError) as error:
            raise StackFailed(f"the emulator created no app: {error!r}") from error

    def _lock_folder(self) -> None:
        if not self._lock.acquire():
            data = self.settings.data
            raise StackFailed(
                f"another stack runs on {data}: stop it, or choose another folder with --data", 2
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

    async def _until_ready(self, program: Program, child: Child) -> None:
        waiting = self._emulator_ready() if program.name == "emulator" else serving(program.target)
        ready = asyncio.create_task(waiting, name=f"{program.name}-ready")
        ended = asyncio.create_task(child.exited(), name=f"{program.name}-ended")
        try:
            limit = self.settings.start_seconds
            await asyncio.wait({ready, ended}, timeout=limit, return_when="FIRST_COMPLETED")
            if ended.done():
                raise await _ended_error(child)
            if not ready.done():
                raise StackFailed(
                    f"{program.name} was not ready in {limit:g} s; {child.log}:\n"
                    f"{await _last_output(child)}"
                )
            await ready
        finally:
            ready.cancel()
            ended.cancel()
            await asyncio.gather(ready, ended, return_exceptions=True)

    def _watch(self, child: Child) -> None:
        async def watch() -> None:
            await child.exited()
            # `stop` and `kill` remove the child from the dictionary first.
            if self._children.get(child.name) is child:
                self._ended_children.put_nowait(child)

        task = asyncio.create_task(watch(), name=f"watch-{child.name}")
        self._watchers.add(task)
        task.add_done_callback(self._watchers.discard)

    async def _end_watchers(self) -> None:
        for task in self._watchers:
            task.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)


async def _ended_error(child: Child) -> StackFailed:
    """The error for a program that ended by itself; with status 2 its last line is the message."""
    lines = await child.last_lines()
    if child.status == 2 and lines:
        return StackFailed(lines[-1], 2)
    output = await _last_output(child)
    return StackFailed(f"{child.name} ended with status {child.status}; {child.log}:\n{output}")


async def _last_output(child: Child) -> str:
    return "\n".join(f"  {line}" for line in await child.last_lines())


def _text(path: Path) -> str:
    with contextlib.suppress(FileNotFoundError):
        return path.read_text()
    return ""
