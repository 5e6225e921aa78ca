"""Storms under Fly's rate limits: many starts at once, and an outage in the middle of them.

ROOST_STORM_SIZE is the number of sessions of one user that resume at once; try 500.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import grpc.aio
import pytest

from container_service.containers.outages import OUTAGE_SECONDS
from container_service.main import serve as serve_containers
from local.fly.admin import Admin
from local.fly.emulator import serve
from local.fly.settings import Settings
from local.ports import free_port
from roost.session.v1 import session_pb2 as pb
from roost.session.v1 import session_service_pb2 as rpc_pb
from roost.session.v1.session_service_pb2_grpc import SessionServiceStub
from session_service import loops
from tests.agent.processes import service
from tests.container.harness import TOKEN, UNPACED, config_for, failing, make_app, read_failure
from tests.eventually import eventually
from tests.session.database_faults import fronted
from tests.session.harness import Replica, key, replica, request_id, session_config, world
from tests.session.test_hard_cases import SILENT, rows

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
    from pathlib import Path

    from local.fly.emulator import Emulator

T = TypeVar("T")

SIZE = int(os.environ.get("ROOST_STORM_SIZE", "60"))
#: The timeout of one call, in s: the longest duration of a transition.
PATIENCE = 120.0
#: How often the process is seen to go on, and what counts as standing still, in s.
TICK_SECONDS, STOP_SECONDS = 0.05, 0.5
AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)


@dataclass
class StormRig:
    """Two replicas over a container_service that obeys Fly's limits, and an unlimited builder."""

    admin: Admin
    replicas: list[Replica]
    builder: Replica
    settings: Settings
    longest_stop: float = 0.0
    """How long this process stood still at most, in s."""

    async def build(self, keys: Sequence[pb.SessionKey]) -> dict[str, pb.Session]:
        """Suspended sessions by key, created as fast as the machine allows."""
        built: dict[str, pb.Session] = {}
        slots = asyncio.Semaphore(16)

        async def one(where: pb.SessionKey) -> None:
            async with slots:
                started = await until_started(self.builder, where, Counter())
                session_id = started.session.session_id
                built[name(where)] = await repeated(lambda: self.builder.stop(session_id))

        await asyncio.gather(*(one(where) for where in keys))
        assert {session.state for session in built.values()} == {pb.Session.STATE_PAUSED}
        return built

    async def limits_on(self) -> int:
        """Put Fly's limits in force; return the sequence number of the last request before."""
        # The setting is frozen for the emulator; only these tests change it while it runs.
        object.__setattr__(self.settings, "limits", True)
        seen = await self.admin.requests()
        return seen[-1].sequence if seen else 0

    async def statuses(self, after: int, *actions: str) -> Counter[int | None]:
        """How often Fly answered with each status to these actions, or to all."""
        seen = await self.admin.requests(after)
        return Counter(r.status for r in seen if not actions or r.action in actions)

    async def check_pace(self, after: int, *actions: str) -> None:
        """Assert that Fly rejected none of these calls for their rate, unless the machine stood
        still: calls that were sent before then arrive together with those that were sent after.
        """
        rejected = (await self.statuses(after, *actions))[429]
        assert not rejected or self.longest_stop > STOP_SECONDS, f"{rejected} calls were rejected"

    async def watch_stops(self) -> None:
        """Measure for how long this process stands still."""
        last = time.monotonic()
        while True:
            await asyncio.sleep(TICK_SECONDS)
            now = time.monotonic()
            self.longest_stop = max(self.longest_stop, now - last - TICK_SECONDS)
            last = now

    async def committed(self, action: str) -> Counter[str]:
        """How often the provider did this for each session."""
        done = await self.admin.actions()
        return Counter(d.labels.get("roost_session", "") for d in done if d.action == action)


def name(where: pb.SessionKey) -> str:
    return f"{where.user_id}/{where.slot}"


async def start(
    replica_: Replica, where: pb.SessionKey, once: str = ""
) -> rpc_pb.StartSessionResponse:
    """StartSession with a timeout of PATIENCE."""
    request = rpc_pb.StartSessionRequest(key=where, request_id=once)
    return await replica_.stub.StartSession(request, timeout=PATIENCE)


async def until_started(
    replica_: Replica, where: pb.SessionKey, refusals: Counter[str]
) -> rpc_pb.StartSessionResponse:
    """Start, repeating the call when a failure says so."""
    once = request_id()
    return await repeated(lambda: start(replica_, where, once), refusals)


async def repeated(call: Callable[[], Awaitable[T]], refusals: Counter[str] | None = None) -> T:
    """Repeat a call after the delay that each failure gives, and count the failures."""
    while True:
        try:
            return await call()
        except grpc.aio.AioRpcError as error:
            failure = read_failure(error)
            if failure.reason == "SUSPEND_FAILED_STILL_RUNNING":
                continue  # a stop that the machine did not see in time
            assert failure.code in AGAIN, failure
            assert failure.retry_seconds, failure
            if refusals is not None:
                refusals[failure.reason] += 1
            await asyncio.sleep(failure.retry_seconds)


@asynccontextmanager
async def storm_rig(tmp_path: Path, database_url: str, **more: Any) -> AsyncGenerator[StormRig]:
    """Two replicas over one container_service and an emulator. Any: fields of every type."""
    settings = Settings(
        data=tmp_path / "fly",
        port=0,
        proxy_port=0,
        token=TOKEN,
        create_ms=5,
        start_ms=5,
        resume_ms=100,
        suspend_ms=20,
        destroy_ms=5,
        limits=False,
    )
    async with AsyncExitStack() as stack:
        emulator = await stack.enter_async_context(serve(settings))
        await make_app(emulator)
        admin = await stack.enter_async_context(Admin(emulator.api_url))
        hasty = config_for(emulator, fly_rate_share=UNPACED)
        unpaced = await stack.enter_async_context(serve_containers(hasty))
        containers = await stack.enter_async_context(serve_containers(config_for(emulator)))
        values: dict[str, Any] = {
            # A guest that only sleeps, and no request to its preview: only Fly's API is under load.
            "default_image": "roost/base",
            "url_template": "",
            "start_budget": timedelta(seconds=PATIENCE),
            "lease": timedelta(seconds=60),
        }

        def config(target: str, **fields: Any) -> Any:
            return session_config(database_url, target, emulator.proxy_url, **values | fields)

        builder = await stack.enter_async_context(replica(config(unpaced.target)))
        replicas = [
            await stack.enter_async_context(replica(config(containers.target, **more)))
            for _ in range(2)
        ]
        rig = StormRig(admin, replicas, builder, settings)
        watching = asyncio.create_task(rig.watch_stops())
        stack.push_async_callback(loops.end, {watching})
        yield rig


@pytest.mark.timeout(600)
async def test_a_storm_of_resumes_of_one_user_does_not_delay_the_others(
    tmp_path: Path, database_url: str
) -> None:
    """No 429, one outcome each, and a late user waits only for its fair share of the queue."""
    slots = max(4, SIZE // 64)
    async with storm_rig(tmp_path, database_url, concurrent_starts=slots) as rig:
        storm = [key("storm", str(n)) for n in range(SIZE)]
        others = [key(f"wren{n}") for n in range(5)]
        built = await rig.build([*storm, *others])
        mark = await rig.limits_on()
        resumed: list[tuple[str, float]] = []
        began = time.monotonic()

        async def wake(number: int, where: pb.SessionKey) -> rpc_pb.StartSessionResponse:
            answer = await start(rig.replicas[number % 2], where, request_id())
            resumed.append((name(where), time.monotonic() - began))
            return answer

        calls = [asyncio.create_task(wake(n, where)) for n, where in enumerate(storm)]

        async def all_wait() -> bool:
            """Whether the whole storm is queued, so that the measurement covers the queue alone."""
            found = await rows(database_url, "SELECT 1 FROM sessions WHERE state = 'PAUSED'")
            return len(found) == len(others)

        await eventually(all_wait, timeout=PATIENCE)
        late, ahead = time.monotonic() - began, len(resumed)
        calls += [asyncio.create_task(wake(n, where)) for n, where in enumerate(others)]
        answers = await asyncio.gather(*calls)

        for answer in answers:
            assert answer.outcome == pb.START_OUTCOME_RESUMED
            assert answer.continuity == pb.CONTINUITY_MEMORY
            assert answer.continuity_verified
        await rig.check_pace(mark)
        assert {n for n, _ in resumed} == set(built)
        starts = await rig.committed("start")
        for session in built.values():
            assert starts[session.session_id] == 1
            decisions = await rig.replicas[0].decisions(session.session_id)
            outcomes = [d.outcome for d in decisions if d.outcome]
            assert outcomes == [pb.START_OUTCOME_RESUMED, pb.START_OUTCOME_CREATED]

        times = dict(resumed)
        waits = [times[name(where)] - late for where in others]
        order = [n for n, _ in resumed]
        behind = max(order.index(name(where)) for where in others) + 1 - ahead - len(others)
        print(
            f"{SIZE} + {len(others)} sessions, 2 x {slots} slots: all resumed after"
            f" {resumed[-1][1]:.2f} s; users {late:.2f} s late waited {max(waits):.2f} s at most,"
            f" {behind} of the storm before the last of them"
        )
        # Per replica: those running, then one each of the storm and the others, then those running.
        fair = 2 * (slots + len(others) + 1 + slots)
        # Some of the storm are resumed while the late starts are still being committed.
        assert behind <= fair + SIZE // 10 < SIZE * 0.75


async def test_a_start_during_a_storm_waits_for_few_of_it(database_url: str) -> None:
    """The database slots of starts are fair too, before any start is queued for the provider.

    No start gives an image, so each fails after its first statements. The database is slow, so that
    its connections are scarce. The service runs in a process of its own: in this event loop it
    would have answered all starts before the test sees the first answer.
    """
    size, through = 5 * SIZE, list[str]()
    target = f"127.0.0.1:{free_port()}"
    async with (
        fronted(database_url) as (fault, through_relay),
        service(through_relay, target, ROOST_POOL_SIZE="8"),
        grpc.aio.insecure_channel(target) as channel,
    ):
        stub = SessionServiceStub(channel)
        fault.slow(0.01)

        async def fails(where: pb.SessionKey) -> None:
            request = rpc_pb.StartSessionRequest(key=where)
            failure = await failing(stub.StartSession(request, timeout=PATIENCE))
            while failure.reason == "STORAGE_UNAVAILABLE":
                # The machine stood still for as long as a start waits for the database.
                failure = await failing(stub.StartSession(request, timeout=PATIENCE))
            assert failure.reason == "INVALID_FIELD", failure
            through.append(where.user_id)

        storm = [asyncio.create_task(fails(key("storm", str(n)))) for n in range(size)]
        await asyncio.wait(storm, return_when=asyncio.FIRST_COMPLETED)
        before = len(through)
        await fails(key("wren"))
        ahead = through.index("wren") - before
        print(f"{before} of {size} were answered before the late start, {ahead} more before it")
        await asyncio.gather(*storm)
        assert ahead < (size - before) * 0.75


@pytest.mark.timeout(120)
async def test_a_storm_of_creates_queues_and_none_fails(tmp_path: Path, database_url: str) -> None:
    """Fly lets an app create one machine a second, three at once. Resumes are not delayed by it."""
    async with storm_rig(tmp_path, database_url, concurrent_creates=1) as rig:
        built = await rig.build([key("paused")])
        mark = await rig.limits_on()
        storm = [key("storm", str(n)) for n in range(10)]
        began = time.monotonic()
        calls = [asyncio.create_task(start(rig.replicas[0], where)) for where in storm]
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        late = asyncio.create_task(start(rig.replicas[0], key("wren")))
        resumed = await start(rig.replicas[0], key("paused"))
        assert resumed.outcome == pb.START_OUTCOME_RESUMED
        assert sum(call.done() for call in calls) < len(calls) / 2 + 1
        assert (await late).outcome == pb.START_OUTCOME_CREATED
        assert sum(call.done() for call in calls) < len(calls)
        answers = [await call for call in calls]
        assert {answer.outcome for answer in answers} == {pb.START_OUTCOME_CREATED}
        lasted = time.monotonic() - began
        print(f"{len(calls) + 1} creates in {lasted:.1f} s; the late one was not the last")
        assert lasted >= len(calls) + 1 - 3 - 1
        await rig.check_pace(mark, "create")
        created = await rig.committed("create")
        assert set(created.values()) == {1}
        assert len(created) == len(storm) + 1 + len(built)


@pytest.mark.timeout(120)
async def test_creates_that_cannot_start_in_time_fail_with_a_delay(
    tmp_path: Path, database_url: str
) -> None:
    """RESOURCE_EXHAUSTED with a delay; repeating the call creates the session."""
    budget = timedelta(seconds=4)
    async with storm_rig(tmp_path, database_url, start_budget=budget) as rig:
        await rig.limits_on()
        refusals: Counter[str] = Counter()
        storm = [key("storm", str(n)) for n in range(16)]
        calls = (
            until_started(rig.replicas[n % 2], where, refusals) for n, where in enumerate(storm)
        )
        answers = await asyncio.gather(*calls)
        print(f"16 creates with 4 s each: failed {dict(refusals)}")
        assert {answer.outcome for answer in answers} == {pb.START_OUTCOME_CREATED}
        # A create that gets its slot late is cut off while it calls the provider, more often on a
        # slower machine; but most fail before they call it.
        assert set(refusals) <= {"PROVIDER_RATE_LIMITED", "PROVIDER_UNAVAILABLE"}
        assert refusals["PROVIDER_RATE_LIMITED"] > 2 * refusals["PROVIDER_UNAVAILABLE"]
        created = await rig.committed("create")
        assert set(created.values()) == {1}
        assert len(created) == len(storm)


async def test_a_silent_preview_of_a_created_session_delays_no_other_start(
    emulator: Emulator, database_url: str
) -> None:
    """The only slot is given back while a start waits for its application alone."""
    budget = timedelta(seconds=10)
    async with world(emulator, database_url, 1, concurrent_starts=1, start_budget=budget) as roost:
        silent = asyncio.create_task(failing(roost.one.start("crow", spec=SILENT)))
        stuck = await roost.until_live("crow")
        assert (await roost.one.start("wren")).outcome == pb.START_OUTCOME_CREATED
        assert (await roost.one.get(stuck.session_id)).state == pb.Session.STATE_STARTING
        assert not silent.done()
        assert (await silent).reason == "PROVIDER_UNAVAILABLE"


async def test_a_silent_preview_of_a_resumed_session_delays_no_other_start(
    emulator: Emulator, database_url: str
) -> None:
    """The second machine is started while the first one's preview is still polled."""
    async with world(emulator, database_url, 1) as roost:
        ids = {}
        for user_id in ("crow", "wren"):
            ids[user_id] = (await roost.one.start(user_id)).session.session_id
            await roost.one.stop(ids[user_id])
        async with AsyncExitStack() as stack:
            containers = await stack.enter_async_context(serve_containers(config_for(emulator)))
            config = session_config(
                database_url,
                containers.target,
                emulator.proxy_url,
                url_template="http://{container_id}.localhost:1/",
                concurrent_starts=1,
                start_budget=timedelta(seconds=10),
            )
            blind = await stack.enter_async_context(replica(config))
            calls = [asyncio.create_task(failing(blind.start(user_id))) for user_id in ids]

            async def both() -> bool:
                return all([await roost.committed("start", each) == 1 for each in ids.values()])

            await eventually(both, timeout=30)
            assert not any(call.done() for call in calls)
            failures = await asyncio.gather(*calls)
            assert {failure.reason for failure in failures} == {"PROVIDER_UNAVAILABLE"}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("lasts", [3.5, pytest.param(8.0, marks=pytest.mark.proof)])
async def test_an_outage_in_the_middle_of_a_storm_costs_few_calls(
    tmp_path: Path, database_url: str, caplog: pytest.LogCaptureFixture, lasts: float
) -> None:
    """The circuit opens and all sessions start afterwards. Callers see no outage that is shorter
    than a start's patience; in a longer one they get an error with a delay.
    """
    size = max(24, SIZE // 2)
    async with storm_rig(tmp_path, database_url, concurrent_starts=8) as rig:
        storm = [key("storm", str(n)) for n in range(size)]
        built = await rig.build(storm)
        mark = await rig.limits_on()
        refusals: Counter[str] = Counter()
        calls = [
            asyncio.create_task(until_started(rig.replicas[n % 2], where, refusals))
            for n, where in enumerate(storm)
        ]
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        await rig.admin.set_fault("unavailable", for_ms=int(1000 * lasts))
        began = time.monotonic()
        await asyncio.gather(*calls)
        statuses = await rig.statuses(mark)
        print(
            f"{size} sessions, an outage of {lasts} s: {statuses[503]} calls were sent in it,"
            f" callers failed {dict(refusals)};"
            f" all had started {time.monotonic() - began - lasts:.1f} s after"
        )
        assert "circuit_opened" in {vars(r).get("action") for r in caplog.records}
        closed = [r for r in caplog.records if vars(r).get("action") == "circuit_closed"]
        assert closed
        # Longer than it lasted if the machine stood still meanwhile.
        seen = max(vars(r)["silent_s"] for r in closed)
        # The calls in flight when it began, their few retries, and one probe a second.
        assert statuses[503] <= 2 * 8 + 10 + 5 + 5
        await rig.check_pace(mark)
        assert set(refusals) <= ({"PROVIDER_UNAVAILABLE"} if seen > OUTAGE_SECONDS else set())
        assert refusals or lasts < OUTAGE_SECONDS

        # Nothing is lost, created twice or taken for lost, and all memory is verified.
        for number, where in enumerate(storm):
            session = (await start(rig.replicas[number % 2], where)).session
            assert session.session_id == built[name(where)].session_id
            assert session.generation == 1
            assert session.state == pb.Session.STATE_ACTIVE
        assert set((await rig.committed("create")).values()) == {1}
        answers = [await start(rig.builder, where) for where in storm]
        assert {answer.continuity for answer in answers} == {pb.CONTINUITY_MEMORY}
