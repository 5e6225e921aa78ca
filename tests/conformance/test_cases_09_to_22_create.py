"""Cases 9 to 22: creating machines."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.conformance.provider_client import App, Json, Machine, error_of, unique, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager


def test_case_09_a_new_machine_is_created_and_has_all_that_clients_read(app: App) -> None:
    made = app.create(config={"image": app.image})
    assert re.fullmatch(r"[0-9a-f]{14}", made["id"])
    assert re.fullmatch(r"[0-9A-HJKMNP-TV-Z]{26}", made["instance_id"])
    assert re.fullmatch(r"[a-z]+-[a-z]+-\d+", made["name"])
    assert (made["state"], made["host_status"]) == ("created", "ok")
    launch = made["events"][0]
    assert (launch["type"], launch["status"], launch["source"]) == ("launch", "created", "user")


def test_case_10_it_starts_by_itself(app: App) -> None:
    machine = Machine(app, app.create()["id"])
    waited = machine.wait("started")
    assert (waited["ok"], waited["state"]) == (True, "started")
    newest = machine.get()["events"][0]
    assert (newest["type"], newest["status"], newest["source"]) == ("start", "started", "flyd")


def test_case_11_a_machine_of_an_unknown_app_is_404(app: App) -> None:
    body = {"config": app.config()}
    app.api.expect(404, "POST", f"/v1/apps/{unique('free')}/machines", body)


@pytest.mark.parametrize("body", [{}, {"config": {}}, {"config": {"image": ""}}])
def test_case_12_a_machine_without_an_image_is_rejected(app: App, body: Json) -> None:
    reply = app.api.send("POST", f"{app.path}/machines", body)
    assert reply.status_code in (400, 422)
    assert error_of(reply)


def test_case_13_the_name_of_a_live_machine_is_409_with_its_id(app: App) -> None:
    name = unique("m")
    first = app.create(name=name)
    text = app.create(409, name=name)["error"]
    assert "already_exists: unique machine name violation" in text
    assert f"machine ID {first['id']} already exists" in text
    assert len([one for one in app.list() if one["name"] == name]) == 1


def test_case_14_the_name_of_a_destroyed_machine_is_free(app: App) -> None:
    name = unique("m")
    machine = Machine(app, app.create(name=name)["id"])
    machine.wait("started")
    machine.call(200, "DELETE", force="true")
    machine.wait("destroyed")
    assert app.create(name=name)["id"] != machine.id


def test_case_15_a_machine_made_without_launch_is_never_started_by_itself(app: App) -> None:
    made = app.create(skip_launch=True)
    assert made["state"] == "created"
    machine = Machine(app, made["id"])
    machine.wait("stopped")
    assert all(one["type"] != "start" for one in machine.get()["events"])


def test_case_16_a_start_while_it_is_prepared_is_412(
    slowed: Callable[[str], AbstractContextManager[App]],
) -> None:
    with slowed("create_ms") as app:
        machine = Machine(app, app.create(skip_launch=True)["id"])
        text = machine.post("start", status=412)["error"]
        assert "unable to start machine from current state: 'created'" in text


def test_case_17_a_lease_can_be_had_with_the_machine(app: App) -> None:
    made = app.create(lease_ttl=30)
    assert made["nonce"]
    machine = Machine(app, made["id"])
    machine.wait("started")
    machine.post("stop", status=409)
    machine.post("stop", nonce=made["nonce"])


def volume_in(app: App, **body: Json) -> Json:
    made = {"name": "data", "size_gb": 1, **body}
    return app.api.expect(200, "POST", f"{app.path}/volumes", made)


def test_case_18_a_volume_in_use_is_412(app: App) -> None:
    mounts = [{"volume": volume_in(app)["id"], "path": "/data"}]
    holder = app.machine(mounts=mounts)
    text = app.create(412, config=app.config(mounts=mounts))["error"]
    assert f"volume already claimed by machine {holder.id}" in text


@pytest.mark.parametrize("full", [True, False])
def test_case_19_a_full_region_is_422(faulty: App, full: bool) -> None:
    if not full:
        faulty.create()
        return
    faulty.api.fault("capacity", match={"action": "create", "app": faulty.name})
    error = faulty.create(422)
    assert error["status"] == "insufficient_capacity"
    assert "could not find a candidate host" in error["error"]
    assert faulty.list() == []


@pytest.mark.parametrize("full", [True, False])
def test_case_20_a_full_host_of_a_volume_is_412(faulty: App, full: bool) -> None:
    config = faulty.config(mounts=[{"volume": volume_in(faulty)["id"], "path": "/data"}])
    if not full:
        faulty.create(config=config)
        return
    faulty.api.fault("capacity", match={"action": "create", "app": faulty.name})
    error = faulty.create(412, config=config)
    assert error["status"] == "volume_placement_capacity"
    assert "insufficient resources to create new machine with existing volume" in error["error"]


@pytest.mark.parametrize("verb", ["start", "update", ""])
def test_case_21_a_full_host_rejects_start_and_update_with_409(faulty: App, verb: str) -> None:
    machine = faulty.machine()
    machine.goes("stop", "stopped")
    if not verb:
        machine.goes("start", "started")
        return
    faulty.api.fault("capacity", match={"action": verb, "app": faulty.name})
    body = {"config": faulty.config()} if verb == "update" else None
    error = machine.call(409, "POST", "" if verb == "update" else verb, body)
    assert "aborted: could not reserve resource for machine: insufficient" in error["error"]
    assert "status" not in error


@pytest.mark.parametrize("lost", [True, False])
def test_case_22_a_create_whose_answer_is_lost_is_found_by_its_metadata(
    faulty: App, lost: bool
) -> None:
    if lost:
        faulty.api.fault("answer_lost", match={"action": "create", "app": faulty.name})
    mark = unique("mark")
    config = faulty.config(metadata={"launch": mark})
    body = {"config": config}
    reply = faulty.api.send("POST", f"{faulty.path}/machines", body)
    assert reply.status_code == (408 if lost else 200)
    if lost:
        assert "deadline_exceeded" in error_of(reply)
    found = until(lambda: faulty.list(**{"metadata.launch": mark}))
    assert len(found) == 1
