"""How machines end: destroyed, exited, restarted by their policy."""

import os
from dataclasses import replace

import pytest

from local.fly.admin import Admin
from local.fly.emulator import serve
from local.fly.settings import Settings
from tests.local.fly.api_client import BASE, ApiClient, App, Machine, until


async def test_a_running_machine_is_not_destroyed_without_force(app: App) -> None:
    """Fly conformance case 47."""
    machine = await app.started()
    error = await machine.delete(412)
    assert error["error"] == (
        "failed_precondition: unable to destroy machine, "
        "not currently stopped, suspended, failed or created"
    )
    assert await machine.state() == "started"


@pytest.mark.parametrize("word", ["force", "kill"])
async def test_a_running_machine_is_destroyed_by_force(app: App, word: str) -> None:
    """Fly conformance case 48."""
    machine = await app.started()
    pid = (await app.client.expect(200, "GET", f"{machine.path}/ps"))[0]["pid"]
    assert await machine.delete(200, **{word: "true"}) == {"ok": True}
    assert await machine.state() in ("destroying", "destroyed")
    await machine.wait("destroyed")
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_stopped_machine_is_destroyed_without_force(app: App) -> None:
    """Fly conformance case 49."""
    created = Machine(app, (await app.create(skip_launch=True))["id"])
    await created.delete()
    stopped = await app.started()
    await stopped.stopped()
    await stopped.delete()
    suspended = await app.started()
    await suspended.suspended()
    await suspended.delete()
    for machine in (created, stopped, suspended):
        await machine.wait("destroyed")


async def test_destroying_a_destroyed_machine_is_404(app: App) -> None:
    """Fly conformance case 50."""
    machine = await app.started()
    await machine.delete(force="true")
    await machine.wait("destroyed")
    await machine.delete(404, force="true")
    await machine.delete(404)


async def test_destroying_a_machine_that_is_being_destroyed_is_as_good(settings: Settings) -> None:
    """Fly conformance case 50."""
    async with (
        serve(replace(settings, destroy_ms=60_000)) as emulator,
        ApiClient(emulator.api_url) as client,
    ):
        await client.expect(201, "POST", "/v1/apps", {"name": "birds", "org_slug": "personal"})
        machine = await App(client, "birds").started()
        await machine.delete(force="true")
        await machine.delete(force="true")
        assert await machine.state() == "destroying"


async def test_a_machine_that_destroys_itself_is_never_found_stopped(app: App) -> None:
    """Fly conformance case 51."""
    body = {"image": BASE, "init": {"exec": ["sh", "-c", "sleep 0.3; exit 3"]}}
    policy = {"restart": {"policy": "no"}, "auto_destroy": True}
    machine = Machine(app, (await app.create(config={**body, **policy}))["id"])
    await machine.wait("stopped", status=404)
    await machine.wait("destroyed")


@pytest.mark.parametrize(("policy", "code"), [("no", 0), ("no", 3), ("on-failure", 0)])
async def test_a_main_process_that_ends_leaves_its_machine_stopped(
    app: App, policy: str, code: int
) -> None:
    """Fly conformance case 52."""
    config = {"init": {"exec": ["sh", "-c", f"exit {code}"]}, "restart": {"policy": policy}}
    machine = Machine(app, (await app.create(config={"image": BASE, **config}))["id"])
    await machine.wait("stopped")
    exit_event = (await machine.get())["events"][0]["request"]["exit_event"]
    assert exit_event.get("exit_code", 0) == code
    assert "requested_stop" not in exit_event


async def test_a_crashing_machine_is_restarted_until_its_retries_are_spent(
    app: App, admin: Admin
) -> None:
    """Fly conformance case 52."""
    config = {
        "image": BASE,
        "init": {"exec": ["sh", "-c", "exit 3"]},
        "restart": {"policy": "on-failure", "max_retries": 2},
    }
    machine = Machine(app, (await app.create(config=config))["id"])
    await machine.wait("stopped")
    actions = [action.action for action in await admin.actions()]
    assert actions.count("started") == 3
    assert actions.count("exited") == 3
    exits = [event for event in (await machine.get())["events"] if event["type"] == "exit"]
    restarting = [event["request"]["exit_event"].get("restarting", False) for event in exits]
    assert restarting == [False, True, True]
    assert exits[1]["request"]["restart_count"] == 2


async def test_a_machine_that_crashed_shows_a_newer_start_event_and_another_boot_id(
    app: App,
) -> None:
    machine = await app.started()
    boot_id = await machine.boot_id()
    first = (await machine.get())["events"][0]
    await machine.post("signal", {"signal": "SIGKILL"})
    waited = await machine.wait("started", from_event_id=first["id"])
    newest = (await machine.get())["events"][0]
    assert newest["id"] == waited["event_id"] > first["id"]
    assert (newest["type"], newest["status"], newest["source"]) == ("start", "started", "flyd")
    assert await machine.boot_id() != boot_id


async def test_a_machine_that_always_restarts_does_so_after_a_clean_end(app: App) -> None:
    machine = await app.started(restart={"policy": "always"})
    first = (await machine.get())["events"][0]
    await machine.post("signal", {"signal": "SIGTERM"})
    await machine.wait("started", from_event_id=first["id"])


async def test_a_stop_ends_a_crash_loop(app: App) -> None:
    config = {"init": {"exec": ["false"]}, "restart": {"policy": "always"}}
    machine = Machine(app, (await app.create(config={"image": BASE, **config}))["id"])

    async def crashed() -> bool:
        return any(event["type"] == "exit" for event in (await machine.get())["events"])

    await until(crashed)
    await machine.stopped()
    stopped = (await machine.get())["state"]
    assert stopped == "stopped"
