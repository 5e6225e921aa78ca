"""Ten rolling restarts of two replicas under an open load: what their callers see."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import grpc
import httpx
import pytest

from container_service.main import serve as serve_containers
from local.ports import HOST, free_port
from roost.session.v1 import session_service_pb2 as pb
from roost.session.v1.session_service_pb2_grpc import SessionServiceStub
from tests.container.harness import APP, config_for
from tests.eventually import eventually
from tests.service_processes import fork
from tests.session.harness import IMAGE, key
from tests.session.test_process import health

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from local.fly.emulator import Emulator
    from tests.service_processes import Forked

CALLS = 20_000
RATE = 200.0
#: One of so many calls is a start; the others read. Odd: round_robin gives every second call to the
#: same replica, and so with an even number all starts.
STARTS = 11
#: The most calls in flight. A machine that does not keep up with RATE gets fewer calls in a second.
OUTSTANDING = 50
RESTARTS = 10
TIMEOUT = 30.0
LAME_DUCK = 2.0
SERVICE = "roost.session.v1.SessionService"

#: What docs/production.md gives to callers.
SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "healthCheckConfig": {"serviceName": SERVICE},
    "methodConfig": [
        {
            "name": [{"service": SERVICE}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
            },
        }
    ],
}
#: The options of a channel that repeats nothing.
WITHOUT: tuple[tuple[str, Any], ...] = (
    ("grpc.lb_policy_name", "round_robin"),
    ("grpc.enable_retries", 0),
)
WITH: tuple[tuple[str, Any], ...] = (("grpc.service_config", json.dumps(SERVICE_CONFIG)),)


class Process:
    """A replica that is stopped and started again at its address."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.target = f"{HOST}:{free_port()}"
        self._metrics = f"{HOST}:{free_port()}"
        self._environment = {
            **environment,
            "ROOST_SESSION_LISTEN": self.target,
            "ROOST_METRICS_LISTEN": self._metrics,
        }
        self._process: Forked | None = None

    async def start(self) -> None:
        """Start it, and wait until health says that it serves."""
        self._process = await fork("session_service", environment=self._environment)
        line = ""
        while not re.search(r"serving on (\S+)", line):
            line = (await self._process.stderr.readline()).decode()
            assert line, "it ended"
        async with grpc.aio.insecure_channel(self.target) as channel:

            async def serving() -> bool:
                return await health(channel, SERVICE) == 1

            assert await eventually(serving, timeout=TIMEOUT)

    async def until_called(self) -> None:
        """Wait until it has answered a start: the callers have found it."""
        async with httpx.AsyncClient(trust_env=False) as http:

            async def started() -> bool:
                text = (await http.get(f"http://{self._metrics}/metrics", timeout=TIMEOUT)).text
                counts = re.findall(
                    r"^roost_start_duration_seconds_count{.*} (\S+)$", text, re.MULTILINE
                )
                return sum(map(float, counts)) > 0

            assert await eventually(started, timeout=2 * TIMEOUT, interval=0.5)

    async def stop(self) -> None:
        """SIGTERM, and wait for its end."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        assert await self._process.wait() == 0

    async def kill(self) -> None:
        """SIGKILL, unless it has ended."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


@asynccontextmanager
async def two_replicas(
    emulator: Emulator, database_url: str
) -> AsyncGenerator[tuple[Process, Process]]:
    """Two replicas as processes."""
    async with serve_containers(config_for(emulator, grace=0.1)) as containers:
        environment = {
            "PATH": os.environ["PATH"],
            "ROOST_DATABASE_URL": database_url,
            "ROOST_CONTAINER_TARGET": containers.target,
            "ROOST_FLY_APP": APP,
            "ROOST_DEFAULT_IMAGE": IMAGE,
            "ROOST_LOG_LEVEL": "INFO",
            "ROOST_LAME_DUCK": str(LAME_DUCK),
        }
        pair = Process(environment), Process(environment)
        try:
            await asyncio.gather(*(each.start() for each in pair))
            yield pair
        finally:
            await asyncio.gather(*(each.kill() for each in pair))


@dataclass
class Outcome:
    """What the callers saw. `failures`: status and message, and how often."""

    calls: int = 0
    seconds: float = 0.0
    failures: Counter[str] = field(default_factory=Counter)

    def report(self) -> str:
        """The figures, for people."""
        rate = self.calls / self.seconds
        return (
            f"{self.calls} calls, {rate:.0f} in a second, load {os.getloadavg()[0]:.1f}: "
            f"{self.failures.total()} failed {dict(self.failures)}"
        )


async def load(channel: grpc.aio.Channel, done: asyncio.Event) -> Outcome:
    """Send CALLS calls, RATE in a second, whether they are answered or not, and more until `done`.
    A machine that is too slow for that sends fewer in a second.
    """
    stub = SessionServiceStub(channel)
    outcome = Outcome()
    slots = asyncio.Semaphore(OUTSTANDING)

    await stub.StartSession(pb.StartSessionRequest(key=key()), timeout=TIMEOUT)

    async def one(number: int) -> None:
        try:
            if number % STARTS:
                find = pb.FindLiveSessionRequest(key=key())
                await stub.FindLiveSession(find, timeout=TIMEOUT)
            else:
                start = pb.StartSessionRequest(key=key(), request_id=str(uuid4()))
                await stub.StartSession(start, timeout=TIMEOUT)
        except grpc.aio.AioRpcError as error:
            outcome.failures[f"{error.code().name}: {error.details()}"] += 1
        finally:
            slots.release()

    loop = asyncio.get_running_loop()
    began = loop.time()
    async with asyncio.TaskGroup() as calls:
        for number in count():
            if number >= CALLS and done.is_set():
                break
            await slots.acquire()
            pause = began + number / RATE - loop.time()
            if pause > 0:
                await asyncio.sleep(pause)
            calls.create_task(one(number))
            outcome.calls += 1
    outcome.seconds = loop.time() - began
    return outcome


@pytest.mark.proof
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("options", "most"), [(WITH, 0), (WITHOUT, 2)], ids=["with", "without"])
async def test_ten_rolling_restarts_fail_no_call(
    emulator: Emulator, database_url: str, options: tuple[tuple[str, Any], ...], most: int
) -> None:
    """With the service config of the documents; without one two of 20,000 calls at most."""
    async with two_replicas(emulator, database_url) as pair:
        target = "ipv4:" + ",".join(each.target for each in pair)
        async with (
            grpc.aio.insecure_channel(target, options=options) as channel,
            asyncio.TaskGroup() as tasks,
        ):
            done = asyncio.Event()
            loading = tasks.create_task(load(channel, done))
            for number in range(RESTARTS):
                replica = pair[number % 2]
                await replica.stop()
                await replica.start()
                await replica.until_called()
            done.set()
            outcome = await loading
    print(outcome.report())
    assert outcome.failures.total() <= most, outcome.report()
