"""Helpers of all session tests: replicas, one container_service and one emulator."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import grpc.aio
import httpx

from container_service.main import serve as serve_containers
from local.fly.admin import FRESH_CONNECTIONS, Admin
from roost.container.v1 import container_service_pb2 as container_pb
from roost.session.v1 import session_pb2, session_service_pb2
from roost.session.v1.session_service_pb2_grpc import SessionServiceStub
from session_service.clients.containers import GrpcContainers
from session_service.config import Config
from session_service.server.replica import Running
from session_service.server.replica import serve as serve_sessions
from tests.container.harness import APP, TOKEN, UNPACED, config_for
from tests.eventually import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from local.fly.emulator import Emulator
    from session_service.server.composition import Connect

pb = session_service_pb2
IMAGE = "roost/counter"
LAG_WINDOW = timedelta(seconds=0.2)
#: Deadline of one call, in s. Only a call that hangs reaches it: a transition has ended before.
TIMEOUT = 40.0
#: The intervals of the passes that pause, end and destroy.
PASSES = ("reconcile_interval", "sweep_interval")


def key(user_id: str = "wren", slot: str = "") -> session_pb2.SessionKey:
    """A session key of project `nest`."""
    return session_pb2.SessionKey(project_id="nest", user_id=user_id, slot=slot)


@dataclass
class Replica:
    """A running session_service, and a client of it."""

    running: Running
    stub: SessionServiceStub
    channel: grpc.aio.Channel

    async def start(
        self, user_id: str = "wren", **fields: Any
    ) -> session_service_pb2.StartSessionResponse:
        """StartSession. Any: fields of every type."""
        request = pb.StartSessionRequest(key=key(user_id), **fields)
        return await self.stub.StartSession(request, timeout=TIMEOUT)

    async def pause(self, session_id: str, **fields: Any) -> session_pb2.Session:
        """PauseSession."""
        request = pb.PauseSessionRequest(session_id=session_id, **fields)
        return (await self.stub.PauseSession(request, timeout=TIMEOUT)).session

    async def stop(self, session_id: str, **fields: Any) -> session_pb2.Session:
        """StopSession."""
        request = pb.StopSessionRequest(session_id=session_id, **fields)
        return (await self.stub.StopSession(request, timeout=TIMEOUT)).session

    async def end(self, session_id: str, **fields: Any) -> session_pb2.Session:
        """EndSession."""
        request = pb.EndSessionRequest(session_id=session_id, **fields)
        return (await self.stub.EndSession(request, timeout=TIMEOUT)).session

    async def undelete(self, session_id: str, **fields: Any) -> session_pb2.Session:
        """UndeleteSession."""
        request = pb.UndeleteSessionRequest(session_id=session_id, **fields)
        return (await self.stub.UndeleteSession(request, timeout=TIMEOUT)).session

    async def resume(
        self, session_id: str, **fields: Any
    ) -> session_service_pb2.ResumeSessionResponse:
        """ResumeSession."""
        request = pb.ResumeSessionRequest(session_id=session_id, **fields)
        return await self.stub.ResumeSession(request, timeout=TIMEOUT)

    async def get(self, session_id: str) -> session_pb2.Session:
        """GetSession."""
        request = pb.GetSessionRequest(session_id=session_id)
        return (await self.stub.GetSession(request, timeout=TIMEOUT)).session

    async def decisions(self, session_id: str) -> list[session_pb2.Decision]:
        """The session's decisions, newest first."""
        request = pb.ListDecisionsRequest(session_id=session_id)
        return list((await self.stub.ListDecisions(request, timeout=TIMEOUT)).decisions)


@dataclass
class World:
    """The emulator, and replicas that share one database and one container_service."""

    emulator: Emulator
    admin: Admin
    replicas: list[Replica]
    http: httpx.AsyncClient
    marks: list[int] = field(default_factory=list)

    @property
    def one(self) -> Replica:
        """The first replica."""
        return self.replicas[0]

    @property
    def two(self) -> Replica:
        """The second replica."""
        return self.replicas[1]

    async def counter(self, session: session_pb2.Session, path: str = "/") -> str:
        """The answer of the session's counter: its count."""
        url = httpx.URL(session.container.url)
        host = url.netloc.decode()
        answer = await self.http.get(
            url.copy_with(host="127.0.0.1", path=path), headers={"host": host}
        )
        answer.raise_for_status()
        return answer.text.strip()

    async def click_twice(self, session: session_pb2.Session) -> None:
        """Count from 0 to 2."""
        assert await self.counter(session, "/click") == "1"
        assert await self.counter(session, "/click") == "2"

    async def crash(self, session: session_pb2.Session) -> None:
        """Kill the session's application; the provider restarts the machine by itself."""
        before = await self._started(session)
        await self._fly("POST", session, "/signal", {"signal": "SIGKILL"})

        async def restarted() -> bool:
            return await self._started(session) > before

        assert await eventually(restarted)

    async def suspend_behind_our_back(self, session: session_pb2.Session) -> None:
        """Suspend the machine as the provider's own proxy would."""
        await self._fly("POST", session, "/suspend", None)
        await self._fly("GET", session, "/wait?state=suspended&timeout=30", None)

    async def destroy_behind_our_back(self, session: session_pb2.Session) -> None:
        """Destroy the machine as an operator would."""
        await self._fly("DELETE", session, "?force=true", None)
        await self._fly("GET", session, "/wait?state=destroyed&timeout=30", None)

    async def free_lease(self, session: session_pb2.Session) -> None:
        """Release the machine's lease, as if it had run out; there may be none any more."""
        container = session.container
        url = f"{self.emulator.api_url}/v1/apps/{container.app}/machines/{container.container_id}"
        headers = {"authorization": f"Bearer {TOKEN}"}
        held = await self.http.get(f"{url}/lease", headers=headers)
        if held.is_success:
            nonce = {"fly-machine-lease-nonce": held.json()["data"]["nonce"]}
            (await self.http.delete(f"{url}/lease", headers=headers | nonce)).raise_for_status()

    async def in_guest(self, session: session_pb2.Session, *command: str) -> str:
        """The standard output of a command in the session's machine."""
        ran = await self._fly("POST", session, "/exec", {"command": list(command)})
        return str(ran["stdout"])

    async def provider_state(self, session: session_pb2.Session) -> str:
        """The machine's state, in the provider's words."""
        return str((await self._fly("GET", session, "", None))["state"])

    async def _started(self, session: session_pb2.Session) -> int:
        machine = await self._fly("GET", session, "", None)
        starts = [e["timestamp"] for e in machine["events"] if e["type"] == "start"]
        return max(starts) if machine["state"] == "started" else 0

    # Any: JSON as Fly has it.
    async def _fly(
        self, method: str, session: session_pb2.Session, path: str, body: object
    ) -> dict[str, Any]:
        container = session.container
        url = f"{self.emulator.api_url}/v1/apps/{container.app}/machines/{container.container_id}"
        answer = await self.http.request(
            method, url + path, json=body, headers={"authorization": f"Bearer {TOKEN}"}
        )
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found

    async def committed(self, action: str, session_id: str = "") -> int:
        """How often the provider carried an action out, for all machines or one session's."""
        return sum(
            1
            for done in await self.admin.actions()
            if done.action == action and session_id in ("", done.labels.get("roost_session", ""))
        )

    async def calls(self) -> list[str]:
        """The actions of the requests to the provider since the last call of this method."""
        after = self.marks[-1] if self.marks else 0
        seen = await self.admin.requests(after)
        if seen:
            self.marks.append(seen[-1].sequence)
        return [request.action for request in seen if not request.action.startswith("app_")]

    async def until_live(self, user_id: str) -> session_pb2.Session:
        """Wait for a live session of the user."""

        async def read() -> session_pb2.Session | None:
            request = pb.FindLiveSessionRequest(key=key(user_id))
            try:
                return (await self.one.stub.FindLiveSession(request, timeout=TIMEOUT)).session
            except grpc.aio.AioRpcError:
                return None

        return await _found(read)

    async def until_state(
        self, session_id: str, state: session_pb2.Session.State.ValueType
    ) -> session_pb2.Session:
        """Wait until the session is in this state."""

        async def read() -> session_pb2.Session | None:
            session = await self.one.get(session_id)
            return session if session.state == state else None

        return await _found(read)


async def _found(read: Callable[[], Awaitable[session_pb2.Session | None]]) -> session_pb2.Session:
    """Repeat the read until it returns a session."""
    found: session_pb2.Session | None = await eventually(read)
    assert found is not None, "no such session in time"
    return found


def session_config(database_url: str, container_target: str, proxy_url: str, **more: Any) -> Config:
    """A replica's configuration: a free port, and times far from what a busy machine takes. Any:
    fields of every type.

    Tests run passes themselves, and a replica none of its own: one would come between two steps of
    a test that takes longer than usual. A test that sets one of `PASSES` has them all.
    """
    proxy = httpx.URL(proxy_url)
    passes = any(name in more for name in PASSES)
    values: dict[str, Any] = {
        "database_url": database_url,
        "listen": "127.0.0.1:0",
        "container_target": container_target,
        "app": APP,
        "url_template": f"http://{{container_id}}.{{app}}.localhost:{proxy.port}/",
        "default_image": IMAGE,
        "lag_window": LAG_WINDOW,
        "freshness_window": timedelta(minutes=10),
        "lease": timedelta(seconds=10),
        "start_budget": timedelta(seconds=30),
        "lame_duck": 0.0,
        "grace": 2.0,
        "pool_size": 8,
        # The template database is migrated. Tests that start processes check that a start migrates.
        "migrate": False,
        "quiet": timedelta(0 if passes else 1),
        **dict.fromkeys(PASSES, timedelta(hours=1)),
    }
    return Config(**values | more)


@asynccontextmanager
async def replica(config: Config, connect: Connect = GrpcContainers) -> AsyncGenerator[Replica]:
    """Run a replica, and connect a client to it. `connect`: as for `serve`."""
    async with (
        serve_sessions(config, connect) as running,
        grpc.aio.insecure_channel(running.target) as channel,
    ):
        yield Replica(running, SessionServiceStub(channel), channel)


@asynccontextmanager
async def world(
    emulator: Emulator, database_url: str, replicas: int = 2, **more: Any
) -> AsyncGenerator[World]:
    """Run container_service and replicas over an emulator without rate limits.

    Any: fields of the replicas' configuration, and `connect`, as for `serve`.
    """
    connect: Connect = more.pop("connect", GrpcContainers)
    async with AsyncExitStack() as stack:
        # A short grace: the replicas, its only clients, have closed before it does.
        unpaced = config_for(emulator, fly_rate_share=UNPACED, grace=0.1)
        containers = await stack.enter_async_context(serve_containers(unpaced))
        admin = await stack.enter_async_context(Admin(emulator.api_url))
        http = await stack.enter_async_context(
            httpx.AsyncClient(
                trust_env=False, verify=False, timeout=TIMEOUT, limits=FRESH_CONNECTIONS
            )
        )
        config = session_config(database_url, containers.target, emulator.proxy_url, **more)
        running = [
            await stack.enter_async_context(replica(config, connect)) for _ in range(replicas)
        ]
        yield World(emulator, admin, running, http)


def request_id() -> str:
    """A new request id."""
    return str(uuid4())


def spec(**fields: Any) -> container_pb.ContainerSpec:
    """The counter's spec and further fields. Any: fields of every type."""
    return container_pb.ContainerSpec(image=IMAGE, **fields)
