"""Stop, start, suspend and resume of real processes."""

import asyncio
import os
import signal
from dataclasses import replace

import pytest

from local.fly.emulator import serve
from local.fly.settings import Settings
from tests.cases import each
from tests.local.fly.api_client import ApiClient, App, Machine, until
from tests.local.fly.process_state import GONE, process_state

# Prints each signal that it gets; only SIGKILL ends it.
STUBBORN = (
    "sh",
    "-c",
    (
        'for name in INT TERM USR1; do trap "echo $name >>signals" $name; done; '
        "touch ready; while :; do sleep 0.01; done"
    ),
)


async def machine_with(settings: Settings, client: ApiClient, *command: str) -> Machine:
    await client.expect(201, "POST", "/v1/apps", {"name": "birds", "org_slug": "x"})
    app = App(client, "birds")
    return await app.running(*command) if command else await app.started()


async def ready(machine: Machine) -> None:
    """Wait until the guest has created the file `ready`."""

    async def there() -> bool:
        return bool((await machine.run("test", "-e", "ready"))["exit_code"] == 0)

    await until(there)


@pytest.mark.parametrize("body", [None, {}, {"id": "x", "timeout": "0s"}])
async def test_a_started_machine_stops(app: App, body: object) -> None:
    """Fly conformance case 26."""
    machine = await app.started()
    assert await machine.post("stop", body) == {"ok": True}
    await machine.wait("stopped")
    newest = (await machine.get())["events"][0]
    assert (newest["type"], newest["status"], newest["source"]) == ("exit", "stopped", "flyd")
    assert newest["request"]["exit_event"]["requested_stop"] is True
    assert [event["status"] for event in (await machine.get())["events"]][1] == "stopping"


async def test_a_stop_is_not_lost_on_a_guest_that_only_begins(app: App) -> None:
    """Also if the emulator ignores SIGINT, as a shell's background job does."""
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        machine = await app.running("sleep", "infinity")
        await machine.stopped()
    finally:
        signal.signal(signal.SIGINT, former)
    exit_event = (await machine.get())["events"][0]["request"]["exit_event"]
    assert exit_event["signal"] == signal.SIGINT, "it was killed when its time was over"


async def test_a_stop_sends_its_signal_and_then_kills(app: App) -> None:
    """Fly conformance case 27."""
    machine = await app.running(*STUBBORN, rootfs={"persist": "restart"})
    await ready(machine)
    before = asyncio.get_running_loop().time()
    # Long enough for the guest to handle the signal, on a busy machine too.
    await machine.post("stop", {"signal": "SIGTERM", "timeout": "3s"})
    await machine.wait("stopped")
    assert asyncio.get_running_loop().time() - before >= 3
    exit_event = (await machine.get())["events"][0]["request"]["exit_event"]
    assert exit_event["signal"] == 9
    await machine.resumed()
    assert (await machine.run("cat", "signals"))["stdout"].split()[0] == "TERM"


async def test_the_config_says_how_to_stop(app: App) -> None:
    config = {"stop_config": {"signal": "SIGUSR1", "timeout": "3s"}}
    machine = await app.running(*STUBBORN, rootfs={"persist": "restart"}, **config)
    await ready(machine)
    await machine.stopped()
    await machine.resumed()
    assert (await machine.run("cat", "signals"))["stdout"].split()[0] == "USR1"


@each("body", [[], "SIGTERM", {"signal": "SIGSTOP"}, {"signal": 9}, {"timeout": "soon"}])
async def test_a_malformed_stop_is_rejected(app: App, body: object) -> None:
    """Fly conformance case 28."""
    machine = await app.started()
    error = await machine.post("stop", body, status=400)
    if body == []:
        text = "json: cannot unmarshal array into Go value of type main.stopRequest"
        assert error["error"] == text
    assert await machine.state() == "started"


async def test_stopping_twice_is_as_good(app: App) -> None:
    """Fly conformance case 29."""
    machine = await app.started()
    await machine.stopped()
    assert await machine.post("stop") == {"ok": True}
    assert await machine.state() == "stopped"


async def test_stopping_a_suspended_machine_drops_its_snapshot(app: App) -> None:
    """Fly conformance case 30."""
    machine = await app.started()
    boot_id = await machine.boot_id()
    await machine.suspended()
    await machine.stopped()
    await machine.resumed()
    assert await machine.boot_id() != boot_id


async def test_a_machine_just_stopped_may_still_be_active(settings: Settings) -> None:
    """Fly conformance case 31."""
    async with (
        serve(replace(settings, still_active_ms=60_000)) as emulator,
        ApiClient(emulator.api_url) as client,
    ):
        machine = await machine_with(settings, client)
        await machine.stopped()
        error = await machine.post("start", status=412)
        assert "machine still active, refusing to start" in error["error"]


async def test_a_machine_is_not_active_for_ever(settings: Settings) -> None:
    """Fly conformance case 31."""
    async with (
        serve(replace(settings, still_active_ms=300)) as emulator,
        ApiClient(emulator.api_url) as client,
    ):
        machine = await machine_with(settings, client)
        await machine.stopped()

        async def starts() -> bool:
            return (await client.send("POST", f"{machine.path}/start")).status_code == 200

        await until(starts)


async def test_a_stopped_machine_starts_with_an_empty_root_file_system(app: App) -> None:
    """Fly conformance case 32."""
    machine = await app.started()
    await machine.run("touch", "mark")
    boot_id = await machine.boot_id()
    await machine.stopped()
    started = await machine.post("start")
    assert started["previous_state"] == "stopped"
    await machine.wait("started")
    assert (await machine.run("ls"))["stdout"] == ""
    assert await machine.boot_id() != boot_id


@pytest.mark.parametrize("persist", ["restart", "always"])
async def test_a_persistent_root_file_system_outlives_a_stop(app: App, persist: str) -> None:
    machine = await app.started(rootfs={"persist": persist})
    await machine.run("touch", "mark")
    await machine.stopped()
    await machine.resumed()
    assert (await machine.run("ls"))["stdout"].split() == ["mark"]


async def test_a_start_while_starting_is_rejected(settings: Settings) -> None:
    """Fly conformance case 33."""
    async with (
        serve(replace(settings, start_ms=60_000)) as emulator,
        ApiClient(emulator.api_url) as client,
    ):
        await client.expect(201, "POST", "/v1/apps", {"name": "birds", "org_slug": "x"})
        app = App(client, "birds")
        machine = Machine(app, (await app.create(skip_launch=True))["id"])
        await machine.wait("stopped")
        await machine.post("start")
        error = await machine.post("start", status=409)
        assert error["error"] == "aborted: machine still attempting to start"


@pytest.mark.parametrize(("choice", "status"), [("ok", 200), ("conflict", 409)])
async def test_a_start_of_a_started_machine_is_as_it_is_set(
    settings: Settings, choice: str, status: int
) -> None:
    """Fly conformance case 34."""
    async with (
        serve(settings.with_texts({"start_on_started": choice})) as emulator,
        ApiClient(emulator.api_url) as client,
    ):
        machine = await machine_with(settings, client)
        answer = await machine.post("start", status=status)
        assert answer.get("previous_state", "started") == "started"


async def test_a_suspended_machine_keeps_memory_process_and_files(app: App) -> None:
    """Fly conformance cases 35 and 36."""
    machine = await app.started()
    await machine.run("touch", "mark")
    pids = [process["pid"] for process in await app.client.expect(200, "GET", f"{machine.path}/ps")]
    boot_id = await machine.boot_id()
    assert await machine.post("suspend") == {"ok": True}
    await machine.wait("suspended")

    async def stopped() -> bool:
        # The kernel stops a process when it is next scheduled: on a busy machine not at once.
        return process_state(pids[0]) == "T"

    await until(stopped)
    started = await machine.post("start")
    assert started["previous_state"] == "suspended"
    await machine.wait("started")
    after = await app.client.expect(200, "GET", f"{machine.path}/ps")
    assert [process["pid"] for process in after] == pids
    assert await machine.boot_id() == boot_id
    assert (await machine.run("ls"))["stdout"].split() == ["mark"]


async def test_a_start_interrupts_a_suspend(settings: Settings) -> None:
    """Fly conformance case 38."""
    async with (
        serve(replace(settings, suspend_ms=60_000)) as emulator,
        ApiClient(emulator.api_url) as client,
    ):
        machine = await machine_with(settings, client)
        boot_id = await machine.boot_id()
        await machine.post("suspend")
        assert await machine.state() == "suspending"
        assert (await machine.post("start"))["previous_state"] == "suspending"
        await machine.wait("started")
        assert await machine.boot_id() == boot_id


async def test_a_start_during_a_suspend_can_be_rejected_instead(settings: Settings) -> None:
    """Fly conformance case 38, as other users observed it."""
    slow = replace(settings, suspend_ms=60_000, start_while_suspending="refuse")
    async with serve(slow) as emulator, ApiClient(emulator.api_url) as client:
        machine = await machine_with(settings, client)
        await machine.post("suspend")
        assert "refusing to start" in (await machine.post("start", status=412))["error"]


@pytest.mark.parametrize("config", [{"schedule": "daily"}, {"init": {"swap_size_mb": 512}}])
async def test_a_machine_that_cannot_be_snapshot_is_not_suspended(
    app: App, config: dict[str, object]
) -> None:
    """Fly conformance case 39."""
    machine = await app.started(**config)
    await machine.post("suspend", status=412)
    assert await machine.state() == "started"


@each("verb", ["suspend", "restart", "exec", "signal"])
async def test_verbs_for_running_machines_are_rejected_on_stopped_ones(app: App, verb: str) -> None:
    machine = await app.started()
    await machine.stopped()
    body = {"signal": "SIGUSR1"} if verb == "signal" else {"cmd": "true"}
    assert "failed_precondition" in (await machine.post(verb, body, status=412))["error"]


async def test_a_restart_is_a_new_boot(app: App) -> None:
    machine = await app.started()
    boot_id, before = await machine.boot_id(), (await machine.get())["events"][0]["id"]
    assert await machine.post("restart", timeout="1") == {"ok": True}
    await machine.wait("started", from_event_id=before)
    assert await machine.boot_id() != boot_id


@pytest.mark.parametrize("given", ["SIGUSR1", 10])
async def test_a_signal_reaches_the_main_process(app: App, given: object) -> None:
    """Fly conformance case 66."""
    machine = await app.running(*STUBBORN, stop_config={"signal": "SIGKILL"})
    await ready(machine)
    await machine.post("signal", {"signal": given})

    async def noted() -> bool:
        return bool((await machine.run("cat", "signals"))["stdout"] == "USR1\n")

    await until(noted)
    await machine.post("signal", {"signal": "SIGNONE"}, status=400)
    await machine.post("signal", {"signal": 9})


async def test_what_the_main_process_started_ends_with_it(app: App) -> None:
    machine = await app.running("sh", "-c", "sleep 1000 & echo $! >child; touch ready; wait")
    await ready(machine)
    child = int((await machine.run("cat", "child"))["stdout"])
    await machine.stopped()

    async def gone() -> bool:
        return process_state(child) in GONE

    await until(gone)


async def test_a_machine_killed_while_suspended_boots_cold_and_keeps_its_files(app: App) -> None:
    machine = await app.started()
    await machine.run("touch", "mark")
    boot_id = await machine.boot_id()
    pid = (await app.client.expect(200, "GET", f"{machine.path}/ps"))[0]["pid"]
    await machine.suspended()
    os.kill(pid, 9)

    async def gone() -> bool:
        return process_state(pid) in GONE

    await until(gone)
    assert await machine.state() == "suspended"
    await machine.resumed()
    assert await machine.boot_id() != boot_id
    assert (await machine.run("ls"))["stdout"].split() == ["mark"]


async def test_states_change_and_are_seen_in_order(app: App) -> None:
    machine = await app.started()
    await machine.suspended()
    await machine.resumed()
    await machine.stopped()
    await machine.delete()
    await machine.wait("destroyed")
    seen = [event["status"] for event in reversed((await machine.get())["events"])]
    assert seen == [
        "created",
        "starting",
        "started",
        "suspending",
        "suspended",
        "starting",
        "started",
        "stopping",
        "stopped",
        "destroying",
        "destroyed",
    ]
