"""A pass is bounded work: 5,000 rows and 5,000 machines in a listing, in time and in memory."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from contextlib import asynccontextmanager
from datetime import timedelta
from time import monotonic
from typing import TYPE_CHECKING, Any
from uuid import UUID

import grpc
import grpc.aio
import pytest

from roost.container.v1 import container_service_pb2 as container_pb
from session_service import wiring
from session_service.clients.containers import GrpcContainers
from session_service.config import Config
from session_service.domain.session import ContainerState
from session_service.domain.survey import Verdict
from session_service.lifecycle import sweeper as sweeping
from session_service.ports import Address
from session_service.storage import surveying
from session_service.storage.database import Database
from tests.property.memory_containers import Cloud, Machine
from tests.property.replica import INSTALLATION, MortalDatabase, Replica

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from session_service.lifecycle.sweeper import Sweeper, Swept

ROWS = 5000
APP = "birds"
#: A pass over so many may take so much; a tenth of it is usual.
SECONDS = 30.0
BYTES = 40 * 1024 * 1024
#: Of ten sessions six run, three are suspended, and one is over.
STATES = "(ARRAY['ACTIVE','ACTIVE','ACTIVE','ACTIVE','ACTIVE','ACTIVE','PAUSED','PAUSED','PAUSED',"
STATES += "'ENDED'])[n %% 10 + 1]"
FILL = (
    f"""
    INSERT INTO sessions (session_id, tenant, project_id, user_id, slot, state, generation, epoch,
        pause_depth, spec, fingerprint, policy, create_time, change_time, verified_at)
    SELECT md5('s' || n)::uuid, 'default', 'nest', 'u' || n, 'default', {STATES}, 1, 3,
        CASE WHEN n %% 10 > 5 THEN 'SUSPENDED' END, '{{}}', '', '{{}}',
        now() - interval '2 days', now() - interval '1 day', now() - interval '1 day'
    FROM generate_series(0, %s - 1) AS n""",
    """
    INSERT INTO containers (session_id, generation, name, app, container_id, state, boot_id,
        boot_time, start_time, create_time)
    SELECT md5('s' || n)::uuid, 1, 'roost-' || n, 'birds', 'm' || n, 'STARTED', 'b' || n,
        now() - interval '1 day', now() - interval '1 day', now() - interval '2 days'
    FROM generate_series(0, %s - 1) AS n""",
)


class Counting(Replica):
    """A replica that counts its calls of the provider, by name."""

    def __init__(self, database: MortalDatabase, cloud: Cloud, config: Config) -> None:
        self.calls: Counter[str] = Counter()
        super().__init__(database, cloud, config)

    def _pass(self, name: str, moment: str) -> None:
        if name != "database":
            self.calls[name] += moment == "before"
        super()._pass(name, moment)


@asynccontextmanager
async def counting(url: str, cloud: Cloud) -> AsyncGenerator[Counting]:
    """A replica over a real database and machines in memory."""
    config = Config(database_url=url, app=APP, sweep_min_age=timedelta(0), sweep_passes=1)
    database = MortalDatabase(url, max_size=4)
    async with database:
        replica = Counting(database, cloud, config)
        yield replica
        await replica.settle()


async def filled(url: str) -> Cloud:
    """The rows, and a machine for each, in the state that its session says."""
    cloud = Cloud()
    async with Database(url, max_size=2) as database, database.connection() as connection:
        for statement in FILL:
            await connection.execute(statement.encode(), [ROWS])
        await connection.execute("ANALYZE sessions, containers")
        cursor = await connection.execute(
            "SELECT container_id, session_id, state, boot_time, c.create_time"
            " FROM containers c JOIN sessions s USING (session_id)".replace("state", "s.state")
        )
        for name, session_id, state, boot_time, create_time in await cursor.fetchall():
            running = state == "ACTIVE"
            cloud.machines[name] = Machine(
                Address(APP, name),
                f"roost-{session_id}-1",
                {},
                labels(str(session_id)),
                create_time,
                ContainerState.STARTED if running else ContainerState.SUSPENDED,
                start_time=boot_time,
            )
    return cloud


def labels(session_id: str) -> dict[str, str]:
    """What a machine of the session carries."""
    return {
        "roost_installation": str(INSTALLATION.installation_id),
        "roost_session": session_id,
        "roost_generation": "1",
    }


async def measured(what: str, sweeper: Sweeper) -> Swept:
    """A pass in time, and one like it in memory; both are bounded."""
    began = monotonic()
    swept = await sweeper.act(APP)
    seconds = monotonic() - began
    tracemalloc.start()
    try:
        await sweeper.report(APP)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    print(f"{what}: {seconds:.2f} s, {peak / 1024 / 1024:.1f} MiB at most")
    assert seconds < SECONDS
    assert peak < BYTES
    return swept


@pytest.mark.slow
async def test_a_pass_over_5000_is_bounded(database_url: str) -> None:
    """All as it should be; all not verified; all at rest by themselves; all gone; all orphans."""
    cloud = await filled(database_url)
    async with counting(database_url, cloud) as replica:
        sweeper = replica.wired.background.sweeper
        swept = await measured("3,000 running that were not verified for long", sweeper)
        assert swept.followed[Verdict.VERIFIED] == 3000
        swept = await measured("nothing to do", sweeper)
        assert swept.followed == {Verdict.NOTHING: ROWS}
        assert replica.calls == {"list": 4}

        for machine in cloud.machines.values():
            machine.state = ContainerState.SUSPENDED
        swept = await measured("3,000 found at rest", sweeper)
        assert swept.followed[Verdict.FELL] == 3000
        swept = await sweeper.act(APP)
        assert swept.followed[Verdict.FELL] == 3000 - sweeping.FOLLOW_LIMIT
        assert replica.calls == {"list": 7}

        replica.calls.clear()
        machines = dict(cloud.machines)
        cloud.machines.clear()
        swept = await measured("an empty listing", sweeper)
        assert swept.followed[Verdict.MISSING] >= ROWS - 2 * sweeping.FOLLOW_LIMIT
        assert replica.calls == {"list": 2}, "a listing that is not believed costs no read"

        cloud.machines.update(machines)
        for name, machine in machines.items():
            machine.labels = labels(str(UUID(int=int(name[1:]) + 1)))
            machine.address = Address(APP, f"x{name}")
        cloud.machines = {f"x{name}": machine for name, machine in machines.items()}
        swept = await measured("5,000 orphans", sweeper)
        assert len(swept.orphans) == ROWS
        assert swept.stopped_because
        assert replica.calls == {"list": 4}
        assert not cloud.destroyed


async def test_the_rows_of_a_pass_are_read_by_their_index(database_url: str) -> None:
    """A page at a time, however many there are of other apps, or gone."""
    await filled(database_url)
    async with Database(database_url, max_size=2) as database:
        pages = [len(page) async for page in surveying.tracked(database, APP)]
        assert pages == [surveying.PAGE] * (ROWS // surveying.PAGE)
        async with database.connection() as connection:
            statement = surveying._TRACKED
            params: dict[str, Any] = {**statement.constants, "app": APP, "after": "m4990"}
            cursor = await connection.execute(f"EXPLAIN {statement.sql}".encode(), params)
            plan = "\n".join(row[0] for row in await cursor.fetchall())
    assert "containers_present" in plan, plan


async def large(
    request: container_pb.ListContainersRequest, context: object
) -> container_pb.ListContainersResponse:
    """The listing of an app that is larger than a message usually is."""
    one = container_pb.Container(
        app=APP,
        container_id="148e21a7c57789",
        name=f"roost-{UUID(int=1)}-1",
        labels=labels(str(UUID(int=1))),
        region="iad",
    )
    return container_pb.ListContainersResponse(containers=[one] * 40_000)


async def test_a_listing_beyond_grpcs_own_limit_comes_through() -> None:
    """4 MiB are some 16,000 containers: an app that has more is swept all the same."""
    server = grpc.aio.server()
    service = container_pb.DESCRIPTOR.services_by_name["ContainerService"].full_name
    method = grpc.unary_unary_rpc_method_handler(
        large,
        container_pb.ListContainersRequest.FromString,
        container_pb.ListContainersResponse.SerializeToString,
    )
    handler = grpc.method_handlers_generic_handler(service, {"ListContainers": method})
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    config = Config(database_url="", container_target=f"127.0.0.1:{port}")
    try:
        async with wiring.channel(config) as channel:
            listed = await GrpcContainers(channel).list(APP, {}, timeout=30)
    finally:
        await server.stop(None)
    assert len(listed) == 40_000
