"""An owner that cannot reach the database any more stops by itself before another one acts."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest

from container_service.main import serve as serve_containers
from local.fly.admin import Admin
from roost.session.v1 import session_pb2 as pb
from session_service import points, wiring
from session_service.clients.containers import GrpcContainers
from tests.container.harness import config_for
from tests.eventually import eventually
from tests.session.database_front import Calls, check_rows, fronted, rows
from tests.session.harness import replica, request_id, session_config

if TYPE_CHECKING:
    from collections.abc import Callable

    import grpc.aio

    from local.fly.emulator import Emulator
    from local.netfault import NetFault


@dataclass
class Act:
    """A call to the provider, while it was under way."""

    name: str
    began: float
    ended: float = float("inf")


class Watched(GrpcContainers):
    """The real thing, which also notes when it was asked for what."""

    made: list[Watched]

    def __init__(self, channel: grpc.aio.Channel) -> None:
        super().__init__(channel)
        self.acts: list[Act] = []
        self.made.append(self)


def _noted(name: str) -> Callable[..., Any]:
    """The method of this name, noted. Any: the arguments and answers of every method."""
    method = getattr(GrpcContainers, name)

    async def noted(self: Watched, *arguments: Any, **more: Any) -> Any:
        act = Act(name, monotonic())
        self.acts.append(act)
        try:
            return await method(self, *arguments, **more)
        finally:
            act.ended = monotonic()

    return noted


for _name in points.CALLS:
    setattr(Watched, _name, _noted(_name))


def hang(fault: NetFault) -> None:
    fault.half_open()


def cut(fault: NetFault) -> None:
    fault.cut()


@pytest.mark.parametrize("strike", [hang, cut])
async def test_no_two_owners_act_at_once(
    emulator: Emulator,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    strike: Callable[[NetFault], None],
) -> None:
    """The first owner loses the database in the middle of its create, the other one does not."""
    monkeypatch.setattr(Watched, "made", [], raising=False)
    monkeypatch.setattr(wiring, "GrpcContainers", Watched)
    async with AsyncExitStack() as stack:
        fault, through = await stack.enter_async_context(fronted(database_url))
        containers = await stack.enter_async_context(serve_containers(config_for(emulator)))
        admin = await stack.enter_async_context(Admin(emulator.api_url))
        where = (containers.target, emulator.proxy_url)
        one = await stack.enter_async_context(replica(session_config(through, *where)))
        two = await stack.enter_async_context(replica(session_config(database_url, *where)))
        stack.callback(fault.clear)
        # Longer than the owner may be silent, and than the driver would take to call a renewal off.
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
        former, later = (each.acts for each in Watched.made)
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
