"""Injected faults: each kind, and its limits."""

import asyncio
import contextlib
from typing import Literal

import httpx
import pytest

from local.fly.admin import Admin, FaultError
from local.fly.emulator import Emulator
from local.fly.faults import KINDS, FaultContext, Faults
from tests.cases import each
from tests.local.fly.api_client import COUNTER, App, Json, Machine, error_of, until


def create(app: App, **body: Json) -> Json:
    return app.client.send("POST", app.machines, {"config": {"image": COUNTER}, **body})


async def actions(admin: Admin, name: str) -> int:
    """How many actions of this name were committed."""
    return sum(action.action == name for action in await admin.actions())


async def test_a_slow_request_is_committed_though_its_caller_has_gone(
    app: App, admin: Admin
) -> None:
    """By the emulator's own clock: a busy machine may delay the test, but not hurry the commit."""
    machine = await app.started()
    await admin.set_fault("slow_before", action="suspend", delay_ms=3000)
    asking = asyncio.create_task(machine.post("suspend"))
    await until(lambda: is_held(admin, "suspend"))
    asking.cancel()
    await asyncio.wait([asking])
    assert asking.cancelled()
    await machine.wait("suspended")
    (asked,) = [request for request in await admin.requests() if request.action == "suspend"]
    (done,) = [action for action in await admin.actions() if action.action == "suspend"]
    assert done.time_ms - asked.time_ms >= 3000


async def is_held(admin: Admin, action: str) -> bool:
    """Whether such a request has come and is not answered."""
    requests = await admin.requests()
    return any(one.action == action and one.status is None for one in requests)


async def test_the_end_of_a_fault_ends_its_delays(app: App, admin: Admin) -> None:
    """Before the commit, after it, and of reads; also the end of all faults."""
    machine = await app.started()
    before = await admin.set_fault("slow_before", action="suspend", delay_ms=3_600_000)
    asking = asyncio.create_task(machine.post("suspend"))
    await until(lambda: is_held(admin, "suspend"))
    await admin.end_fault(before)
    await asking
    await machine.wait("suspended")

    after = await admin.set_fault("slow_after", action="start", delay_ms=3_600_000)
    asking = asyncio.create_task(machine.post("start"))
    await machine.wait("started")
    await admin.end_fault(after)
    await asking

    stale = await admin.set_fault("stale_read", delay_ms=3_600_000)
    hidden = Machine(app, (await app.create())["id"])
    await app.client.expect(404, "GET", hidden.path)
    await admin.end_fault(stale)
    await hidden.wait("started")

    await admin.set_fault("slow_before", action="stop", delay_ms=3_600_000)
    asking = asyncio.create_task(machine.post("stop"))
    await until(lambda: is_held(admin, "stop"))
    await admin.clear_faults()
    await asking
    await machine.wait("stopped")


async def test_a_late_request_meets_the_lease_that_is_held_when_it_commits(
    app: App, admin: Admin
) -> None:
    machine = await app.started()
    nonce = (await machine.post("lease", {"ttl": 30}, status=201))["data"]["nonce"]
    fault = await admin.set_fault("slow_before", action="suspend", delay_ms=60_000)
    late = asyncio.create_task(app.client.send("POST", f"{machine.path}/suspend", nonce=nonce))
    await until(lambda: is_held(admin, "suspend"))
    released = await app.client.send("DELETE", f"{machine.path}/lease", nonce=nonce)
    assert released.status_code == 200
    await machine.post("lease", {"ttl": 30}, status=201)
    await admin.end_fault(fault)
    assert (await late).status_code == 409
    assert await machine.state() == "started"
    assert await actions(admin, "suspend") == 0


async def test_a_slow_answer_comes_after_the_commit(app: App, admin: Admin) -> None:
    machine = await app.started()
    fault = await admin.set_fault("slow_after", action="suspend", delay_ms=60_000)
    slow = asyncio.create_task(machine.post("suspend"))
    await machine.wait("suspended")
    assert not slow.done()
    await admin.end_fault(fault)
    assert await slow == {"ok": True}


async def test_a_limited_request_is_429(app: App, admin: Admin) -> None:
    await admin.set_fault("rate_limited", action="create", times=2)
    assert [(await create(app)).status_code for _ in range(3)] == [429, 429, 200]


async def test_a_server_error_commits_nothing(app: App, admin: Admin) -> None:
    await admin.set_fault("server_error", action="create", status=502, body="upstream failed")
    reply = await create(app)
    assert (reply.status_code, reply.text) == (502, "upstream failed")
    await admin.set_fault("server_error", route="POST /v1/apps/{app}/machines")
    reply = await create(app)
    assert reply.status_code == 503
    error_of(reply)
    assert await app.list() == []


@pytest.mark.parametrize("answer", ["503", "close"])
async def test_an_outage_is_of_the_api_alone(
    app: App, admin: Admin, emulator: Emulator, answer: Literal["503", "close"]
) -> None:
    machine = await app.started()
    if answer == "close":
        await admin.set_fault("unavailable", answer="close")
        with pytest.raises(httpx.RemoteProtocolError):
            await app.client.send("GET", machine.path)
    else:
        await admin.set_fault("unavailable")
        assert (await app.client.send("GET", machine.path)).status_code == 503
    async with httpx.AsyncClient(trust_env=False, verify=False, timeout=30) as http:
        headers = {"fly-force-instance-id": machine.id}
        assert (await http.get(emulator.proxy_url, headers=headers)).text == "0"
    await admin.clear_faults()
    assert await machine.state() == "started"


async def test_an_outage_ends_by_itself(app: App, admin: Admin) -> None:
    await admin.set_fault("unavailable", for_ms=500)
    assert (await create(app)).status_code == 503

    async def works() -> bool:
        return (await app.client.send("GET", app.machines)).status_code == 200

    await until(works)
    assert [fault.active for fault in await admin.faults()] == [False]


@pytest.mark.parametrize("answer", ["408", "504", "close"])
async def test_a_lost_answer_is_of_something_done(
    app: App, admin: Admin, answer: Literal["408", "504", "close"]
) -> None:
    """Fly conformance case 22."""
    await admin.set_fault("answer_lost", action="create", answer=answer)
    body = {"image": COUNTER, "metadata": {"key": "1"}}
    expected = (
        pytest.raises(httpx.RemoteProtocolError) if answer == "close" else contextlib.nullcontext()
    )
    with expected:
        reply = await create(app, config=body)
        assert reply.status_code == int(answer)
    assert len(await app.list(**{"metadata.key": "1"})) == 1
    statuses = [one.status for one in await admin.requests() if one.action == "create"]
    assert statuses == [0 if answer == "close" else int(answer)]


async def test_a_dropped_snapshot_is_a_cold_boot_that_keeps_the_files(
    app: App, admin: Admin
) -> None:
    """Fly conformance case 37."""
    machine, other = await app.started(), await app.started()
    await machine.run("touch", "mark")
    boot_ids = await machine.boot_id(), await other.boot_id()
    fault = await admin.set_fault("snapshot_dropped", machine=machine.id)
    for one in (machine, other):
        await one.suspended()
        await one.resumed()
    assert await machine.boot_id() != boot_ids[0]
    assert await other.boot_id() == boot_ids[1]
    assert (await machine.run("ls"))["stdout"].split() == ["mark"]
    assert await admin.fired(fault) == 1
    boots = [action.detail["boot"] for action in await admin.actions() if "boot" in action.detail]
    assert boots == ["cold", "cold", "cold", "resumed"]


async def test_a_failed_suspend_leaves_the_machine_running(app: App, admin: Admin) -> None:
    machine = await app.started()
    boot_id, newest = await machine.boot_id(), (await machine.get())["events"][0]["id"]
    await admin.set_fault("suspend_fails")
    assert await machine.post("suspend") == {"ok": True}
    await machine.wait("started", from_event_id=newest)
    assert await machine.boot_id() == boot_id
    await machine.suspended()


async def test_a_suspend_may_end_stopped(app: App, admin: Admin) -> None:
    machine = await app.started()
    await admin.set_fault("suspend_stops")
    assert await machine.post("suspend") == {"ok": True}
    await machine.wait("stopped")


async def test_a_full_region_rejects_a_create(app: App, admin: Admin) -> None:
    """Fly conformance case 19."""
    await admin.set_fault("capacity", action="create")
    reply = await create(app)
    assert reply.status_code == 422
    assert error_of(reply)["status"] == "insufficient_capacity"
    assert await app.list() == []
    assert await actions(admin, "create") == 0


async def test_a_full_host_rejects_a_start_and_an_update(app: App, admin: Admin) -> None:
    """Fly conformance case 21."""
    machine = await app.started()
    await machine.stopped()
    await admin.set_fault("capacity", machine=machine.id, times=2)
    error = await machine.post("start", status=409)
    assert "could not reserve resource for machine: insufficient memory" in error["error"]
    assert "status" not in error
    body = {"config": {"image": COUNTER}}
    assert (await app.client.send("POST", machine.path, body)).status_code == 409
    await machine.resumed()


@pytest.mark.parametrize("at_once", [True, False])
async def test_a_vanished_machine_is_found_nowhere(app: App, admin: Admin, at_once: bool) -> None:
    machine = Machine(app, (await app.create(name="one"))["id"])
    await machine.wait("started")
    if at_once:
        await admin.set_fault("machine_vanished", machine=machine.id)
    else:
        await admin.set_fault("machine_vanished", action="start")
        await machine.post("start", status=404)
    await app.client.expect(404, "GET", machine.path)
    await machine.wait("destroyed", status=404)
    assert await app.list(include_deleted="true") == []
    assert await actions(admin, "vanished") == 1
    assert await app.create(name="one")


async def test_a_wait_on_a_machine_that_vanishes_is_404(app: App, admin: Admin) -> None:
    machine = await app.started()
    waiting = asyncio.create_task(machine.wait("stopped", status=404))

    async def waits() -> bool:
        newest = (await admin.requests())[-1]
        return newest.action == "wait" and newest.status is None

    await until(waits)
    await admin.set_fault("machine_vanished", machine=machine.id)
    await waiting


async def test_reads_after_a_create_may_lag(app: App, admin: Admin) -> None:
    fault = await admin.set_fault("stale_read", delay_ms=60_000)
    machine = Machine(app, (await app.create())["id"])
    await app.client.expect(404, "GET", machine.path)
    await machine.wait("started", status=404)
    assert await app.list() == []
    await admin.end_fault(fault)
    await machine.get()
    assert len(await app.list()) == 1


async def test_an_exec_may_fail_or_exit_otherwise(app: App, admin: Admin) -> None:
    machine = await app.started()
    await admin.set_fault("exec_fails")
    await machine.post("exec", {"cmd": "true"}, status=500)
    await admin.set_fault("exec_fails", exit_code=7, body="no space")
    ran = await machine.run("true")
    assert (ran["exit_code"], ran["stderr"]) == (7, "no space")
    assert (await machine.run("true"))["exit_code"] == 0


async def test_the_oldest_fault_that_fits_strikes(app: App, admin: Admin) -> None:
    first = await admin.set_fault("server_error", action="create", status=500)
    second = await admin.set_fault("server_error", app="birds", status=502, times=None)
    other = await admin.set_fault("server_error", app="bees", status=504)
    assert [(await create(app)).status_code for _ in range(3)] == [500, 502, 502]
    assert [await admin.fired(fault) for fault in (first, second, other)] == [1, 2, 0]


@each(
    ("fault", "field"),
    [
        ({}, "kind"),
        ({"kind": "gremlins"}, "kind"),
        ({"kind": "capacity", "color": "red"}, "color"),
        ({"kind": "capacity", "match": {"machines": "x"}}, "match.machines"),
        ({"kind": "capacity", "match": "create"}, "match"),
        ({"kind": "capacity", "match": {"action": 1}}, "match"),
        ({"kind": "capacity", "match": {"action": "creat"}}, "match.action"),
        ({"kind": "capacity", "times": 0}, "times"),
        ({"kind": "capacity", "times": "2"}, "times"),
        ({"kind": "capacity", "probability": 2}, "probability"),
        ({"kind": "capacity", "probability": 0}, "probability"),
        ({"kind": "capacity", "seed": -1}, "seed"),
        ({"kind": "slow_before", "delay_ms": -1}, "delay_ms"),
        ({"kind": "unavailable", "for_ms": 0}, "for_ms"),
        ({"kind": "server_error", "status": 99}, "status"),
        ({"kind": "server_error", "status": 1000}, "status"),
        ({"kind": "server_error", "body": 5}, "body"),
        ({"kind": "answer_lost", "answer": "410"}, "answer"),
        ({"kind": "exec_fails", "exit_code": "1"}, "exit_code"),
    ],
)
async def test_an_invalid_fault_is_rejected_with_the_name_of_its_field(
    emulator: Emulator, fault: Json, field: str
) -> None:
    async with httpx.AsyncClient(trust_env=False, verify=False, timeout=30) as http:
        reply = await http.post(f"{emulator.api_url}/_emulator/faults", json=fault)
        listed = await http.get(f"{emulator.api_url}/_emulator/faults")
    assert reply.status_code == 400
    assert reply.json()["field"] == field
    assert field in reply.json()["error"]
    assert listed.json() == []


async def test_the_client_says_what_is_wrong_with_a_fault(admin: Admin) -> None:
    with pytest.raises(FaultError, match=r"fault\.kind"):
        await admin.set_fault("gremlins")


def test_the_same_seed_throws_the_same_dice() -> None:
    def throws(seed: int) -> list[bool]:
        faults = Faults()
        faults.add({"kind": "rate_limited", "probability": 0.5, "seed": seed, "times": None})
        return [faults.fire("rate_limited", FaultContext("get")) is not None for _ in range(64)]

    assert throws(1) == throws(1)
    assert throws(1) != throws(2)
    assert 10 < sum(throws(1)) < 54


def test_a_fault_of_a_duration_is_over_by_the_clock() -> None:
    now = 0.0
    faults = Faults(lambda: now)
    faults.add({"kind": "unavailable", "for_ms": 1000})
    assert faults.fire("unavailable", FaultContext("get"))
    now = 0.999
    assert faults.fire("unavailable", FaultContext("get"))
    now = 1.0
    assert not faults.fire("unavailable", FaultContext("get"))


def test_every_kind_says_what_it_does() -> None:
    faults = Faults()
    for kind in KINDS:
        assert faults.add({"kind": kind}).kind == kind
