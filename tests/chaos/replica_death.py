"""Harness for tests in which a replica of session_service dies at a failpoint.

`died_at` runs one transition once per failpoint. Each run is a `Case`: a database of its own, a
replica that survives, in this process, and a replica that is a process of its own, is armed at the
failpoint, and is asserted to have died there by SIGKILL.
"""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import grpc.aio
import httpx
import pytest

from container_service.main import serve as serve_containers
from local.fly.admin import FRESH_CONNECTIONS, Admin
from local.fly.emulator import serve as serve_emulator
from local.fly.settings import Settings
from local.ports import free_port
from local.stack.grpc_health import OPTIONS, serving
from roost.session.v1 import session_service_pb2 as rpc_pb
from roost.session.v1.session_service_pb2_grpc import SessionServiceStub
from session_service import failpoints
from tests.container.harness import APP, TOKEN, UNPACED, config_for, make_app, read_failure
from tests.eventually import eventually
from tests.service_processes import fork
from tests.session.harness import IMAGE, World, replica, session_config

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        AsyncIterator,
        Awaitable,
        Callable,
        Mapping,
        Sequence,
    )
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from _pytest.mark import ParameterSet

    from local.fly.emulator import Emulator
    from tests.database import Databases
    from tests.session.harness import Replica

#: Cases that run at once. Most of a case is waiting for leases to expire.
AT_ONCE = 4
#: ROOST_LEASE of the replica that dies and of the one that survives, in s. The first is short, so
#: that takeover is soon. The second is long enough to be renewed in time on a busy machine; the
#: lease at the provider, against late calls of the dead replica, is as long.
LEASE, OTHER_LEASE = 1, 3
PATIENCE = 40.0
#: Longest time, in s, until an armed replica dies, and the number of attempts if it does not.
LONGEST_LIFE = 20.0
TRIES = 3


class Outlived(Exception):
    """The armed replica lost its lease on a busy machine before it reached the failpoint.

    The other replica took over, so the case tested nothing and is run again.
    """


@dataclass
class Case:
    """One death: the surviving replica, and the environment of the one that dies."""

    world: World
    environment: dict[str, str]

    @property
    def other(self) -> Replica:
        """The replica that survives."""
        return self.world.one

    async def dies(
        self, call: Callable[[Any], Awaitable[object]], kind: type[Any] = SessionServiceStub
    ) -> None:
        """Make the call to the armed replica and assert that it dies at its failpoint.

        `kind` is the class of the stub that `call` gets. Any: a stub of that class.
        """
        port = free_port()
        environment = {**self.environment, "ROOST_SESSION_LISTEN": f"127.0.0.1:{port}"}
        process = await fork("session_service", environment=environment)
        dead = asyncio.ensure_future(process.communicate())
        try:
            await asyncio.wait_for(serving(f"127.0.0.1:{port}"), PATIENCE)
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=OPTIONS) as channel:
                calling = asyncio.ensure_future(call(kind(channel)))
                await asyncio.wait({dead}, timeout=LONGEST_LIFE)
                if not dead.done():
                    calling.cancel()
                    raise Outlived
                (answer,) = await asyncio.gather(calling, return_exceptions=True)
        finally:
            process.kill()
            _, log = await dead
        assert process.returncode == -signal.SIGKILL, log.decode()
        if isinstance(answer, BaseException):
            assert isinstance(answer, grpc.aio.AioRpcError), answer
            assert answer.code() is grpc.StatusCode.UNAVAILABLE, answer

    async def repeated(self, method: str, request: object) -> Any:
        """Repeat the request at the surviving replica, twice; assert that both answers are equal.

        Any: the answer, or the `Failure`.
        """
        first = await self._answered(method, request)
        again = await self._answered(method, request)
        assert _replayed_part(first) == _replayed_part(again)
        return first

    async def _answered(self, method: str, request: object) -> Any:
        async def once() -> Any:
            try:
                return await getattr(self.other.stub, method)(request, timeout=PATIENCE)
            except grpc.aio.AioRpcError as error:
                failure = read_failure(error)
                assert failure.code is not grpc.StatusCode.UNAVAILABLE, failure
                return failure

        answer: Any = await eventually(once, timeout=PATIENCE, interval=0.1)
        return answer

    async def machines(self, session_id: str) -> list[str]:
        """The states, at the provider, of all machines ever created for a session."""
        created = {
            action.machine
            for action in await self.world.admin.actions()
            if action.action == "create" and action.labels.get("roost_session") == session_id
        }
        states = []
        for machine in created:
            url = f"{self.world.emulator.api_url}/v1/apps/{APP}/machines/{machine}"
            answer = await self.world.http.get(url, headers={"authorization": f"Bearer {TOKEN}"})
            states.append(str(answer.json()["state"]))
        return states

    async def session_ids(self) -> list[str]:
        """The ids of all sessions."""
        answer = await self.other.stub.ListSessions(rpc_pb.ListSessionsRequest(), timeout=PATIENCE)
        return [session.session_id for session in answer.sessions]


def _replayed_part(answer: Any) -> tuple[object, ...]:
    """The part of an answer that must be equal in every repeat."""
    if isinstance(answer, rpc_pb.StartSessionResponse):
        attempts = [str(attempt) for attempt in answer.attempts]
        session = answer.session.session_id
        return answer.decision_id, answer.outcome, answer.continuity, attempts, session
    return (getattr(answer, "decision_id", ""), getattr(answer, "reason", ""))


def in_parts(
    failpoints_of: Mapping[Callable[[Case], Awaitable[None]], Sequence[str]], size: int
) -> list[ParameterSet]:
    """For `make test` each transition with one failpoint, in the middle of its steps. For
    `make proof` each with all, at most `size` per test, so that tests take equally long.
    """
    short = [
        pytest.param(transition, [middle], id=f"{transition.__name__[1:]}-{middle}-alone")
        for transition, names in failpoints_of.items()
        for middle in [names[len(names) // 2]]
    ]
    whole = [
        pytest.param(
            transition,
            names[at : at + size],
            id=f"{transition.__name__[1:]}-{names[at]}",
            marks=pytest.mark.proof,
        )
        for transition, names in failpoints_of.items()
        for at in range(0, len(names), size)
    ]
    return short + whole


async def died_at(
    names: Sequence[str],
    transition: Callable[[Case], Awaitable[None]],
    case_of: Callable[[str], AbstractAsyncContextManager[Case]],
) -> None:
    """Run the transition with a death at each of the failpoints, a few at once."""
    limiter = asyncio.Semaphore(AT_ONCE)
    failures: list[str] = []

    async def one(name: str) -> None:
        error: Exception | None = None
        for _ in range(TRIES):
            async with limiter, case_of(name) as case:
                try:
                    await transition(case)
                    return
                except Outlived as outlived:
                    error = outlived
                except Exception as failure:  # noqa: BLE001  # reported with the failpoint's name
                    error = failure
                    break
        failures.append(f"{name}: {error!r}"[:600])

    await asyncio.gather(*map(one, names))
    assert not failures, "\n".join(failures)


@dataclass
class SharedServers:
    """The servers that all cases of a test share."""

    emulator: Emulator
    admin: Admin
    http: httpx.AsyncClient
    containers: str


@asynccontextmanager
async def shared_servers(folder: Path) -> AsyncGenerator[SharedServers]:
    settings = Settings(
        data=folder / "fly", port=0, proxy_port=0, token=TOKEN, create_ms=5, start_ms=5,
        resume_ms=5, suspend_ms=20, destroy_ms=5, limits=False,
    )  # fmt: skip
    async with AsyncExitStack() as stack:
        emulator = await stack.enter_async_context(serve_emulator(settings))
        await make_app(emulator)
        unpaced = config_for(emulator, fly_rate_share=UNPACED)
        containers = await stack.enter_async_context(serve_containers(unpaced))
        yield SharedServers(
            emulator,
            await stack.enter_async_context(Admin(emulator.api_url)),
            await stack.enter_async_context(
                httpx.AsyncClient(
                    trust_env=False, verify=False, timeout=PATIENCE, limits=FRESH_CONNECTIONS
                )
            ),
            containers.target,
        )


@asynccontextmanager
async def running_case(
    failpoint: str, servers: SharedServers, databases: Databases, template: str
) -> AsyncIterator[Case]:
    """A database, the surviving replica on it, and the environment of the one that dies."""
    url = await asyncio.to_thread(databases.create, template)
    lease = timedelta(seconds=OTHER_LEASE)
    where = (url, servers.containers, servers.emulator.proxy_url)
    # The template is migrated already, and Alembic cannot run several migrations at once.
    config = session_config(*where, lease=lease, migrate=False)
    environment = {
        "PATH": os.environ["PATH"],
        "ROOST_DATABASE_URL": url,
        "ROOST_CONTAINER_TARGET": config.container_target,
        "ROOST_FLY_APP": APP,
        "ROOST_URL_TEMPLATE": config.url_template,
        "ROOST_DEFAULT_IMAGE": IMAGE,
        "ROOST_LEASE": str(LEASE),
        "ROOST_LAG_WINDOW": str(config.lag_window.total_seconds()),
        "ROOST_MIGRATE": "false",
        failpoints.VARIABLE: f"{failpoint}:1",
    }
    async with replica(config) as other:
        world = World(servers.emulator, servers.admin, [other], servers.http)
        yield Case(world, environment)
    await asyncio.to_thread(databases.drop, url)
