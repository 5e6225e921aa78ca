"""Two real clusters: the primary is killed under load, and its synchronous standby promoted."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

import pytest
from grpc_health.v1 import health_pb2

from session_service.server.replica import prepare
from session_service.storage.refusals import ReadOnlyDatabase
from session_service.storage.revision import read
from tests.eventually import eventually
from tests.session.clusters import NAME, both, pair
from tests.session.database_faults import (
    DEADLINE,
    Calls,
    begin_talk,
    check_loops,
    check_rows,
    health,
)
from tests.session.harness import World, request_id, session_config, world
from tests.session.test_database_outages import start_once
from tests.session.test_process import launch, outcome

if TYPE_CHECKING:
    from local.fly.emulator import Emulator
    from tests.session.clusters import Pair
    from tests.session.database_faults import Talk
    from tests.session.harness import Replica

SERVING = health_pb2.HealthCheckResponse.SERVING
#: How soon each replica serves after the promotion, in s. The figure seen is printed.
SERVES = 15.0
CHECK_EVERY = timedelta(seconds=0.2)


class Load:
    """Turns and starts at both replicas until it ends; what was acknowledged is remembered."""

    def __init__(self, roost: World, calls: Calls) -> None:
        self.roost, self.calls = roost, calls
        self.talks: list[Talk] = []
        self.sessions: dict[str, str] = {}
        self.done = asyncio.Event()

    async def run(self, talks: int, visitors: int) -> None:
        """Until `done` is set."""
        self.talks = [
            await begin_talk(self.roost.replicas[n % 2], f"talk-{n}") for n in range(talks)
        ]
        async with asyncio.TaskGroup() as group:
            for talk in self.talks:
                group.create_task(self._talk(talk))
            for number in range(visitors):
                group.create_task(self._visit(number))

    async def _talk(self, talk: Talk) -> None:
        while not self.done.is_set():
            await talk.say(self.calls)

    async def _visit(self, number: int) -> None:
        while not self.done.is_set():
            for replica in self.roost.replicas:
                user = f"user-{number}"
                session = await start_once(replica, self.calls, user, request_id())
                assert self.sessions.setdefault(user, session.session_id) == session.session_id

    @property
    def said(self) -> int:
        return sum(len(talk.acknowledged) for talk in self.talks)

    async def check(self, url: str) -> None:
        """Nothing that was acknowledged is lost or doubled."""
        for talk in self.talks:
            await talk.check()
        await check_rows(url)
        assert await self.roost.committed("create") == len(self.sessions)


async def fail_over(roost: World, servers: Pair, calls: Calls, outage: float) -> list[float]:
    """Kill the primary and, `outage` s later, promote the standby. Returns for each replica how
    many seconds after the promotion it answers calls.
    """
    before = calls.failed
    await servers.kill_primary()
    assert await eventually(lambda: calls.failed > before, timeout=60)
    await asyncio.sleep(outage)
    await servers.promote()
    back = monotonic()

    async def serves(number: int) -> float:
        await start_once(roost.replicas[number], Calls(), "late", request_id())
        return monotonic() - back

    return list(await asyncio.gather(*(serves(n) for n in range(len(roost.replicas)))))


async def test_a_failover_between_two_clusters_loses_nothing(
    emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """Both hosts are in the address. Meanwhile: what a start and `migrate` say of the standby."""
    async with pair() as servers:
        standby = servers.standby.url(NAME)
        with pytest.raises(ReadOnlyDatabase, match="standby"):
            await asyncio.to_thread(read, standby)
        status, out, err = await outcome(await launch("migrate", ROOST_DATABASE_URL=standby))
        assert (status, out) == (1, "")
        assert err == (
            "session_service: ROOST_DATABASE_URL: the database takes no writes: is it a standby? "
            "The address must lead to its primary\n"
        )
        config = session_config(both(standby, standby), "127.0.0.1:1", "http://127.0.0.1:1/")
        with caplog.at_level(logging.WARNING):
            starting = asyncio.ensure_future(prepare(config))
            assert await eventually(lambda: "is it a standby" in caplog.text, timeout=30)
        async with world(emulator, servers.url, health_interval=CHECK_EVERY) as roost:
            load = Load(roost, Calls())
            running = asyncio.create_task(load.run(talks=2, visitors=2))
            assert await eventually(lambda: load.said > 4 and len(load.sessions) == 2, timeout=60)
            assert not starting.done()
            took = await fail_over(roost, servers, load.calls, outage=0.5)
            async with asyncio.timeout(60):
                await starting
            more = load.said + 4
            assert await eventually(lambda: load.said >= more, timeout=60)
            load.done.set()
            await running
            print(f"served {took} s after the promotion; {load.calls.failed} failed, "
                  f"{load.said} turns")  # fmt: skip
            assert max(took) < SERVES
            assert load.calls.longest < DEADLINE
            load.sessions["late"] = ""
            await load.check(standby)
            for replica in roost.replicas:
                assert await eventually(partial(_is_serving, replica), timeout=30)
            check_loops(2)


@pytest.mark.proof
@pytest.mark.timeout(600)
@pytest.mark.parametrize("outage", [1.0, 17.0])
async def test_a_failover_under_load_loses_nothing(emulator: Emulator, outage: float) -> None:
    """Also after an outage in which the pool has given up on its connections more than once."""
    async with (
        pair() as servers,
        world(emulator, servers.url, health_interval=CHECK_EVERY) as roost,
    ):
        load = Load(roost, Calls())
        running = asyncio.create_task(load.run(talks=6, visitors=6))
        assert await eventually(lambda: load.said > 50 and len(load.sessions) == 6, timeout=60)
        took = await fail_over(roost, servers, load.calls, outage)
        more = load.said + 50
        assert await eventually(lambda: load.said >= more, timeout=60)
        load.done.set()
        await running
        print(f"outage of {outage} s: served {took} s after the promotion; "
              f"{load.calls.failed} failed, the longest {load.calls.longest:.2f} s; "
              f"{load.said} turns")  # fmt: skip
        assert max(took) < SERVES
        assert load.calls.longest < DEADLINE
        load.sessions["late"] = ""
        await load.check(servers.standby.url(NAME))
        check_loops(2)


async def _is_serving(replica: Replica) -> bool:
    return await health(replica) == SERVING
