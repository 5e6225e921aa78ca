"""Leases: the exclusive right to change a machine."""

import time

import pytest

from local.fly.emulator import serve
from local.fly.settings import Settings
from tests.cases import each
from tests.local.fly.api_client import COUNTER, ApiClient, App, Json, Machine, until

GUARDED = (
    ("POST", "/start"),
    ("POST", "/stop"),
    ("POST", "/suspend"),
    ("POST", "/restart"),
    ("POST", "/cordon"),
    ("POST", "/uncordon"),
    ("POST", ""),
    ("DELETE", ""),
)


async def take(machine: Machine, ttl: int = 30) -> str:
    """Acquire a lease; return its nonce."""
    return str((await machine.post("lease", {"ttl": ttl}, status=201))["data"]["nonce"])


async def test_a_machine_is_created_under_a_lease(app: App) -> None:
    """Fly conformance case 17."""
    made = await app.create(lease_ttl=30)
    machine = Machine(app, made["id"])
    await machine.wait("started")
    error = await machine.post("stop", status=409)
    assert f"machine ID {machine.id} lease currently held by" in error["message"]
    reply = await app.client.send("POST", f"{machine.path}/stop", nonce=made["nonce"])
    assert reply.status_code == 200
    assert "nonce" not in await machine.get()


@pytest.mark.parametrize(
    ("body", "query"), [({"ttl": 30, "description": "deploy"}, {}), (None, {"ttl": 30})]
)
async def test_a_lease_is_taken_with_its_time_in_body_or_query(
    app: App, body: Json, query: Json
) -> None:
    """Fly conformance case 60."""
    machine, before = await app.started(), time.time()
    taken = await machine.post("lease", body, status=201, **query)
    assert taken["status"] == "success"
    data = taken["data"]
    assert len(data["nonce"]) == 12
    # In whole seconds.
    assert before + 30 - 1 <= data["expires_at"] <= time.time() + 30
    assert data["version"] == (await machine.get())["instance_id"]
    assert data["owner"].endswith("@tokens.fly.io")
    assert data["description"] == (body or {}).get("description", "")


async def test_a_lease_has_one_holder(app: App) -> None:
    """Fly conformance case 61."""
    machine = await app.started()
    await take(machine)
    error = await machine.post("lease", {"ttl": 30}, status=409)
    assert error["status"] == "error"
    assert error["code"] == "invalid"
    assert "lease currently held by" in error["message"]
    assert "expires at" in error["message"]


async def test_a_lease_is_refreshed_with_its_nonce(app: App) -> None:
    """Fly conformance case 62."""
    machine = await app.started()
    nonce = await take(machine, ttl=30)
    before = time.time()
    refreshed = await app.client.send("POST", f"{machine.path}/lease?ttl=60", nonce=nonce)
    assert refreshed.status_code == 201
    assert refreshed.json()["data"]["nonce"] == nonce
    assert refreshed.json()["data"]["expires_at"] >= before + 60 - 1


async def test_a_lease_that_ran_out_frees_the_machine_and_its_nonce_is_worth_nothing(
    app: App,
) -> None:
    """Fly conformance case 62."""
    machine = await app.started()
    nonce = await take(machine, ttl=1)

    async def free() -> bool:
        return (await app.client.send("GET", f"{machine.path}/lease")).status_code == 404

    await until(free)
    late = await app.client.send("POST", f"{machine.path}/suspend", nonce=nonce)
    assert late.status_code == 409
    assert "lease not found" in late.json()["message"]
    assert (await app.client.send("POST", f"{machine.path}/lease", nonce=nonce)).status_code == 404
    await machine.post("suspend")


async def test_a_stale_nonce_can_be_accepted_while_there_is_no_lease(
    settings: Settings,
) -> None:
    async with (
        serve(settings.with_texts({"stale_nonce": "accept"})) as emulator,
        ApiClient(emulator.api_url) as client,
    ):
        await client.expect(201, "POST", "/v1/apps", {"name": "birds", "org_slug": "x"})
        machine = await App(client, "birds").started()
        reply = await client.send("POST", f"{machine.path}/suspend", nonce="0123456789ab")
        assert reply.status_code == 200


async def test_a_lease_is_read_and_released(app: App) -> None:
    """Fly conformance case 63."""
    machine = await app.started()
    lease = f"{machine.path}/lease"
    missing = await app.client.expect(404, "GET", lease)
    assert missing["error"] == "lease not found"
    nonce = await take(machine)
    assert (await app.client.expect(200, "GET", lease))["data"]["nonce"] == nonce
    assert (await app.client.send("DELETE", lease, nonce="000000000000")).status_code == 409
    released = await app.client.send("DELETE", lease, nonce=nonce)
    assert released.json() == {"status": "success", "data": {"ok": True}}
    await app.client.expect(404, "GET", lease)
    await app.client.expect(404, "DELETE", lease)


async def test_reads_exec_and_metadata_need_no_nonce(app: App) -> None:
    """Fly conformance case 64."""
    machine = await app.started()
    await take(machine)
    await machine.wait("started")
    assert (await machine.run("true"))["exit_code"] == 0
    await app.client.expect(200, "GET", f"{machine.path}/ps")
    await machine.post("metadata/colour", {"value": "red"}, status=204)
    await machine.post("signal", {"signal": "SIGUSR2"})


@pytest.mark.parametrize("nonce", ["", "000000000000"])
async def test_every_mutation_is_guarded_and_a_rejected_one_changes_nothing(
    app: App, nonce: str
) -> None:
    machine = await app.started()
    await take(machine)
    before = await machine.get()
    for method, verb in GUARDED:
        body = {"config": {"image": COUNTER}} if verb == "" else None
        path = f"{machine.path}{verb}?force=true"
        reply = await app.client.send(method, path, body, nonce=nonce)
        assert reply.status_code == 409, (method, verb)
        assert "lease currently held by" in reply.json()["message"]
    assert await machine.get() == before


@each("ttl", [0, -1, "30", 1.5])
async def test_a_lease_of_no_time_is_rejected(app: App, ttl: Json) -> None:
    machine = await app.started()
    await machine.post("lease", {"ttl": ttl}, status=400)


async def test_a_lease_is_gone_with_its_machine(app: App) -> None:
    machine = await app.started()
    nonce = await take(machine)
    reply = await app.client.send("DELETE", f"{machine.path}?force=true", nonce=nonce)
    assert reply.status_code == 200
    await machine.wait("destroyed")
    assert (await app.create(name="again"))["id"] != machine.id
