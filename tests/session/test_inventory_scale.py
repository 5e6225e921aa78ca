"""An inventory pass is bounded in time and memory: 5,000 rows and 5,000 machines in a listing."""

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
from session_service.clients.containers import GrpcContainers
from session_service.config import Config
from session_service.domain.inventory import Verdict
from session_service.domain.session import ContainerState
from session_service.errors import ProviderUnavailable
from session_service.ports import Address
from session_service.reconcile import inventory
from session_service.server import composition
from session_service.storage.database import Database, Statement
from session_service.storage.session import inventory as session_inventory
from tests.database import FILL_SECONDS
from tests.property.memory_containers import Cloud, Machine
from tests.property.replica import INSTALLATION, MortalDatabase, Replica

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from session_service.reconcile.inventory import InventoryCounts, InventoryPass

ROWS = 5000
APP = "birds"
#: The limits of a pass over so many; a tenth of them is usual.
SECONDS = 30.0
BYTES = 40 * 1024 * 1024
#: Of ten sessions six run, three are suspended, and one has ended.
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
    """A replica that counts its provider calls by name."""

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
    """Create the rows, and a machine for each in the state of its session."""
    cloud = Cloud()
    async with (
        Database(url, max_size=2) as database,
        database.connection(FILL_SECONDS) as connection,
    ):
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
    """The labels of the session's machine."""
    return {
        "roost_installation": str(INSTALLATION.installation_id),
        "roost_session": session_id,
        "roost_generation": "1",
    }


async def measured(label: str, inventory_pass: InventoryPass) -> InventoryCounts:
    """Measure the time of a pass and the memory of another one like it; both are bounded."""
    began = monotonic()
    swept = await inventory_pass.act(APP)
    seconds = monotonic() - began
    tracemalloc.start()
    try:
        await inventory_pass.report(APP)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    print(f"{label}: {seconds:.2f} s, {peak / 1024 / 1024:.1f} MiB at most")
    assert seconds < SECONDS
    assert peak < BYTES
    return swept


@pytest.mark.proof
@pytest.mark.slow
async def test_a_pass_over_5000_is_bounded(database_url: str) -> None:
    """No change; all unverified; all paused by the provider; all gone; all orphans."""
    cloud = await filled(database_url)
    async with counting(database_url, cloud) as replica:
        inventory_pass = replica.wired.background.inventory_pass
        swept = await measured("3,000 running that were not verified for long", inventory_pass)
        assert swept.verdicts[Verdict.VERIFIED] == 3000
        swept = await measured("nothing to do", inventory_pass)
        assert swept.verdicts == {Verdict.NOTHING: ROWS}
        assert replica.calls == {"stream": 4}

        for machine in cloud.machines.values():
            machine.state = ContainerState.SUSPENDED
        swept = await measured("3,000 found suspended", inventory_pass)
        assert swept.verdicts[Verdict.FELL] == 3000
        swept = await inventory_pass.act(APP)
        assert swept.verdicts[Verdict.FELL] == 3000 - inventory.DRIFT_LIMIT
        assert replica.calls == {"stream": 7}

        replica.calls.clear()
        machines = dict(cloud.machines)
        cloud.machines.clear()
        swept = await measured("an empty listing", inventory_pass)
        assert swept.verdicts[Verdict.MISSING] >= ROWS - 2 * inventory.DRIFT_LIMIT
        assert replica.calls == {"stream": 2}, "an empty listing is not followed by reads"

        cloud.machines.update(machines)
        for name, machine in machines.items():
            machine.labels = labels(str(UUID(int=int(name[1:]) + 1)))
            machine.address = Address(APP, f"x{name}")
        cloud.machines = {f"x{name}": machine for name, machine in machines.items()}
        swept = await measured("5,000 orphans", inventory_pass)
        assert len(swept.orphans) == ROWS
        assert swept.stopped_because
        assert replica.calls == {"stream": 4}
        assert not cloud.destroyed


async def test_a_listing_that_breaks_off_changes_no_session_and_destroys_nothing(
    database_url: str,
) -> None:
    """It was received up to its last part: what it showed is not acted on, nor what it lacked."""
    cloud = await filled(database_url)
    names = iter(list(cloud.machines))
    for _ in range(3):
        cloud.machines[next(names)].state = ContainerState.SUSPENDED
        del cloud.machines[next(names)]
        machine = cloud.machines.pop(next(names))
        machine.labels = labels(str(UUID(int=1)))
        machine.address = Address(APP, f"x{machine.address.container_id}")
        cloud.machines[machine.address.container_id] = machine
    machines = dict(cloud.machines)
    async with counting(database_url, cloud) as replica:
        inventory_pass = replica.wired.background.inventory_pass
        replica.faults.append(("stream", "after"))
        with pytest.raises(ProviderUnavailable):
            await inventory_pass.act(APP)
        assert cloud.machines == machines
        assert not cloud.destroyed
        assert await changed(database_url) == (0, 0)
        swept = await inventory_pass.act(APP)
        assert len(swept.destroyed) == 3
        sessions, _ = await changed(database_url)
        assert sessions >= 3


async def changed(url: str) -> tuple[int, int]:
    """How many sessions changed since they were made, and how many orphans are counted."""
    async with Database(url, max_size=2) as database, database.connection() as connection:
        cursor = await connection.execute(
            "SELECT (SELECT count(*) FROM sessions WHERE epoch > 3), (SELECT count(*) FROM orphans)"
        )
        row = await cursor.fetchone()
    assert row is not None
    return row[0], row[1]


async def test_the_rows_of_a_pass_are_read_by_their_index(database_url: str) -> None:
    """A page at a time, also with many rows of other apps or of destroyed machines."""
    await filled(database_url)
    async with Database(database_url, max_size=2) as database:
        pages = [page async for page in session_inventory.tracked_ids(database, APP)]
        sizes = [len(page) for page in pages]
        assert sizes == [session_inventory.PAGE] * (ROWS // session_inventory.PAGE)
        some = pages[2][:200]
        rows = await session_inventory.tracked(database, APP, [*some, "unknown"])
        assert {row.container_id for row in rows} == set(some)
        assert await session_inventory.tracked(database, "nest", some) == []
        plans = [
            await plan(database, session_inventory._TRACKED_IDS, {"app": APP, "after": "m4990"}),
            # A few: for 200 of 5,000 rows, reading the whole table can be as cheap.
            await plan(database, session_inventory._TRACKED, {"app": APP, "containers": some[:5]}),
        ]
    for each in plans:
        assert "containers_present" in each, each


async def plan(database: Database, statement: Statement[Any], params: dict[str, Any]) -> str:
    """How PostgreSQL would run the statement."""
    async with database.connection() as connection:
        explain = f"EXPLAIN {statement.sql}".encode()
        cursor = await connection.execute(explain, {**statement.constants, **params})
        return "\n".join(row[0] for row in await cursor.fetchall())


async def large(
    request: container_pb.ListContainersRequest, context: object
) -> container_pb.ListContainersResponse:
    """A listing larger than gRPC's default message limit."""
    one = container_pb.Container(
        app=APP,
        container_id="148e21a7c57789",
        name=f"roost-{UUID(int=1)}-1",
        labels=labels(str(UUID(int=1))),
        region="iad",
    )
    return container_pb.ListContainersResponse(containers=[one] * 40_000)


@pytest.mark.timeout(180)
async def test_a_listing_beyond_grpcs_own_limit_comes_through() -> None:
    """4 MiB are some 16,000 containers: an app with more of them is swept too."""
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
        async with composition.channel(config) as channel:
            listed = await GrpcContainers(channel).list(APP, {}, timeout=150)
    finally:
        await server.stop(None)
    assert len(listed) == 40_000
