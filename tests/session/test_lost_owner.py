"""An owner that loses the database stops by itself before another owner acts."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest

from container_service.main import serve as serve_containers
from local.fly.admin import Admin
from roost.session.v1 import session_pb2 as pb
from session_service import failpoints
from session_service.clients.containers import GrpcContainers
from tests.container.harness import config_for
from tests.eventually import eventually
from tests.session.database_faults import Calls, check_rows, fronted, rows
from tests.session.harness import replica, request_id, session_config

if TYPE_CHECKING:
    from collections.abc import Callable

    import grpc.aio

    from local.fly.emulator import Emulator
    from local.netfault import NetFault


@dataclass
class Act:
    """A call to the provider, with its begin and end on the monotonic clock, in s."""

    name: str
    began: float
    ended: float = float("inf")


class RecordingContainers(GrpcContainers):
    """A client that also records every call with its times."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        super().__init__(channel)
        self.acts: list[Act] = []


def _recorded(name: str) -> Callable[..., Any]:
    """The method of this name, recorded. Any: the arguments and answers of every method."""
    method = getattr(GrpcContainers, name)

    async def recorded(self: RecordingContainers, *arguments: Any, **more: Any) -> Any:
        act = Act(name, monotonic())
        self.acts.append(act)
        try:
            return await method(self, *arguments, **more)
        finally:
            act.ended = monotonic()

    return recorded


for _name in failpoints.CALLS:
    setattr(RecordingContainers, _name, _recorded(_name))


def hang(fault: NetFault) -> None:
    fault.half_open()


def cut(fault: NetFault) -> None:
    fault.cut()


@pytest.mark.parametrize("strike", [hang, cut])
async def test_no_two_owners_act_at_once(
    emulator: Emulator,
    database_url: str,
    strike: Callable[[NetFault], None],
) -> None:
    """The first owner loses the database during its create; the other one still reaches it."""
    clients: list[RecordingContainers] = []

    def connect(channel: grpc.aio.Channel) -> RecordingContainers:
        clients.append(RecordingContainers(channel))
        return clients[-1]

    async with AsyncExitStack() as stack:
        fault, through = await stack.enter_async_context(fronted(database_url))
        containers = await stack.enter_async_context(serve_containers(config_for(emulator)))
        admin = await stack.enter_async_context(Admin(emulator.api_url))
        where = (containers.target, emulator.proxy_url)
        # Each with its own way to the database, and a lease that runs out soon.
        one, two = [
            await stack.enter_async_context(
                replica(session_config(url, *where, lease=timedelta(seconds=2)), connect)
            )
            for url in (through, database_url)
        ]
        stack.callback(fault.clear)
        # Longer than an owner may go without a renewal, and than the driver takes to give one up.
        await admin.set_fault("slow_before", action="create", delay_ms=5000)
        once = request_id()
        lost = Calls()
        first = asyncio.create_task(lost.once(one.start(request_id=once)))

        async def asked() -> bool:
            return any(each.fired for each in await admin.faults())

        await eventually(asked)
        strike(fault)
        answer = await two.start(request_id=once)
        assert answer.outcome == pb.START_OUTCOME_CREATED
        assert await first is None
        former, later = (client.acts for client in clients)
        begun = min(act.began for act in later)
        print(f"stopped {begun - max(act.ended for act in former):.2f} s before the other began")
        assert [act.name for act in former if act.ended > begun] == []
        fault.clear()
        calls = Calls()
        again = await calls.until_answered(lambda: one.start(request_id=once))
        assert (again.decision_id, again.outcome) == (answer.decision_id, answer.outcome)
        created = [done for done in await admin.actions() if done.action == "create"]
        assert len(created) == 1
        await check_rows(database_url)
        assert await rows(database_url, "SELECT count(*) FROM sessions") == [(1,)]
