"""What the session tests share: replicas over one container_service and one emulator."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import grpc.aio
import httpx

from container_service.main import serve as serve_containers
from local.fly.admin import Admin
from roost.container.v1 import container_service_pb2 as container_pb
from roost.session.v1 import session_pb2, session_service_pb2
from roost.session.v1.session_service_pb2_grpc import SessionServiceStub
from session_service.config import Config
from session_service.main import Running
from session_service.main import serve as serve_sessions
from tests.container.harness import APP, TOKEN, UNPACED, config_for
from tests.eventually import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from local.fly.emulator import Emulator

pb = session_service_pb2
IMAGE = "roost/counter"
LAG_WINDOW = timedelta(seconds=0.2)
#: One call, in s: more than anything here should take.
TIMEOUT = 20.0


def key(user_id: str = "wren", slot: str = "") -> session_pb2.SessionKey:
    """A key; users tell tests' sessions apart."""
    return session_pb2.SessionKey(project_id="nest", user_id=user_id, slot=slot)


@dataclass
class Replica:
    """A running session_service, and a client's view of it."""

    running: Running
    stub: SessionServiceStub
    channel: grpc.aio.Channel

    async def start(
        self, user_id: str = "wren", **fields: Any
    ) -> session_service_pb2.StartSessionResponse:
        """StartSession. Any: whatever fields a test gives."""
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
        """What the session's counter shows."""
        url = httpx.URL(session.container.url)
        host = url.netloc.decode()
        answer = await self.http.get(
            url.copy_with(host="127.0.0.1", path=path), headers={"host": host}
        )
        answer.raise_for_status()
        return answer.text.strip()

    async def click_twice(self, session: session_pb2.Session) -> None:
        """Make the counter 2."""
        assert await self.counter(session, "/click") == "1"
        assert await self.counter(session, "/click") == "2"

    async def crash(self, session: session_pb2.Session) -> None:
        """Let the session's machine die and start again by itself."""
        before = await self._started(session)
        await self._fly("POST", session, "/signal", {"signal": "SIGKILL"})

        async def restarted() -> bool:
            return await self._started(session) > before

        assert await eventually(restarted)

    async def suspend_behind_our_back(self, session: session_pb2.Session) -> None:
        """Suspend the machine as the provider's own proxy would."""
        await self._fly("POST", session, "/suspend", None)
        await self._fly("GET", session, "/wait?state=suspended&timeout=5", None)

    async def destroy_behind_our_back(self, session: session_pb2.Session) -> None:
        """Destroy the machine as an operator would."""
        await self._fly("DELETE", session, "?force=true", None)
        await self._fly("GET", session, "/wait?state=destroyed&timeout=5", None)

    async def in_guest(self, session: session_pb2.Session, *command: str) -> str:
        """What the command prints, run in the session's machine."""
        ran = await self._fly("POST", session, "/exec", {"command": list(command)})
        return str(ran["stdout"])

    async def provider_state(self, session: session_pb2.Session) -> str:
        """The machine's state at the provider, in its own words."""
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
        """How often the provider really did something, with any machine or one session's."""
        return sum(
            1
            for done in await self.admin.actions()
            if done.action == action and session_id in ("", done.labels.get("roost_session", ""))
        )

    async def calls(self) -> list[str]:
        """What the provider was asked since the last time this was asked."""
        after = self.marks[-1] if self.marks else 0
        seen = await self.admin.requests(after)
        if seen:
            self.marks.append(seen[-1].sequence)
        return [request.action for request in seen if not request.action.startswith("app_")]

    async def until_live(self, user_id: str) -> session_pb2.Session:
        """The user's live session once there is one."""

        async def look() -> session_pb2.Session | None:
            request = pb.FindLiveSessionRequest(key=key(user_id))
            try:
                return (await self.one.stub.FindLiveSession(request, timeout=TIMEOUT)).session
            except grpc.aio.AioRpcError:
                return None

        return await _found(look)

    async def until_state(
        self, session_id: str, state: session_pb2.Session.State.ValueType
    ) -> session_pb2.Session:
        """The session once it is in this state."""

        async def look() -> session_pb2.Session | None:
            session = await self.one.get(session_id)
            return session if session.state == state else None

        return await _found(look)


async def _found(look: Callable[[], Awaitable[session_pb2.Session | None]]) -> session_pb2.Session:
    """What the look gives once it gives something."""
    found: session_pb2.Session | None = await eventually(look)
    assert found is not None, "it did not come to be in time"
    return found


def session_config(database_url: str, container_target: str, proxy_url: str, **more: Any) -> Config:
    """A replica's configuration: quick, on a free port. Any: fields of every type."""
    proxy = httpx.URL(proxy_url)
    values: dict[str, Any] = {
        "database_url": database_url,
        "listen": "127.0.0.1:0",
        "container_target": container_target,
        "app": APP,
        "url_template": f"http://{{container_id}}.{{app}}.localhost:{proxy.port}/",
        "default_image": IMAGE,
        "lag_window": LAG_WINDOW,
        "lease": timedelta(seconds=2),
        "start_budget": timedelta(seconds=15),
        "grace": 2.0,
        "pool_size": 8,
        # The template has been; processes, which begin as usual, see to it that a start migrates.
        "migrate": False,
        # Driven by the tests that are about them.
        "keeper_interval": timedelta(hours=1),
        "sweep_interval": timedelta(hours=1),
    }
    return Config(**values | more)


@asynccontextmanager
async def replica(config: Config) -> AsyncGenerator[Replica]:
    """Run a replica, and talk to it."""
    async with (
        serve_sessions(config) as running,
        grpc.aio.insecure_channel(running.target) as channel,
    ):
        yield Replica(running, SessionServiceStub(channel), channel)


@asynccontextmanager
async def world(
    emulator: Emulator, database_url: str, replicas: int = 2, **more: Any
) -> AsyncGenerator[World]:
    """Run container_service and replicas over an emulator without rate limits."""
    async with AsyncExitStack() as stack:
        # Nobody is left to answer when it ends: the replicas have gone before.
        unpaced = config_for(emulator, fly_rate_share=UNPACED, grace=0.1)
        containers = await stack.enter_async_context(serve_containers(unpaced))
        admin = await stack.enter_async_context(Admin(emulator.api_url))
        http = await stack.enter_async_context(
            httpx.AsyncClient(trust_env=False, verify=False, timeout=TIMEOUT)
        )
        config = session_config(database_url, containers.target, emulator.proxy_url, **more)
        running = [await stack.enter_async_context(replica(config)) for _ in range(replicas)]
        yield World(emulator, admin, running, http)


def request_id() -> str:
    """A new request id."""
    return str(uuid4())


def spec(**fields: Any) -> container_pb.ContainerSpec:
    """The counter's spec, with more. Any: fields of every type."""
    return container_pb.ContainerSpec(image=IMAGE, **fields)
