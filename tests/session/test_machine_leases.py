"""Every lease on a machine at the provider lasts for the same time, derived from ROOST_LEASE."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from roost.session.v1 import session_pb2 as pb
from session_service.clients.containers import GrpcContainers
from session_service.ports import Address
from tests.container.harness import failing
from tests.session.harness import world
from tests.session.saving import counting, hooked
from tests.session.sweeping import QUICK, act, stray

if TYPE_CHECKING:
    import grpc.aio

    from local.fly.emulator import Emulator


class RecordingContainers(GrpcContainers):
    """A client that also records the TTL of each machine lease that it acquires, in s."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        super().__init__(channel)
        self.lengths: list[float] = []

    async def acquire_lease(
        self, address: Address, *, ttl: float, wait: float, timeout: float
    ) -> str:
        self.lengths.append(ttl)
        return await super().acquire_lease(address, ttl=ttl, wait=wait, timeout=timeout)


async def test_machine_leases_outlast_the_owners_lease(
    emulator: Emulator, database_url: str
) -> None:
    """For a pause, the destroy of a container that is recreated, and the destroy of an orphan."""
    clients: list[RecordingContainers] = []

    def connect(channel: grpc.aio.Channel) -> RecordingContainers:
        clients.append(RecordingContainers(channel))
        return clients[-1]

    settings: dict[str, Any] = {
        **QUICK,
        "lease": timedelta(seconds=11),
        "on_fingerprint_change": "recreate_keeping_files",
    }
    async with world(emulator, database_url, 1, connect=connect, **settings) as roost:
        session = (await roost.one.start(spec=hooked(A="1"))).session
        await roost.one.pause(session.session_id)
        await roost.one.start(spec=hooked(A="2"))
        orphan = await stray(roost)
        await act(roost)
        assert (await act(roost)).orphan_report.destroyed == [orphan]
    (client,) = clients
    assert client.lengths == [17.0, 17.0, 17.0], "1.5 times, rounded up"


@pytest.mark.parametrize("refused", ["cordon", "destroy"])
async def test_a_refused_request_gives_the_machines_lease_back(
    emulator: Emulator, database_url: str, refused: str
) -> None:
    """The next try of the end, or of the pause, does not wait until the lease runs out."""
    clients: list[RecordingContainers] = []

    def connect(channel: grpc.aio.Channel) -> RecordingContainers:
        clients.append(RecordingContainers(channel))
        return clients[-1]

    async with world(emulator, database_url, 1, connect=connect) as roost:
        session = await counting(roost, 1)
        fault = await roost.admin.set_fault("server_error", action=refused, status=403, times=None)
        if refused == "cordon":
            await failing(roost.one.end(session.session_id))
        else:
            depth = pb.PAUSE_DEPTH_CHECKPOINT
            await failing(roost.one.pause(session.session_id, depth=depth))
        assert await roost.admin.fired(fault)
        where = Address(session.container.app, session.container.container_id)
        # Raises LeaseHeld if the lease was not given back.
        assert await clients[0].acquire_lease(where, ttl=1.0, wait=0.0, timeout=30.0)
