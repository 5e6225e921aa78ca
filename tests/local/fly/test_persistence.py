"""A second emulator on the same folder: it finds all data, and no process of the first is left."""

import asyncio
import json
import os
import signal

import pytest

from local.fly.admin import Admin
from local.fly.emulator import serve
from local.fly.emulator_process import running
from local.fly.settings import SettingError, Settings
from tests.local.fly.api_client import COUNTER, ApiClient, App, Machine, until
from tests.local.fly.process_state import GONE, process_state


async def pids(machine: Machine, client: ApiClient) -> list[int]:
    return [one["pid"] for one in await client.expect(200, "GET", f"{machine.path}/ps")]


async def make_app(client: ApiClient) -> App:
    await client.expect(201, "POST", "/v1/apps", {"name": "birds", "org_slug": "personal"})
    return App(client, "birds")


async def test_a_second_run_finds_everything_stopped(settings: Settings) -> None:
    async with serve(settings) as emulator, ApiClient(emulator.api_url) as client:
        app = await make_app(client)
        config = {"rootfs": {"persist": "restart"}, "metadata": {"a": "1"}}
        started = await app.started(**config)
        await started.run("touch", "mark")
        suspended, stopped = await app.started(), await app.started()
        await suspended.suspended()
        await stopped.stopped()
        destroyed = await app.started()
        await destroyed.delete(force="true")
        await destroyed.wait("destroyed")
        boot_id, before = await started.boot_id(), await started.get()
        async with Admin(emulator.api_url) as admin:
            actions = await admin.actions()
    async with serve(settings) as emulator, ApiClient(emulator.api_url) as client:
        app = App(client, "birds")
        states = {one["id"]: one["state"] for one in await app.list(include_deleted="true")}
        assert list(states.items()) == [
            (started.id, "stopped"),
            (suspended.id, "stopped"),
            (stopped.id, "stopped"),
            (destroyed.id, "destroyed"),
        ]
        again = Machine(app, started.id)
        after = await again.get()
        unchanged = ("id", "name", "instance_id", "config", "created_at", "private_ip")
        assert {name: after[name] for name in unchanged} == {
            name: before[name] for name in unchanged
        }
        await again.resumed()
        assert (await again.run("ls"))["stdout"] == "mark\n"
        assert await again.boot_id() != boot_id
        async with Admin(emulator.api_url) as admin:
            assert (await admin.actions())[: len(actions)] == actions
            newest = (await admin.actions())[-1]
            assert newest.sequence > actions[-1].sequence
            assert newest.action == "started"


async def test_what_was_answered_is_on_disk_when_the_emulator_is_killed(
    settings: Settings,
) -> None:
    names = [f"machine-{number}" for number in range(10)]
    async with running(settings) as emulator, ApiClient(emulator.api_url) as client:
        app = await make_app(client)
        for name in names:
            await app.create(name=name, skip_launch=True)
        emulator.process.kill()
        await emulator.process.wait()
    async with serve(settings) as again, ApiClient(again.api_url) as client:
        assert [found["name"] for found in await App(client, "birds").list()] == names


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
async def test_no_guest_outlives_the_emulator(settings: Settings, number: int) -> None:
    async with running(settings) as emulator, ApiClient(emulator.api_url) as client:
        app = await make_app(client)
        started, suspended = await app.started(), await app.started()
        # A guest that ignores all signals it can, with a child process and an exec in progress.
        stubborn = await app.running("sh", "-c", "trap '' INT TERM HUP; sleep 1001 & sleep 1000")
        exec_ = asyncio.create_task(
            client.send("POST", f"{stubborn.path}/exec", {"cmd": "sleep 1002"})
        )

        async def all_there() -> bool:
            return len(await pids(stubborn, client)) == 3

        await until(all_there)
        found = [pid for one in (started, suspended, stubborn) for pid in await pids(one, client)]
        await suspended.suspended()
        assert len(found) == 5
        emulator.process.send_signal(number)
        status = await asyncio.wait_for(emulator.process.wait(), 30)
        assert status == (0 if number != signal.SIGKILL else -9)
        await asyncio.gather(exec_, return_exceptions=True)

        async def all_gone() -> bool:
            return all(process_state(pid) in GONE for pid in found)

        await until(all_gone)
    assert (not await asyncio.to_thread((settings.data / "ready.json").exists)) == (
        number != signal.SIGKILL
    )


async def test_a_folder_has_one_emulator(settings: Settings) -> None:
    async with serve(settings):
        with pytest.raises(SettingError, match="in use by another emulator"):
            async with serve(settings):
                pass
    async with serve(settings):
        pass


async def test_the_ready_file_says_where_the_emulator_is(settings: Settings) -> None:
    async with serve(settings) as emulator:
        text = await asyncio.to_thread((settings.data / "ready.json").read_text)
        assert json.loads(text) == {
            "pid": os.getpid(),
            "api_url": emulator.api_url,
            "proxy_url": emulator.proxy_url,
        }


async def test_an_action_cut_short_by_a_crash_is_dropped(settings: Settings) -> None:
    async with serve(settings) as emulator, ApiClient(emulator.api_url) as client:
        await make_app(client)
    log = settings.data / "actions.jsonl"
    whole = await asyncio.to_thread(log.read_text)
    await asyncio.to_thread(log.write_text, whole + '{"sequence": 2, "time')
    async with serve(settings) as emulator, ApiClient(emulator.api_url) as client:
        await App(client, "birds").create(config={"image": COUNTER}, skip_launch=True)
        async with Admin(emulator.api_url) as admin:
            assert [action.sequence for action in await admin.actions()] == [1, 2]
    lines = (await asyncio.to_thread(log.read_text)).splitlines()
    assert [json.loads(line)["sequence"] for line in lines] == [1, 2]


async def test_many_machines_change_at_once_and_all_is_kept(settings: Settings) -> None:
    async with serve(settings) as emulator, ApiClient(emulator.api_url) as client:
        app = await make_app(client)
        machines = await asyncio.gather(*(app.started() for _ in range(20)))
        await asyncio.gather(*(machine.suspended() for machine in machines[:10]))
        await asyncio.gather(*(machine.stopped() for machine in machines[10:]))
        states = [found["state"] for found in await app.list()]
        assert sorted(states) == ["stopped"] * 10 + ["suspended"] * 10
    records = await asyncio.to_thread(os.listdir, settings.data / "machines")
    assert len(records) == 20
