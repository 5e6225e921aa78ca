"""Volumes: claims, contents, snapshots and deletion."""

import json
from dataclasses import replace

from local.fly.admin import Admin
from local.fly.emulator import serve
from local.fly.settings import Settings
from tests.cases import each
from tests.local.fly.api_client import BASE, ApiClient, App, Json, Machine, until

STEM = "/v1/apps/birds/volumes"


async def make(client: ApiClient, status: int = 200, /, **body: Json) -> Json:
    return await client.expect(status, "POST", STEM, {"name": "data", **body})


async def machine_with(app: App, volume: Json, **more: Json) -> Machine:
    mounts = [{"volume": volume["id"], "path": "/data"}]
    return await app.started(**{"image": BASE, "mounts": mounts, **more})


async def settled(client: ApiClient, volume: Json) -> Json:
    """Wait until the volume is `created`; return it."""
    shown: list[Json] = []

    async def created() -> bool:
        shown.append(await client.expect(200, "GET", f"{STEM}/{volume['id']}"))
        return bool(shown[-1]["state"] == "created")

    await until(created)
    return shown[-1]


async def snapshot(client: ApiClient, volume: Json) -> Json:
    """Take a snapshot and wait until it is `created`."""
    await client.expect(200, "POST", f"{STEM}/{volume['id']}/snapshots")
    shown: list[Json] = []

    async def created() -> bool:
        found = await client.expect(200, "GET", f"{STEM}/{volume['id']}/snapshots")
        shown.append(found[0])
        return bool(found[0]["status"] == "created")

    await until(created)
    assert {one["status"] for one in shown} <= {"pending", "running", "created"}
    return shown[-1]


async def test_a_new_volume_has_all_that_clients_read(app: App) -> None:
    """Fly conformance case 71."""
    made = await make(app.client, size_gb=2)
    assert made["id"].startswith("vol_")
    assert (made["state"], made["region"], made["size_gb"]) == ("created", "iad", 2)
    assert (made["snapshot_retention"], made["encrypted"]) == (5, True)
    assert "attached_machine_id" not in made
    assert await app.client.expect(200, "GET", f"{STEM}/{made['id']}") == made
    assert await app.client.expect(200, "GET", STEM) == [made]
    found = await app.client.expect(200, "GET", "/v1/apps/birds")
    assert found["volume_count"] == 1
    of_org = await app.client.expect(200, "GET", "/v1/orgs/personal/volumes")
    assert [one["app_name"] for one in of_org["volumes"]] == ["birds"]


@each(
    "body",
    [
        {"name": ""},
        {"name": "Not-a-name"},
        {"size_gb": -1},
        {"size_gb": 501},
        {"fstype": "ntfs"},
        {"snapshot_retention": 0},
        {"snapshot_retention": 61},
        {"snapshot_id": "vs_1", "source_volume_id": "vol_1"},
    ],
)
async def test_a_volume_that_is_invalid_is_rejected(app: App, body: Json) -> None:
    await make(app.client, 400, **body)
    assert await app.client.expect(200, "GET", STEM) == []


async def test_files_outlive_stops_updates_and_machines(app: App) -> None:
    volume = await make(app.client)
    first = await machine_with(app, volume, env={"FOLDER": "/data"})
    await first.run("sh", "-c", "echo kept > /data/mark && cp /data/mark $FOLDER/copy")
    await first.run("touch", "gone")
    await first.stopped()
    await first.resumed()
    assert (await first.run("cat", "/data/mark"))["stdout"] == "kept\n"
    assert (await first.run("ls", "data"))["stdout"] == "copy\nmark\n"
    assert (await first.run("ls"))["stdout"] == "data\n"
    await first.delete(force="true")
    await first.wait("destroyed")

    async def released() -> bool:
        shown = await app.client.expect(200, "GET", f"{STEM}/{volume['id']}")
        return "attached_machine_id" not in shown

    await until(released)
    second = await machine_with(app, volume)
    assert (await second.run("cat", "/data/mark"))["stdout"] == "kept\n"
    used = (await app.client.expect(200, "GET", f"{STEM}/{volume['id']}"))["bytes_used"]
    assert used == 10


async def test_a_volume_has_one_machine(app: App) -> None:
    """Fly conformance case 18."""
    volume = await make(app.client)
    machine = await machine_with(app, volume)
    shown = await app.client.expect(200, "GET", f"{STEM}/{volume['id']}")
    assert shown["attached_machine_id"] == machine.id
    config = {"image": BASE, "mounts": [{"volume": volume["id"], "path": "/data"}]}
    error = await app.create(412, config=config)
    assert error["error"].endswith(f"volume already claimed by machine {machine.id}")
    by_name = {"image": BASE, "mounts": [{"name": "data", "path": "/data"}]}
    await app.create(400, config=by_name)
    await make(app.client)
    await app.create(config=by_name)
    assert len(await app.list()) == 2


@each(
    "mounts",
    [
        [{"volume": "vol_unknown", "path": "/data"}],
        [{"path": "/data"}],
        [{"volume": "vol_1", "path": "data"}],
        [{"volume": "vol_1", "path": "/"}],
        [{"volume": "vol_1", "path": "/data/../.."}],
        [{"volume": "vol_1", "path": "/a"}, {"volume": "vol_2", "path": "/b"}],
        ["vol_1"],
    ],
)
async def test_a_mount_that_is_invalid_is_rejected(app: App, mounts: Json) -> None:
    await app.create(400, config={"image": BASE, "mounts": mounts})
    assert await app.list() == []


async def test_a_machine_is_placed_where_its_volume_is(app: App) -> None:
    volume = await make(app.client, region="lhr")
    config = {"image": BASE, "mounts": [{"volume": volume["id"], "path": "/data"}]}
    await app.create(400, config=config, region="iad")
    made = await app.create(config=config, region="any")
    assert made["region"] == "lhr"


async def test_a_volume_is_not_deleted_while_a_machine_claims_it(settings: Settings) -> None:
    """Fly conformance case 72."""
    async with (
        serve(replace(settings, volume_release_ms=60_000)) as emulator,
        ApiClient(emulator.api_url) as client,
    ):
        await client.expect(201, "POST", "/v1/apps", {"name": "birds", "org_slug": "x"})
        volume = await make(client)
        path = f"{STEM}/{volume['id']}"
        machine = await machine_with(App(client, "birds"), volume)
        error = await client.expect(412, "DELETE", path)
        assert error["error"] == (
            f"failed_precondition: volume is currently bound to machine: {machine.id}"
        )
        await machine.delete(force="true")
        await machine.wait("destroyed")
        # The claim is released some time after the machine's end.
        await client.expect(412, "DELETE", path)


async def test_a_volume_is_deleted_when_no_machine_claims_it(settings: Settings) -> None:
    """Fly conformance case 72."""
    async with (
        serve(replace(settings, volume_release_ms=300, volume_linger_ms=60_000)) as emulator,
        ApiClient(emulator.api_url) as client,
    ):
        await client.expect(201, "POST", "/v1/apps", {"name": "birds", "org_slug": "x"})
        volume = await make(client)
        path = f"{STEM}/{volume['id']}"
        machine = await machine_with(App(client, "birds"), volume)
        await machine.delete(force="true")
        await machine.wait("destroyed")

        async def deleted() -> bool:
            return (await client.send("DELETE", path)).status_code == 200

        await until(deleted)
        assert (await client.expect(200, "GET", path))["state"] == "pending_destroy"
        # The listing shows the deleted volume for some time.
        listed = await client.expect(200, "GET", STEM)
        assert [one["state"] for one in listed] == ["pending_destroy"]
        await client.expect(404, "DELETE", path)
        mounts = [{"volume": volume["id"], "path": "/data"}]
        await App(client, "birds").create(400, config={"image": BASE, "mounts": mounts})


async def test_a_volume_grows_and_does_not_shrink(app: App) -> None:
    """Fly conformance case 73."""
    path = f"{STEM}/{(await make(app.client))['id']}/extend"
    grown = await app.client.expect(200, "PUT", path, {"size_gb": 5})
    assert grown["volume"]["size_gb"] == 5
    assert grown["needs_restart"] is False
    for size_gb in (4, 501):
        await app.client.expect(400, "PUT", path, {"size_gb": size_gb})
    await app.client.expect(400, "PUT", path, {})


async def test_how_a_volume_is_backed_up_can_be_changed(app: App) -> None:
    path = f"{STEM}/{(await make(app.client))['id']}"
    body = {"snapshot_retention": 9, "auto_backup_enabled": False}
    changed = await app.client.expect(200, "PUT", path, body)
    assert (changed["snapshot_retention"], changed["auto_backup_enabled"]) == (9, False)
    await app.client.expect(400, "PUT", path, {"snapshot_retention": 99})


async def test_a_snapshot_is_restored_into_a_new_volume(app: App, admin: Admin) -> None:
    """Fly conformance cases 71 and 74."""
    volume = await make(app.client, size_gb=2)
    machine = await machine_with(app, volume)
    await machine.run("sh", "-c", "mkdir /data/sub && echo then > /data/sub/mark")
    taken = await snapshot(app.client, volume)
    assert taken["id"].startswith("vs_")
    assert (taken["size"], taken["retention_days"], taken["volume_size"]) == (5, 5, 2 * 1024**3)
    await machine.run("sh", "-c", "echo now > /data/sub/mark")
    await make(app.client, 400, snapshot_id=taken["id"], size_gb=1)
    restored = await make(app.client, snapshot_id=taken["id"])
    assert (restored["state"], restored["size_gb"]) == ("restoring", 2)
    await settled(app.client, restored)
    second = await machine_with(app, restored)
    assert (await second.run("cat", "/data/sub/mark"))["stdout"] == "then\n"
    assert (await machine.run("cat", "/data/sub/mark"))["stdout"] == "now\n"
    actions = [action.action for action in await admin.actions()]
    assert actions.count("volume_create") == 2
    assert {"snapshot", "snapshot_created"} <= set(actions)


async def test_a_volume_that_is_being_restored_is_not_mounted(settings: Settings) -> None:
    async with (
        serve(replace(settings, volume_fill_ms=60_000)) as emulator,
        ApiClient(emulator.api_url) as client,
    ):
        await client.expect(201, "POST", "/v1/apps", {"name": "birds", "org_slug": "x"})
        taken = await snapshot(client, await make(client))
        restored = await make(client, snapshot_id=taken["id"])
        early = {"image": BASE, "mounts": [{"volume": restored["id"], "path": "/data"}]}
        await App(client, "birds").create(412, config=early)


async def test_a_second_snapshot_at_once_is_rejected(settings: Settings) -> None:
    """Fly conformance case 74."""
    async with (
        serve(replace(settings, snapshot_ms=60_000)) as emulator,
        ApiClient(emulator.api_url) as client,
    ):
        await client.expect(201, "POST", "/v1/apps", {"name": "birds", "org_slug": "x"})
        snapshots = f"{STEM}/{(await make(client))['id']}/snapshots"
        await client.expect(200, "POST", snapshots)
        error = await client.expect(412, "POST", snapshots)
        assert "snapshot is already scheduled at" in error["error"]
        listed = await client.expect(200, "GET", snapshots)
        assert len(listed) == 1
        await make(client, 412, snapshot_id=listed[0]["id"])
        await make(client, 404, snapshot_id="vs_unknown")


async def test_the_snapshots_of_a_deleted_volume_can_be_restored(app: App) -> None:
    volume = await make(app.client)
    machine = await machine_with(app, volume)
    await machine.run("touch", "/data/mark")
    taken = await snapshot(app.client, volume)
    await machine.delete(force="true")

    async def deleted() -> bool:
        return (await app.client.send("DELETE", f"{STEM}/{volume['id']}")).status_code == 200

    await until(deleted)
    assert await app.client.expect(200, "GET", f"{STEM}/{volume['id']}/snapshots") == [taken]
    restored = await make(app.client, snapshot_id=taken["id"])
    await settled(app.client, restored)
    again = await machine_with(app, restored)
    assert (await again.run("ls", "/data"))["stdout"] == "mark\n"


async def test_a_fork_is_mounted_while_it_is_filled(app: App) -> None:
    volume = await make(app.client)
    machine = await machine_with(app, volume)
    await machine.run("touch", "/data/mark")
    fork = await make(app.client, source_volume_id=volume["id"])
    assert fork["state"] == "hydrating"
    second = await machine_with(app, fork)
    assert (await second.run("ls", "/data"))["stdout"] == "mark\n"
    await second.run("rm", "/data/mark")
    assert (await machine.run("ls", "/data"))["stdout"] == "mark\n"


async def test_an_update_gives_a_volume_back_or_keeps_it(app: App) -> None:
    """Fly conformance case 44."""
    volume, other = await make(app.client), await make(app.client)
    machine = await machine_with(app, volume)
    for mounts, status in (([{"volume": other["id"], "path": "/data"}], 400), (None, 200)):
        config = {"image": BASE, **({"mounts": mounts} if mounts else {})}
        await app.client.expect(status, "POST", machine.path, {"config": config})
    assert "mounts" not in (await machine.get())["config"]
    await machine.wait("started")
    shown = await app.client.expect(200, "GET", f"{STEM}/{volume['id']}")
    assert "attached_machine_id" not in shown
    assert (await machine.run("ls"))["stdout"] == ""


async def test_a_full_host_and_a_full_region_reject(app: App, admin: Admin) -> None:
    """Fly conformance case 20."""
    volume = await make(app.client)
    await admin.set_fault("capacity", action="create")
    config = {"image": BASE, "mounts": [{"volume": volume["id"], "path": "/data"}]}
    error = await app.create(412, config=config)
    assert error["status"] == "volume_placement_capacity"
    assert volume["id"] in error["error"]
    await app.create(config=config)
    await admin.set_fault("capacity", action="volume_create")
    assert "insufficient resources" in (await make(app.client, 412))["error"]


async def test_the_end_of_an_app_is_the_end_of_its_volumes(app: App) -> None:
    """Fly conformance case 7."""
    volume = await make(app.client)
    await machine_with(app, volume)
    await app.client.expect(202, "DELETE", "/v1/apps/birds")
    await app.client.expect(404, "GET", f"{STEM}/{volume['id']}")
    await app.client.expect(201, "POST", "/v1/apps", {"name": "birds", "org_slug": "personal"})
    assert await app.client.expect(200, "GET", STEM) == []


async def test_a_snapshot_whose_time_is_over_is_removed(settings: Settings) -> None:
    settings = replace(settings, auto_backup_ms=200)
    async with serve(settings) as emulator, ApiClient(emulator.api_url) as client:
        await client.expect(201, "POST", "/v1/apps", {"name": "birds", "org_slug": "personal"})
        volume = await make(client, auto_backup_enabled=False, snapshot_retention=1)
        kept, old = await snapshot(client, volume), await snapshot(client, volume)
    folder = settings.data / "volumes" / volume["id"]
    assert {path.name for path in (folder / "snapshots").iterdir()} == {kept["id"], old["id"]}
    stored = json.loads((folder / "volume.json").read_text())
    next(one for one in stored["snapshots"] if one["id"] == old["id"])["created_s"] -= 90_000
    (folder / "volume.json").write_text(json.dumps(stored))
    async with serve(settings) as emulator, ApiClient(emulator.api_url) as client:

        async def removed() -> bool:
            return [path.name for path in (folder / "snapshots").iterdir()] == [kept["id"]]

        await until(removed)
        listed = await client.expect(200, "GET", f"{STEM}/{volume['id']}/snapshots")
        assert [one["id"] for one in listed] == [kept["id"]]
