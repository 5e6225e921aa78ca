"""Create, list and get machines."""

import asyncio
import re
from dataclasses import replace

from local.fly.admin import Admin
from local.fly.emulator import serve
from local.fly.settings import Settings
from tests.cases import each
from tests.local.fly.api_client import COUNTER, ApiClient, App, Machine


async def test_a_new_machine_has_all_that_clients_read(app: App) -> None:
    """Fly conformance case 9."""
    made = await app.create()
    assert re.fullmatch(r"[0-9a-f]{14}", made["id"])
    assert re.fullmatch(r"[0-9A-Z]{26}", made["instance_id"])
    assert re.fullmatch(r"[a-z]+-[a-z]+-\d{4}", made["name"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", made["created_at"])
    assert (made["state"], made["host_status"], made["region"]) == ("created", "ok", "iad")
    launch = made["events"][0]
    assert (launch["type"], launch["status"], launch["source"]) == ("launch", "created", "user")
    assert made["config"]["guest"]
    assert made["image_ref"]["repository"] == COUNTER
    assert "nonce" not in made


async def test_a_new_machine_starts_by_itself(app: App) -> None:
    """Fly conformance case 10."""
    machine = Machine(app, (await app.create())["id"])
    waited = await machine.wait("started")
    assert (waited["ok"], waited["state"]) == (True, "started")
    newest = (await machine.get())["events"][0]
    assert (newest["type"], newest["status"], newest["source"]) == ("start", "started", "flyd")
    assert newest["id"] == waited["event_id"]


async def test_a_machine_of_an_unknown_app_is_not_made(client: ApiClient) -> None:
    """Fly conformance case 11."""
    body = {"config": {"image": COUNTER}}
    await client.expect(404, "POST", "/v1/apps/none/machines", body)


@each(
    "body",
    [
        {},
        {"config": {}},
        {"config": None},
        {"config": {"image": 1}},
        {"config": []},
        {"config": {"image": COUNTER, "env": {"A": 1}}},
        {"config": {"image": COUNTER, "metadata": {"a": None, "b": 2}}},
        {"config": {"image": COUNTER, "restart": {"policy": "sometimes"}}},
        {"config": {"image": COUNTER, "rootfs": {"persist": "maybe"}}},
        {"config": {"image": COUNTER, "services": [{"autostart": "true"}]}},
        {"config": {"image": COUNTER, "services": [{"autostop": 3}]}},
        {"config": {"image": COUNTER, "services": ["http"]}},
        {"config": {"image": COUNTER}, "lease_ttl": "30"},
        {"config": {"image": COUNTER}, "lease_ttl": -1},
        {"config": {"image": COUNTER}, "name": 3},
    ],
)
async def test_a_malformed_machine_is_refused_and_leaves_nothing(app: App, body: object) -> None:
    """Fly conformance cases 12 and 77."""
    error = await app.client.expect(400, "POST", app.machines, body)
    assert isinstance(error["error"], str)
    assert await app.list(include_deleted="true") == []


async def test_the_name_of_a_live_machine_is_taken(app: App, admin: Admin) -> None:
    """Fly conformance case 13."""
    first = await app.create(name="one")
    error = await app.create(409, name="one")
    assert error["error"] == (
        f"already_exists: unique machine name violation, machine ID {first['id']} "
        'already exists with name "one"'
    )
    creates = [action for action in await admin.actions() if action.action == "create"]
    assert [(action.machine, action.name) for action in creates] == [(first["id"], "one")]


async def test_of_many_creates_of_one_name_one_succeeds(app: App) -> None:
    body = {"name": "one", "config": {"image": COUNTER}}
    replies = await asyncio.gather(
        *(app.client.send("POST", app.machines, body) for _ in range(20))
    )
    assert sorted(reply.status_code for reply in replies) == [200] + [409] * 19
    assert len(await app.list()) == 1


async def test_the_name_of_a_destroyed_machine_is_free(app: App) -> None:
    """Fly conformance case 14."""
    first = Machine(app, (await app.create(name="one"))["id"])
    await first.delete(force="true")
    await first.wait("destroyed")
    assert (await app.create(name="one"))["id"] != first.id


async def test_a_machine_that_skips_its_launch_ends_stopped(app: App) -> None:
    """Fly conformance case 15."""
    made = await app.create(skip_launch=True)
    machine = Machine(app, made["id"])
    assert made["state"] == "created"
    await machine.wait("stopped")
    await machine.resumed()


async def test_a_machine_still_being_prepared_cannot_be_started(settings: Settings) -> None:
    """Fly conformance case 16."""
    async with (
        serve(replace(settings, create_ms=60_000)) as emulator,
        ApiClient(emulator.api_url) as client,
    ):
        await client.expect(201, "POST", "/v1/apps", {"name": "birds", "org_slug": "x"})
        app = App(client, "birds")
        machine = Machine(app, (await app.create())["id"])
        error = await machine.post("start", status=412)
        assert error["error"] == (
            "failed_precondition: unable to start machine from current state: 'created'"
        )


async def test_a_machine_whose_image_is_unknown_fails(app: App) -> None:
    """Fly conformance case 53."""
    made = await app.create(config={"image": "library/none:1"})
    machine = Machine(app, made["id"])
    await machine.wait("failed")
    waited = await machine.wait("started", status=408, timeout=1)
    assert "currently failed" in waited["error"]
    await machine.post("start")
    await machine.wait("failed", from_event_id=made["events"][0]["id"])
    await machine.delete()


async def test_a_machine_whose_image_is_unknown_can_be_destroyed_instead(
    settings: Settings,
) -> None:
    """Fly conformance case 53, the other way it ends."""
    async with (
        serve(replace(settings, unknown_image="destroyed")) as emulator,
        ApiClient(emulator.api_url) as client,
    ):
        await client.expect(201, "POST", "/v1/apps", {"name": "birds", "org_slug": "x"})
        app = App(client, "birds")
        machine = Machine(app, (await app.create(config={"image": "none"}))["id"])
        await machine.wait("destroyed")


async def test_a_list_is_filtered(app: App) -> None:
    """Fly conformance case 23."""
    here = await app.create(region="ord", config={"image": COUNTER, "metadata": {"a": "1"}})
    labels = {"a": "1", "b": "2"}
    there = await app.create(region="iad,us", config={"image": COUNTER, "metadata": labels})
    await Machine(app, here["id"]).wait("started")
    await Machine(app, there["id"]).wait("started")
    await Machine(app, there["id"]).suspended()

    async def ids(**query: str) -> list[str]:
        return [found["id"] for found in await app.list(**query)]

    both = [here["id"], there["id"]]
    assert await ids() == both
    assert await ids(region="ord") == [here["id"]]
    assert await ids(state="started,suspended") == both
    assert await ids(state="suspended") == [there["id"]]
    assert await ids(**{"metadata.a": "1"}) == both
    assert await ids(**{"metadata.a": "1", "metadata.b": "2"}) == [there["id"]]
    assert await ids(**{"metadata.b": "1"}) == []
    assert "config" in (await app.list())[0]
    assert "config" not in (await app.list(summary="true"))[0]


async def test_destroyed_machines_are_only_listed_when_asked_for(app: App) -> None:
    """Fly conformance cases 24 and 25."""
    machine = await app.started()
    await machine.delete(force="true")
    await machine.wait("destroyed")
    assert await app.list() == []
    assert [found["id"] for found in await app.list(include_deleted="true")] == [machine.id]
    assert await machine.state() == "destroyed"
    missing = await app.client.expect(404, "GET", f"{app.machines}/00000000000000")
    assert missing["error"] == "machine not found"


async def test_autostop_is_given_back_in_its_one_form(app: App) -> None:
    """Fly conformance case 76."""
    given = ["stop", "off", "suspend", True, False]
    services = [{"internal_port": 80, "autostop": value} for value in given]
    made = await app.create(config={"image": COUNTER, "services": services})
    shown = [service["autostop"] for service in made["config"]["services"]]
    assert shown == [True, False, "suspend", True, False]


async def test_events_are_paged_and_carry_ids(app: App) -> None:
    """Fly conformance case 69."""
    machine = await app.started()
    for _ in range(12):
        await machine.suspended()
        await machine.resumed()
    shown = await app.client.expect(200, "GET", f"{machine.path}/events")
    capped = await app.client.expect(200, "GET", f"{machine.path}/events", limit=1000)
    assert (len(shown), len(capped)) == (20, 50)
    assert capped[:20] == shown
    ids = [event["id"] for event in capped]
    assert ids == sorted(ids, reverse=True)
