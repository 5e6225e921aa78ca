"""Updates: a whole new config and a new instance id."""

from dataclasses import replace

from local.fly.emulator import serve
from local.fly.settings import Settings
from tests.local.fly.api_client import COUNTER, ApiClient, App, Json, Machine


async def update(machine: Machine, status: int = 200, /, **body: Json) -> Json:
    body.setdefault("config", {"image": COUNTER})
    return await machine._client.expect(status, "POST", machine.path, body)


async def test_an_update_reboots_a_started_machine(app: App) -> None:
    """Fly conformance case 40."""
    machine = await app.started()
    before, boot_id = await machine.get(), await machine.boot_id()
    updated = await update(machine, config={"image": COUNTER, "env": {"COLOUR": "red"}})
    assert updated["state"] == "replacing"
    assert updated["instance_id"] != before["instance_id"]
    await machine.wait("started", version=updated["instance_id"])
    assert (await machine.run("printenv", "COLOUR"))["stdout"] == "red\n"
    assert await machine.boot_id() != boot_id
    types = [event["type"] for event in reversed((await machine.get())["events"])]
    assert types == ["update", "exit", "start", "start"]


async def test_an_update_leaves_a_stopped_machine_stopped(app: App) -> None:
    """Fly conformance case 40."""
    machine = await app.started()
    await machine.stopped()
    updated = await update(machine)
    await machine.wait("stopped", version=updated["instance_id"])


async def test_an_update_discards_the_snapshot_of_a_suspended_machine(app: App) -> None:
    machine = await app.started()
    await machine.suspended()
    updated = await update(machine)
    await machine.wait("stopped", version=updated["instance_id"])


async def test_while_it_is_replaced_a_machine_takes_no_start_and_no_update(
    settings: Settings,
) -> None:
    """Fly conformance cases 41 and 42."""
    async with (
        serve(replace(settings, replace_ms=60_000)) as emulator,
        ApiClient(emulator.api_url) as client,
    ):
        await client.expect(201, "POST", "/v1/apps", {"name": "birds", "org_slug": "x"})
        machine = await App(client, "birds").started()
        await machine.stopped()
        await update(machine)
        error = await machine.post("start", status=412)
        assert "machine getting replaced, refusing to start" in error["error"]
        assert "concurrent update" in (await update(machine, 409))["error"]


async def test_an_update_from_an_older_version_is_rejected(app: App) -> None:
    """Fly conformance case 43."""
    machine = await app.started()
    first = (await machine.get())["instance_id"]
    second = (await update(machine, current_version=first))["instance_id"]
    await machine.wait("started", version=second)
    await update(machine, 409, current_version=first)
    assert (await machine.get())["instance_id"] == second


async def test_an_update_replaces_the_whole_config(app: App) -> None:
    """Fly conformance case 44."""
    machine = await app.started(services=[{"internal_port": 80}], metadata={"a": "1"})
    updated = await update(machine)
    assert "services" not in updated["config"]
    assert "metadata" not in updated["config"]


async def test_an_update_under_the_lease_of_another_is_rejected(app: App) -> None:
    """Fly conformance case 45."""
    machine = await app.started()
    nonce = (await machine.post("lease", {"ttl": 30}, status=201))["data"]["nonce"]
    assert "lease currently held by" in (await update(machine, 409))["message"]
    body = {"config": {"image": COUNTER}}
    reply = await app.client.send("POST", machine.path, body, nonce=nonce)
    assert reply.status_code == 200


async def test_old_versions_are_listed_and_cannot_be_waited_for(app: App) -> None:
    """Fly conformance case 46."""
    machine = await app.started()
    first = (await machine.get())["instance_id"]
    second = (await update(machine))["instance_id"]
    versions = await app.client.expect(200, "GET", f"{machine.path}/versions")
    assert [version["version"] for version in versions] == [second, first]
    assert (
        "currently replaced"
        in (await machine.wait("started", status=408, instance_id=first))["error"]
    )
    await machine.wait("started", status=400, version="01ARZ3NDEKTSV4RRFFQ69G5FAV")


async def test_only_an_always_persistent_root_file_system_outlives_an_update(app: App) -> None:
    for persist, kept in (("always", ["mark"]), ("restart", [])):
        rootfs = {"persist": persist}
        machine = await app.started(rootfs=rootfs)
        await machine.run("touch", "mark")
        updated = await update(machine, config={"image": COUNTER, "rootfs": rootfs})
        await machine.wait("started", version=updated["instance_id"])
        assert (await machine.run("ls"))["stdout"].split() == kept
