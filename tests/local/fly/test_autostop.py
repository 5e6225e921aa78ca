"""Autostop: the proxy stops machines without traffic."""

import asyncio

import httpx
import pytest

from local.fly.admin import Admin
from local.fly.emulator import Emulator
from local.fly.settings import Settings
from tests.eventually import eventually
from tests.local.fly.api_client import App, Json, Machine, until


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.with_texts({"autostop_ms": "1000"})


def service(**fields: Json) -> Json:
    return [{"internal_port": 8080, "autostart": True, **fields}]


@pytest.mark.parametrize(
    ("wanted", "more", "ends"),
    [
        ("stop", {}, "stopped"),
        ("suspend", {}, "suspended"),
        ("suspend", {"schedule": "daily"}, "stopped"),
    ],
)
async def test_an_idle_machine_is_stopped_or_suspended(
    app: App, admin: Admin, wanted: str, more: Json, ends: str
) -> None:
    machine = await app.started(services=service(autostop=wanted), **more)
    await machine.wait(ends)
    actions = [one for one in await admin.actions() if one.action in ("stop", "suspend")]
    assert [one.source for one in actions] == ["proxy"]


async def test_one_machine_at_a_time_and_some_are_left(app: App, admin: Admin) -> None:
    services = service(autostop="stop", min_machines_running=1)
    machines = [await app.started(services=services) for _ in range(3)]

    async def one_left() -> bool:
        states = [await machine.state() for machine in machines]
        return states.count("stopped") == 2

    await until(one_left)
    stops = [one.time_ms for one in await admin.actions() if one.action == "stop"]
    assert stops[1] - stops[0] >= 200


async def test_a_machine_that_is_talked_to_or_leased_is_left_alone(
    app: App, emulator: Emulator
) -> None:
    busy = await app.started(services=service(autostop="stop"))
    leased = await app.started(services=service(autostop="stop"))
    plain = await app.started(services=service(autostop="off"))
    await leased.post("lease", {"ttl": 30}, status=201)
    other = await rival(app)
    async with httpx.AsyncClient(trust_env=False, verify=False) as http:
        stopped = asyncio.ensure_future(other.wait("stopped"))
        while not stopped.done():
            headers = {"fly-force-instance-id": busy.id}
            assert (await http.get(emulator.proxy_url, headers=headers)).status_code == 200
    await stopped
    assert [await one.state() for one in (busy, leased, plain)] == ["started"] * 3


async def rival(app: App) -> Machine:
    """An idle machine of another region: its stop shows that a pass has run."""
    config = {"image": "roost/counter", "services": service(autostop="stop")}
    machine = Machine(app, (await app.create(config=config, region="lhr"))["id"])

    async def started() -> bool:
        # A pass may stop it between its start and the next look at it.
        return await machine.state() in ("started", "stopping", "stopped")

    assert await eventually(started)
    return machine
