"""A replica dies before, during and after everything it does; another one goes on from there.

Each case is a process of its own that is armed at one point, on a database of its own, and asserted
to have died there. The other replica is in this process.
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
from local.fly.admin import Admin
from local.fly.emulator import serve as serve_emulator
from local.fly.settings import Settings
from local.health import OPTIONS, serving
from local.ports import free_port
from roost.session.v1 import session_pb2 as pb
from roost.session.v1 import session_service_pb2 as rpc_pb
from roost.session.v1.session_service_pb2_grpc import SessionServiceStub
from session_service import points
from tests.container.harness import APP, TOKEN, UNPACED, config_for, make_app, read_failure
from tests.eventually import eventually
from tests.launching import fork
from tests.session.harness import IMAGE, World, key, replica, request_id, session_config

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

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
#: As many at once as keep a core busy: most of a case is waiting for leases to run out.
AT_ONCE = 4
#: In s. A dead owner's is soon over; the other one keeps its own on a busy machine, too. It is as
#: long as what it keeps at the provider against the dead one's late calls.
LEASE, OTHER_LEASE = 1, 3
PATIENCE = 40.0
#: How long an armed replica may take to die, and how often it may be tried where it did not.
LONGEST_LIFE = 20.0
TRIES = 3

CREATE = ("create", "wait_started", "read_boot_id")
REST = ("acquire_lease", "suspend", "release_lease")
END = ("acquire_lease", "cordon", "suspend", "release_lease")


class Outlived(Exception):
    """The armed replica lost its lease on a busy machine, before it came to where it was to die:
    the other one went there in its place. Nothing was shown.
    """


@dataclass
class Case:
    """One death: the replica that dies, the one that goes on, and what both stand on."""

    world: World
    environment: dict[str, str]

    @property
    def other(self) -> Replica:
        """The replica that lives."""
        return self.world.one

    async def dies(
        self, call: Callable[[Any], Awaitable[object]], kind: type[Any] = SessionServiceStub
    ) -> None:
        """Make the call at the armed replica, and see that one die by its own hand.

        Any: a stub of the service of this kind.
        """
        port = free_port()
        environment = {**self.environment, "ROOST_SESSION_LISTEN": f"127.0.0.1:{port}"}
        process = await fork("session_service", environment=environment)
        dead = asyncio.ensure_future(process.communicate())
        try:
            await asyncio.wait_for(serving(f"127.0.0.1:{port}"), PATIENCE)
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=OPTIONS) as channel:
                asked = asyncio.ensure_future(call(kind(channel)))
                await asyncio.wait({dead}, timeout=LONGEST_LIFE)
                if not dead.done():
                    asked.cancel()
                    raise Outlived
                (answer,) = await asyncio.gather(asked, return_exceptions=True)
        finally:
            process.kill()
            _, log = await dead
        assert process.returncode == -signal.SIGKILL, log.decode()
        if isinstance(answer, BaseException):
            assert isinstance(answer, grpc.aio.AioRpcError), answer
            assert answer.code() is grpc.StatusCode.UNAVAILABLE, answer

    async def repeated(self, method: str, request: object) -> Any:
        """The same request at the other replica, until it is answered; twice, equally.

        Any: the answer, or the `Failure`.
        """
        first = await self._answered(method, request)
        again = await self._answered(method, request)
        assert _essence(first) == _essence(again)
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
        """The states of all machines ever made for a session, at the provider."""
        made = {
            done.machine
            for done in await self.world.admin.actions()
            if done.action == "create" and done.labels.get("roost_session") == session_id
        }
        states = []
        for machine in made:
            url = f"{self.world.emulator.api_url}/v1/apps/{APP}/machines/{machine}"
            answer = await self.world.http.get(url, headers={"authorization": f"Bearer {TOKEN}"})
            states.append(str(answer.json()["state"]))
        return states

    async def known(self) -> list[str]:
        """The ids of all sessions that there ever were."""
        answer = await self.other.stub.ListSessions(rpc_pb.ListSessionsRequest(), timeout=PATIENCE)
        return [session.session_id for session in answer.sessions]


def _essence(answer: Any) -> tuple[object, ...]:
    """What is the same in each answer to one request."""
    if isinstance(answer, rpc_pb.StartSessionResponse):
        attempts = [str(attempt) for attempt in answer.attempts]
        session = answer.session.session_id
        return answer.decision_id, answer.outcome, answer.continuity, attempts, session
    return (getattr(answer, "decision_id", ""), getattr(answer, "reason", ""))


# --- the transitions, and what must hold of each after a death anywhere in it ------------------


async def _start_create(case: Case) -> None:
    request = rpc_pb.StartSessionRequest(key=key(), request_id=request_id())
    await case.dies(lambda stub: stub.StartSession(request, timeout=PATIENCE))
    answer = await case.repeated("StartSession", request)
    assert answer.outcome == pb.START_OUTCOME_CREATED
    assert not answer.joined
    assert await case.known() == [answer.session.session_id]
    assert await case.machines(answer.session.session_id) == ["started"]
    assert await case.world.counter(answer.session) == "0"


async def _start_resume(case: Case) -> None:
    session = (await case.other.start()).session
    await case.world.click_twice(session)
    await case.other.pause(session.session_id)
    request = rpc_pb.StartSessionRequest(key=key(), request_id=request_id())
    await case.dies(lambda stub: stub.StartSession(request, timeout=PATIENCE))
    answer = await case.repeated("StartSession", request)
    assert answer.outcome == pb.START_OUTCOME_RESUMED
    assert (answer.continuity, answer.continuity_verified) == (pb.CONTINUITY_MEMORY, True)
    assert await case.machines(session.session_id) == ["started"]
    assert await case.world.counter(answer.session) == "2"


async def _pause(case: Case) -> None:
    session = (await case.other.start()).session
    await case.world.click_twice(session)
    request = rpc_pb.PauseSessionRequest(session_id=session.session_id, request_id=request_id())
    await case.dies(lambda stub: stub.PauseSession(request, timeout=PATIENCE))
    answer = await case.repeated("PauseSession", request)
    (state,) = await case.machines(session.session_id)
    if isinstance(answer, rpc_pb.PauseSessionResponse):
        assert (answer.session.state, state) == (pb.Session.STATE_PAUSED, "suspended")
    else:
        # Found running by whoever took over: told, and nothing lost.
        assert (answer.reason, state) == ("SUSPEND_FAILED_STILL_RUNNING", "started")
    back = await case.other.start()
    assert (back.continuity, back.session.session_id) == (pb.CONTINUITY_MEMORY, session.session_id)
    assert await case.world.counter(back.session) == "2"


async def _end(case: Case) -> None:
    session = (await case.other.start()).session
    await case.world.click_twice(session)
    request = rpc_pb.EndSessionRequest(session_id=session.session_id, request_id=request_id())
    await case.dies(lambda stub: stub.EndSession(request, timeout=PATIENCE))
    answer = await case.repeated("EndSession", request)
    assert answer.session.state == pb.Session.STATE_ENDED
    assert await case.machines(session.session_id) == ["suspended"]
    await case.other.undelete(session.session_id)
    back = await case.other.start()
    assert (back.outcome, back.continuity) == (pb.START_OUTCOME_RESUMED, pb.CONTINUITY_MEMORY)
    assert await case.world.counter(back.session) == "2"


async def _end_now(case: Case) -> None:
    session = (await case.other.start()).session
    request = rpc_pb.EndSessionRequest(
        session_id=session.session_id, request_id=request_id(), now=True
    )
    await case.dies(lambda stub: stub.EndSession(request, timeout=PATIENCE))
    answer = await case.repeated("EndSession", request)
    assert answer.session.state == pb.Session.STATE_ENDED
    assert await eventually(lambda: _all_gone(case, session.session_id))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await case.other.undelete(session.session_id)
    assert read_failure(refused.value).reason == "SESSION_STATE_CONFLICT"


async def _all_gone(case: Case, session_id: str) -> bool:
    return await case.machines(session_id) == ["destroyed"]


async def _fresh(case: Case) -> None:
    old = (await case.other.start()).session
    request = rpc_pb.StartSessionRequest(
        key=key(), request_id=request_id(), mode=pb.START_MODE_FRESH
    )
    await case.dies(lambda stub: stub.StartSession(request, timeout=PATIENCE))
    answer = await case.repeated("StartSession", request)
    assert answer.outcome == pb.START_OUTCOME_CREATED
    new = answer.session.session_id
    assert sorted(await case.known()) == sorted([old.session_id, new])
    ended = await case.other.end(old.session_id)
    assert ended.state == pb.Session.STATE_ENDED
    assert await case.machines(old.session_id) == ["suspended"]
    assert await case.machines(new) == ["started"]
    assert await case.world.counter(answer.session) == "0"


PLACES: dict[Callable[[Case], Awaitable[None]], tuple[str, ...]] = {
    _start_create: ("intent", "note", "outcome", *CREATE),
    _start_resume: ("intent", "outcome", "resume"),
    _pause: ("intent", "outcome", *REST),
    _end: ("intent", "outcome", *END),
    _end_now: ("intent", "outcome", "acquire_lease", "destroy"),
    _fresh: ("intent", "note", "outcome", *CREATE, *END),
}


def in_parts(
    points_of: Mapping[Callable[[Case], Awaitable[None]], Sequence[str]], size: int
) -> list[ParameterSet]:
    """The transitions with their points, so many in a test: none is much longer than others."""
    return [
        pytest.param(transition, names[at : at + size], id=f"{transition.__name__[1:]}-{names[at]}")
        for transition, names in points_of.items()
        for at in range(0, len(names), size)
    ]


POINTS = {
    transition: [f"{place}.{moment}" for place in places for moment in points.MOMENTS]
    for transition, places in PLACES.items()
}


@pytest.mark.parametrize(("transition", "names"), in_parts(POINTS, 12))
async def test_a_death_at_every_point_of(
    transition: Callable[[Case], Awaitable[None]],
    names: Sequence[str],
    databases: Databases,
    migrated_database: str,
    tmp_path: Path,
) -> None:
    """One machine, the right answer, and nothing lost, wherever the replica died."""
    async with _ground(tmp_path) as ground:
        await died_at(
            names, transition, lambda name: _case(name, ground, databases, migrated_database)
        )


async def died_at(
    names: Sequence[str],
    transition: Callable[[Case], Awaitable[None]],
    case_of: Callable[[str], AbstractAsyncContextManager[Case]],
) -> None:
    """See the transition through with a death at each of the points, a few at once."""
    turns = asyncio.Semaphore(AT_ONCE)
    failures: list[str] = []

    async def one(name: str) -> None:
        error: Exception | None = None
        for _ in range(TRIES):
            async with turns, case_of(name) as case:
                try:
                    await transition(case)
                    return
                except Outlived as outlived:
                    error = outlived
                except Exception as failure:  # noqa: BLE001  # told with the point's name
                    error = failure
                    break
        failures.append(f"{name}: {error!r}"[:600])

    await asyncio.gather(*map(one, names))
    assert not failures, "\n".join(failures)


@dataclass
class Ground:
    """What all cases of a test share."""

    emulator: Emulator
    admin: Admin
    http: httpx.AsyncClient
    containers: str


@asynccontextmanager
async def _ground(folder: Path) -> AsyncGenerator[Ground]:
    settings = Settings(
        data=folder / "fly", port=0, proxy_port=0, token=TOKEN, create_ms=5, start_ms=5,
        resume_ms=5, suspend_ms=20, destroy_ms=5, limits=False,
    )  # fmt: skip
    async with AsyncExitStack() as stack:
        emulator = await stack.enter_async_context(serve_emulator(settings))
        await make_app(emulator)
        unpaced = config_for(emulator, fly_rate_share=UNPACED)
        containers = await stack.enter_async_context(serve_containers(unpaced))
        yield Ground(
            emulator,
            await stack.enter_async_context(Admin(emulator.api_url)),
            await stack.enter_async_context(
                httpx.AsyncClient(trust_env=False, verify=False, timeout=PATIENCE)
            ),
            containers.target,
        )


@asynccontextmanager
async def _case(
    name: str, ground: Ground, databases: Databases, template: str
) -> AsyncIterator[Case]:
    """A database, a replica on it that lives, and what makes the one that dies."""
    url = await asyncio.to_thread(databases.create, template)
    lease = timedelta(seconds=OTHER_LEASE)
    where = (url, ground.containers, ground.emulator.proxy_url)
    # The template is migrated, and Alembic is not for several at once.
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
        points.VARIABLE: f"{name}:1",
    }
    async with replica(config) as other:
        world = World(ground.emulator, ground.admin, [other], ground.http)
        yield Case(world, environment)
    await asyncio.to_thread(databases.drop, url)
