"""Cases 40 to 53: updates, destroys and exits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.conformance.provider_client import App, Machine, error_of, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager


def test_case_40_an_update_reboots_a_started_machine(app: App) -> None:
    machine = app.machine()
    boot_id, before = machine.boot_id(), machine.get()["instance_id"]
    updated = machine.update(config=app.config(env={"COLOUR": "red"}))
    assert updated["instance_id"] != before
    assert updated["state"] == "replacing"
    machine.wait("started", instance_id=updated["instance_id"])
    assert machine.run("printenv", "COLOUR") == "red\n"
    assert machine.boot_id() != boot_id


def test_case_40_an_update_leaves_a_stopped_machine_stopped(app: App) -> None:
    machine = app.machine()
    machine.goes("stop", "stopped")
    updated = machine.update(config=app.config(), skip_launch=False)
    machine.wait("stopped", instance_id=updated["instance_id"])


def test_case_41_a_start_while_it_is_replaced_is_412(
    slowed: Callable[[str], AbstractContextManager[App]],
) -> None:
    with slowed("replace_ms") as app:
        machine = app.machine()
        machine.update(config=app.config())
        text = machine.post("start", status=412)["error"]
        assert "machine getting replaced, refusing to start" in text


def test_case_42_an_update_while_it_is_replaced_is_409(
    slowed: Callable[[str], AbstractContextManager[App]],
) -> None:
    with slowed("replace_ms") as app:
        machine = app.machine()
        machine.update(config=app.config())
        assert "concurrent update" in machine.update(409, config=app.config())["error"]


def test_case_43_an_update_from_an_older_version_is_409(app: App) -> None:
    machine = app.machine()
    first = machine.get()["instance_id"]
    second = machine.update(config=app.config(), current_version=first)["instance_id"]
    machine.wait("started", instance_id=second)
    machine.update(409, config=app.config(), current_version=first)
    assert machine.get()["instance_id"] == second


def test_case_44_an_update_replaces_the_whole_config(app: App) -> None:
    body = {"name": "data", "size_gb": 1}
    volume = app.api.expect(200, "POST", f"{app.path}/volumes", body)
    services = [{"protocol": "tcp", "internal_port": 80, "ports": [{"port": 80}]}]
    mounts = [{"volume": volume["id"], "path": "/data"}]
    machine = app.machine(services=services, mounts=mounts, metadata={"a": "1"})
    config = machine.get()["config"]
    assert config["services"]
    assert config["mounts"]
    updated = machine.update(config=app.config())
    machine.wait("started", instance_id=updated["instance_id"])
    config = machine.get()["config"]
    assert not config.get("services")
    assert not config.get("mounts")
    assert not config.get("metadata")


def test_case_45_an_update_under_the_lease_of_another_is_409(app: App) -> None:
    machine = app.machine()
    nonce = machine.post("lease", {"ttl": 60}, status=201)["data"]["nonce"]
    machine.update(409, config=app.config())
    reply = app.api.send("POST", machine.path, {"config": app.config()}, nonce=nonce)
    assert reply.status_code == 200


def test_case_46_versions_are_listed_and_an_old_one_is_replaced(app: App) -> None:
    machine = app.machine()
    first = machine.get()["instance_id"]
    second = machine.update(config=app.config())["instance_id"]
    machine.wait("started", instance_id=second)
    versions = [one["version"] for one in machine.call(200, "GET", "versions")]
    assert {first, second} <= set(versions)
    reply = app.api.send("GET", f"{machine.path}/wait", state="started", instance_id=first)
    assert reply.status_code >= 400
    assert "currently replaced" in error_of(reply)


def test_case_47_a_running_machine_is_not_destroyed_without_force(app: App) -> None:
    machine = app.machine()
    text = machine.call(412, "DELETE")["error"]
    assert "unable to destroy machine, not currently stopped" in text
    assert machine.get()["state"] == "started"


def test_case_48_force_and_kill_destroy_a_running_machine(app: App) -> None:
    for word in ("force", "kill"):
        machine = app.machine()
        assert machine.call(200, "DELETE", **{word: "true"}) == {"ok": True}
        assert machine.get()["state"] in ("destroying", "destroyed")
        machine.wait("destroyed")


def test_case_49_a_stopped_machine_is_destroyed_without_force(app: App) -> None:
    created = Machine(app, app.create(skip_launch=True)["id"])
    created.wait("stopped")
    stopped, suspended = app.machine(), app.machine()
    stopped.goes("stop", "stopped")
    suspended.goes("suspend", "suspended")
    for machine in (created, stopped, suspended):
        machine.call(200, "DELETE")
        machine.wait("destroyed")


def test_case_50_a_second_destroy_is_404(app: App) -> None:
    machine = app.machine()
    machine.call(200, "DELETE", force="true")
    machine.wait("destroyed")
    until(lambda: app.api.send("DELETE", machine.path, force="true").status_code == 404)


def test_case_51_auto_destroy_ends_in_destroyed_and_a_wait_for_stopped_is_404(app: App) -> None:
    policy = {"restart": {"policy": "no"}, "auto_destroy": True}
    config = app.config("sh", "-c", "sleep 0.3; exit 3", **policy)
    machine = Machine(app, app.create(config=config)["id"])
    machine.wait("stopped", status=404)
    machine.wait("destroyed")


def test_case_52_a_main_process_that_ends_leaves_its_machine_stopped(app: App) -> None:
    machine = app.machine("true", state="stopped", restart={"policy": "no"})
    exited = machine.exit_event()
    assert exited.get("exit_code", 0) == 0
    assert not exited.get("requested_stop")


def test_case_52_a_failing_one_is_restarted_until_its_retries_are_spent(app: App) -> None:
    policy = {"policy": "on-failure", "max_retries": 2}
    machine = app.machine("sh", "-c", "exit 3", state="stopped", restart=policy)
    events = machine.get()["events"]
    starts = [one for one in events if (one["type"], one["status"]) == ("start", "started")]
    assert len(starts) == 3
    assert machine.exit_event()["exit_code"] == 3


def test_case_53_an_image_that_cannot_start_fails(app: App) -> None:
    made = app.create(config={"image": "registry-1.docker.io/roost-conformance/no-such-image:1"})
    machine = Machine(app, made["id"])
    until(lambda: machine.get()["state"] in ("failed", "destroyed"), seconds=120)
    status = {"failed": 408, "destroyed": 404}[machine.get()["state"]]
    machine.wait("started", status=status, timeout=1)
