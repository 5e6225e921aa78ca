"""Autostop: the proxy stops machines without traffic."""

import asyncio

import httpx
import pytest

from local.fly.admin import Admin
from local.fly.emulator import Emulator
from local.fly.settings import Settings
from tests.eventually import eventually
from tests.local.fly.api_client import COUNTER, App, Json, Machine, until


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
    machine, nonce = await leased(app, services=service(autostop=wanted), **more)
    await release(machine, app, nonce)
    await machine.wait(ends)
    actions = [one for one in await admin.actions() if one.action in ("stop", "suspend")]
    assert [one.source for one in actions] == ["proxy"]


async def leased(app: App, **config: Json) -> tuple[Machine, str]:
    """A started machine under a lease from its creation on, and the nonce.

    Without the lease, a pass could stop it before the test has seen it started.
    """
    made = await app.create(config={"image": COUNTER, **config}, lease_ttl=60)
    machine = Machine(app, made["id"])
    await machine.wait("started")
    return machine, str(made["nonce"])


async def release(machine: Machine, app: App, nonce: str) -> None:
    reply = await app.client.send("DELETE", f"{machine.path}/lease", nonce=nonce)
    assert reply.status_code == 200


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
    app: App, emulator: Emulator, admin: Admin
) -> None:
    busy, nonce = await leased(app, services=service(autostop="stop"))
    kept, _ = await leased(app, services=service(autostop="stop"))
    plain = await app.started(services=service(autostop="off"))
    asked = asyncio.Event()

    async def talk() -> None:
        async with httpx.AsyncClient(trust_env=False, verify=False, timeout=30) as http:
            while True:
                headers = {"fly-force-instance-id": busy.id}
                assert (await http.get(emulator.proxy_url, headers=headers)).status_code == 200
                asked.set()

    # Several, so that the machine never waits for its next request.
    talking = [asyncio.create_task(talk()) for _ in range(3)]
    await asked.wait()
    await release(busy, app, nonce)
    other = await rival(app)
    await other.wait("stopped")
    stopped = {one.machine for one in await admin.actions() if one.action == "stop"}
    for task in talking:
        task.cancel()
    await asyncio.wait(talking)
    assert all(task.cancelled() for task in talking)
    assert stopped == {other.id}
    assert [await one.state() for one in (kept, plain)] == ["started"] * 2


async def rival(app: App) -> Machine:
    """An idle machine of another region: its stop shows that a pass has run."""
    config = {"image": COUNTER, "services": service(autostop="stop")}
    machine = Machine(app, (await app.create(config=config, region="lhr"))["id"])

    async def started() -> bool:
        # A pass may stop it between its start and the next look at it.
        return await machine.state() in ("started", "stopping", "stopped")

    assert await eventually(started)
    return machine
