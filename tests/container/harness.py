"""Shared by the tests: a service over a real emulator, in this process or another, and errors."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import httpx
from google.rpc import error_details_pb2, status_pb2

from container_service.config import Config
from container_service.main import serve
from local.fly.admin import Admin
from roost.container.v1 import container_service_pb2 as pb
from roost.container.v1 import container_service_pb2_grpc as rpc
from tests.eventually import eventually

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from local.fly.emulator import Emulator

#: Longest time, in s, that a call may take. Only a hang takes so long.
LONGEST = 30.0
TOKEN = "a-token-for-tests"
APP = "birds"
LAG_WINDOW = 0.2
#: A share of Fly's rates for an emulator without rate limits. At Fly's one create a second the ten
#: sessions of a test would take eight seconds.
UNPACED = 1000.0


@dataclass(frozen=True)
class Failure:
    """The status of a failed call, its details unpacked."""

    code: grpc.StatusCode
    message: str
    reason: str = ""
    domain: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    retry_seconds: float | None = None
    fields: tuple[str, ...] = ()


def read_failure(error: grpc.aio.AioRpcError) -> Failure:
    """Unpack the status of an error."""
    trailers = dict(error.trailing_metadata() or ())
    found: dict[str, Any] = {}
    status = status_pb2.Status()
    status.ParseFromString(bytes(trailers.get("grpc-status-details-bin", b"")))
    for detail in status.details:
        info, retry, bad = (
            error_details_pb2.ErrorInfo(),
            error_details_pb2.RetryInfo(),
            error_details_pb2.BadRequest(),
        )
        if detail.Unpack(info):
            found |= {"reason": info.reason, "domain": info.domain, "metadata": dict(info.metadata)}
        elif detail.Unpack(retry):
            found["retry_seconds"] = retry.retry_delay.ToTimedelta().total_seconds()
        elif detail.Unpack(bad):
            found["fields"] = tuple(violation.field for violation in bad.field_violations)
    return Failure(error.code(), error.details() or "", **found)


async def failing(call: Awaitable[Any]) -> Failure:
    """Await a call that must fail; return its failure."""
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        return read_failure(error)
    raise AssertionError(f"expected a failure, got {answer}")


@dataclass(frozen=True)
class Service:
    """A running service over a running emulator, and helpers for both."""

    target: str
    stub: rpc.ContainerServiceStub
    channel: grpc.aio.Channel
    admin: Admin
    emulator: Emulator

    async def create(
        self, name: str = "roost-wren-1", image: str = "roost/base", **spec: Any
    ) -> str:
        """Create a container with this spec, wait until it runs, and return its id."""
        request = pb.CreateContainerRequest(name=name, spec=pb.ContainerSpec(image=image, **spec))
        created = await self.stub.CreateContainer(request, timeout=30)
        container_id: str = created.container.container_id
        await self.stub.WaitContainer(
            pb.WaitContainerRequest(container_id=container_id), timeout=30
        )
        return container_id

    async def state(self, container_id: str) -> pb.ContainerState.ValueType:
        """Read the state of a container."""
        request = pb.GetContainerRequest(container_id=container_id)
        return (await self.stub.GetContainer(request, timeout=30)).container.state

    async def requests(self, after: int = 0) -> list[str]:
        """The actions of the provider calls after a sequence number, without those on apps."""
        seen = await self.admin.requests(after)
        return [request.action for request in seen if not request.action.startswith("app_")]

    async def asked(self, action: str) -> bool:
        """Whether the provider has received such a call."""
        return action in await self.requests()

    async def mark(self) -> int:
        """The sequence number of the newest provider call."""
        seen = await self.admin.requests()
        return seen[-1].sequence if seen else 0

    async def committed(self, action: str) -> int:
        """How often the provider has carried out an action."""
        return sum(1 for done in await self.admin.actions() if done.action == action)


def config_for(emulator: Emulator, **changes: Any) -> Config:
    """The configuration of a service over an emulator."""
    proxy_port = httpx.URL(emulator.proxy_url).port
    settings: dict[str, Any] = {
        "fly_token": TOKEN,
        "url_template": f"http://{{container_id}}.{{app}}.localhost:{proxy_port}",
        "listen": "127.0.0.1:0",
        "fly_base_url": emulator.api_url,
        "fly_app": APP,
        "lag_window": LAG_WINDOW,
        "lame_duck": 0.0,
        "grace": 1.0,
    }
    return Config(**settings | changes)


@asynccontextmanager
async def serving(emulator: Emulator, **changes: Any) -> AsyncGenerator[Service]:
    """Run a service over an emulator in this process."""
    async with (
        serve(config_for(emulator, **changes)) as running,
        Admin(emulator.api_url) as admin,
        grpc.aio.insecure_channel(running.target) as channel,
    ):
        stub = rpc.ContainerServiceStub(channel)
        yield Service(running.target, stub, channel, admin, emulator)


async def fired(service: Service, fault_id: str) -> None:
    """Wait until a fault has fired."""

    async def has() -> bool:
        return await service.admin.fired(fault_id) > 0

    await until(has)


async def until(check: Callable[[], Awaitable[bool]], interval: float = 0.02) -> None:
    """Poll until the check is true."""
    done: bool = await eventually(check, interval=interval)
    assert done


def http_to(base_url: str, **headers: str) -> httpx.AsyncClient:
    """A client of the emulator's API or proxy."""
    return httpx.AsyncClient(
        base_url=base_url, trust_env=False, verify=False, timeout=LONGEST, headers=headers
    )


async def make_app(emulator: Emulator, name: str = APP) -> None:
    """Create an app."""
    async with http_to(emulator.api_url) as client:
        body = {"app_name": name, "org_slug": "personal"}
        headers = {"authorization": f"Bearer {TOKEN}"}
        (await client.post("/v1/apps", json=body, headers=headers)).raise_for_status()


ENV = {
    "PATH": os.environ["PATH"],
    "FLY_API_TOKEN": TOKEN,
    "ROOST_FLY_APP": APP,
    "ROOST_LAME_DUCK": "0",
}


async def launch(*arguments: str, **env: str) -> Process:
    """Start `python -m container_service` with this environment."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "container_service", *arguments),
        env=ENV | env,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


@asynccontextmanager
async def running(emulator: Emulator, **env: str) -> AsyncGenerator[tuple[Process, str]]:
    """Run a service over an emulator as a process; yield it and its address."""
    process = await launch(
        FLY_FLAPS_BASE_URL=emulator.api_url, ROOST_CONTAINER_LISTEN="127.0.0.1:0", **env
    )
    assert process.stderr is not None
    try:
        line = ""
        while not (found := re.search(r"Serving on (\S+)", line)):
            line = (await asyncio.wait_for(process.stderr.readline(), LONGEST)).decode()
            assert line, "the process ended before it served"
        yield process, found.group(1)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
