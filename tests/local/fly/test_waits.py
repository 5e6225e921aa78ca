"""Waits for a state."""

import asyncio

import pytest

from local.fly.emulator import serve
from local.fly.settings import Settings
from tests.cases import each
from tests.local.fly.api_client import ApiClient, App, Machine


async def test_a_wait_without_parameters_is_for_started(app: App) -> None:
    """Fly conformance case 54."""
    made = await app.create()
    waited = await app.client.expect(200, "GET", f"{app.machines}/{made['id']}/wait")
    assert waited["ok"] is True
    assert waited["state"] == "started"
    assert waited["version"] == made["instance_id"]


@each("timeout", ["0", "90", "61s", "-1", "soon", "500ms"])
async def test_a_wait_out_of_range_is_rejected_and_not_clamped(app: App, timeout: str) -> None:
    """Fly conformance case 55."""
    machine = await app.started()
    error = await machine.wait("started", status=400, timeout=timeout)
    assert error["error"].startswith("invalid_argument")
    assert "value must be inside range [1s, 1m0s]" in error["error"]


async def test_a_wait_that_is_not_met_says_what_is(app: App) -> None:
    """Fly conformance case 56."""
    machine = await app.started()
    before = asyncio.get_running_loop().time()
    failed = await machine.wait("stopped", status=408, timeout="1s")
    assert failed["error"] == (
        "deadline_exceeded: machine failed to reach desired state, stopped, currently started"
    )
    assert asyncio.get_running_loop().time() - before >= 0.99


async def test_a_wait_takes_several_states(app: App) -> None:
    """Fly conformance case 57."""
    machine = await app.started()
    await machine.suspended()
    assert (await machine.wait("stopped,suspended"))["state"] == "suspended"
    repeated = f"{machine.path}/wait?state=stopped&state=suspended"
    assert (await app.client.expect(200, "GET", repeated))["state"] == "suspended"
    assert (await machine.wait("settled"))["state"] == "suspended"


async def test_settled_is_not_met_on_the_way(app: App) -> None:
    """Fly conformance case 57."""
    machine = Machine(app, (await app.create())["id"])
    assert (await machine.wait("settled"))["state"] == "started"


async def test_a_wait_for_an_unknown_state_is_rejected(app: App) -> None:
    machine = await app.started()
    await machine.wait("asleep", status=400)


@pytest.mark.parametrize(("needed", "status"), [("false", 200), ("true", 400)])
async def test_a_wait_for_stopped_may_need_a_version(
    settings: Settings, needed: str, status: int
) -> None:
    """Fly conformance case 58."""
    async with (
        serve(settings.with_texts({"wait_stopped_needs_version": needed})) as emulator,
        ApiClient(emulator.api_url) as client,
    ):
        await client.expect(201, "POST", "/v1/apps", {"name": "birds", "org_slug": "x"})
        app = App(client, "birds")
        made = await app.create(skip_launch=True)
        machine = Machine(app, made["id"])
        await machine.wait("stopped", status=status)
        await machine.wait("stopped", instance_id=made["instance_id"])


async def test_a_wait_after_an_event_ignores_what_was_before(app: App) -> None:
    """Fly conformance case 59."""
    machine = await app.started()
    newest = (await machine.get())["events"][0]["id"]
    await machine.wait("started", status=408, from_event_id=newest, timeout=1)
    waiting = asyncio.create_task(machine.wait("started", from_event_id=newest))
    await machine.suspended()
    await machine.resumed()
    assert (await waiting)["event_id"] > newest


async def test_many_waits_end_with_one_change(app: App) -> None:
    machine = await app.started()
    waits = [asyncio.create_task(machine.wait("suspended")) for _ in range(20)]
    await machine.post("suspend")
    assert {waited["state"] for waited in await asyncio.gather(*waits)} == {"suspended"}


async def test_a_wait_on_a_machine_that_is_destroyed_during_the_wait_is_404(app: App) -> None:
    machine = await app.started()
    waiting = asyncio.create_task(machine.wait("suspended", status=404))
    await machine.delete(force="true")
    assert (await waiting)["error"] == "machine not found"
    await machine.wait("destroyed")
    await app.client.expect(404, "GET", f"{app.machines}/00000000000000/wait")
