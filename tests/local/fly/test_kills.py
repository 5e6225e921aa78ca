"""SIGKILL of the emulator under load: it restarts as after a reboot of its host."""

from __future__ import annotations

import asyncio
import contextlib
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import httpx
import pytest

from local.fly.emulator_process import running
from tests.eventually import eventually
from tests.local.fly.api_client import BASE, ApiClient, App, Json, Machine, until
from tests.local.fly.process_state import GONE, process_state
from tests.open_processes import using

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from local.fly.settings import Settings

#: Two emulators one after the other, and six callers: half a minute on a busy machine.
pytestmark = pytest.mark.timeout(240)
STEM = "/v1/apps/birds"
FINAL_STATES = {"stopped", "failed", "destroyed"}


@pytest.fixture
def slow(settings: Settings) -> Settings:
    """Settings with long transitions, so that some are in progress at the kill."""
    slow = ("create_ms", "start_ms", "suspend_ms", "replace_ms", "destroy_ms")
    volumes = ("volume_fill_ms", "volume_release_ms", "snapshot_ms")
    return settings.with_texts(dict.fromkeys(slow + volumes, "150"))


@dataclass
class Acknowledged:
    """The ids that the emulator returned before it was killed."""

    machines: set[str] = field(default_factory=set)
    volumes: set[str] = field(default_factory=set)
    snapshots: set[str] = field(default_factory=set)
    pids: set[int] = field(default_factory=set)


class Storm:
    """Concurrent callers of every operation, until the emulator is killed."""

    def __init__(self, client: ApiClient, seed: int) -> None:
        self.acknowledged = Acknowledged()
        self._client = client
        self._dice = random.Random(seed)

    async def run(self) -> None:
        """Run one caller."""
        acts: tuple[Callable[[], Awaitable[None]], ...] = (
            self._create,
            self._create,
            self._make_volume,
            self._snapshot,
            self._act,
            self._act,
            self._act,
            self._look,
        )
        with contextlib.suppress(httpx.HTTPError):
            while True:
                await self._dice.choice(acts)()

    async def _send(self, method: str, path: str, json: Json = None) -> Json:
        reply = await self._client.send(method, STEM + path, json)
        assert reply.status_code < 500, reply.text
        return reply.json() if reply.status_code == 200 else None

    async def _create(self) -> None:
        script = "sleep 1000 & sleep 1000"
        config: Json = {"image": BASE, "init": {"exec": ["sh", "-c", script]}}
        volume = self._any(self.acknowledged.volumes)
        if volume and self._dice.random() < 0.5:
            config["mounts"] = [{"volume": volume, "path": "/data"}]
        made = await self._send("POST", "/machines", {"config": config})
        if made:
            self.acknowledged.machines.add(made["id"])

    async def _make_volume(self) -> None:
        body: Json = {"name": "data", "size_gb": 1}
        if (snapshot := self._any(self.acknowledged.snapshots)) and self._dice.random() < 0.5:
            body["snapshot_id"] = snapshot
        made = await self._send("POST", "/volumes", body)
        if made:
            self.acknowledged.volumes.add(made["id"])

    async def _snapshot(self) -> None:
        if volume := self._any(self.acknowledged.volumes):
            begun = await self._send("POST", f"/volumes/{volume}/snapshots")
            if begun:
                self.acknowledged.snapshots.add(begun["Msg"]["backup"]["id"])

    async def _act(self) -> None:
        if machine := self._any(self.acknowledged.machines):
            verb = self._dice.choice(["start", "stop", "suspend", "update", "destroy", "exec"])
            path = f"/machines/{machine}"
            if verb == "destroy":
                await self._send("DELETE", path + "?force=true")
            elif verb == "update":
                await self._send("POST", path, {"config": {"image": BASE}})
            else:
                command = {"cmd": "sleep 0.2"} if verb == "exec" else None
                await self._send("POST", f"{path}/{verb}", command)

    async def _look(self) -> None:
        if machine := self._any(self.acknowledged.machines):
            found = await self._send("GET", f"/machines/{machine}/ps")
            self.acknowledged.pids |= {one["pid"] for one in found or []}

    def _any(self, ids: set[str]) -> str:
        return self._dice.choice(sorted(ids)) if ids else ""


async def rebooted(client: ApiClient, acknowledged: Acknowledged) -> None:
    """Assert that everything acknowledged exists, in a final state, with valid claims."""
    app = App(client, "birds")
    machines = {one["id"]: one for one in await app.list(include_deleted="true")}
    assert acknowledged.machines <= set(machines)
    assert {one["state"] for one in machines.values()} <= FINAL_STATES
    volumes = {one["id"]: one for one in await client.expect(200, "GET", f"{STEM}/volumes")}
    assert acknowledged.volumes <= set(volumes)
    claims = {one["id"]: one.get("attached_machine_id") for one in volumes.values()}
    for volume, holder in claims.items():
        if holder:
            assert machines[holder]["config"]["mounts"][0]["volume"] == volume
    for machine in machines.values():
        mounts = machine["config"].get("mounts", [])
        if mounts and machine["state"] != "destroyed":
            assert claims[mounts[0]["volume"]] == machine["id"]

    async def finished() -> bool:
        shown = await client.expect(200, "GET", f"{STEM}/volumes")
        listings = [
            await client.expect(200, "GET", f"{STEM}/volumes/{one['id']}/snapshots")
            for one in shown
        ]
        found = {one["id"]: one["status"] for listing in listings for one in listing}
        assert acknowledged.snapshots <= set(found)
        return {one["state"] for one in shown} | set(found.values()) <= {"created"}

    await until(finished)


@pytest.mark.parametrize("seed", range(4))
async def test_a_kill_in_the_middle_of_everything_is_a_reboot(slow: Settings, seed: int) -> None:
    moment = random.Random(seed).uniform(0.4, 1.2)
    async with running(slow) as emulator, ApiClient(emulator.api_url) as client:
        await client.expect(201, "POST", "/v1/apps", {"name": "birds", "org_slug": "x"})
        storm = Storm(client, seed)
        callers = asyncio.gather(*(storm.run() for _ in range(6)))
        await asyncio.wait({asyncio.ensure_future(callers)}, timeout=moment)
        # On a busy machine the first machine and the first volume may come later.
        await eventually(lambda: storm.acknowledged.machines and storm.acknowledged.volumes)
        emulator.process.kill()
        await emulator.process.wait()
        await callers
    await until(lambda: all_ended(storm.acknowledged.pids, slow.data))
    async with running(slow) as again, ApiClient(again.api_url) as client:
        await rebooted(client, storm.acknowledged)
        # No process is adopted: a machine that is started again has a new process.
        machines = [one for one in await App(client, "birds").list() if one["state"] == "stopped"]
        for one in machines[:2]:
            machine = Machine(App(client, "birds"), one["id"])
            await machine.resumed()
            assert len(await pids(machine)) >= 1
            assert not storm.acknowledged.pids & set(await pids(machine))
    await until(lambda: all_ended(set(), slow.data))


async def test_a_file_that_was_there_before_the_kill_is_there_after_it(slow: Settings) -> None:
    async with running(slow) as emulator, ApiClient(emulator.api_url) as client:
        await client.expect(201, "POST", "/v1/apps", {"name": "birds", "org_slug": "x"})
        volume = await client.expect(200, "POST", f"{STEM}/volumes", {"name": "data"})
        mounts = [{"volume": volume["id"], "path": "/data"}]
        machine = await App(client, "birds").started(image=BASE, mounts=mounts)
        await machine.run("sh", "-c", "echo kept > /data/mark")
        snapshots = f"{STEM}/volumes/{volume['id']}/snapshots"
        begun = (await client.expect(200, "POST", snapshots))["Msg"]["backup"]
        emulator.process.kill()
        await emulator.process.wait()
    async with running(slow) as again, ApiClient(again.api_url) as client:
        machine = Machine(App(client, "birds"), machine.id)
        await machine.resumed()
        assert (await machine.run("cat", "/data/mark"))["stdout"] == "kept\n"

        async def created() -> bool:
            listed = await client.expect(200, "GET", snapshots)
            return [(one["id"], one["status"]) for one in listed] == [(begun["id"], "created")]

        await until(created)
        body = {"name": "data", "snapshot_id": begun["id"]}
        restored = await client.expect(200, "POST", f"{STEM}/volumes", body)
        again.process.kill()
        await again.process.wait()
    async with running(slow) as third, ApiClient(third.api_url) as client:
        path = f"{STEM}/volumes/{restored['id']}"

        async def filled() -> bool:
            return bool((await client.expect(200, "GET", path))["state"] == "created")

        await until(filled)
        mounts = [{"volume": restored["id"], "path": "/data"}]
        second = await App(client, "birds").started(image=BASE, mounts=mounts)
        assert (await second.run("cat", "/data/mark"))["stdout"] == "kept\n"


async def pids(machine: Machine) -> list[int]:
    found = await machine._client.expect(200, "GET", f"{machine.path}/ps")
    return [one["pid"] for one in found]


async def all_ended(pids: set[int], folder: Path) -> bool:
    """Whether none of these processes runs, nor any other that uses the folder."""
    left = await asyncio.to_thread(using, folder)
    return not left and all(process_state(pid) in GONE for pid in pids)
