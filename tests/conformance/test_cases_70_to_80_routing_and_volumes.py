"""Cases 70 to 77 and 80: routing, volumes, rate limits, peculiarities of the config."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.conformance.provider_client import Api, App, Json, Machine, error_of, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from tests.conformance.conftest import Provider


class Routed:
    """Requests through the proxy to the machines of an app that serves HTTP."""

    def __init__(self, place: Provider, app: App) -> None:
        if not place.proxy_url:
            pytest.skip("reached over the emulator's proxy: at Fly it would need a public address")
        self._url = place.proxy_url
        self._app = app

    def machine(self, **service: Json) -> Machine:
        """Create a machine that is started, with these additional fields of its service."""
        services = [{"protocol": "tcp", "internal_port": 8080, **service}]
        config = {"image": "roost/counter", "services": services}
        machine = Machine(self._app, self._app.create(config=config)["id"])
        machine.wait("started")
        return machine

    def get(self, machine_id: str) -> httpx.Response:
        """GET from this machine only."""
        headers = {"fly-force-instance-id": machine_id, "host": f"{self._app.name}.localhost"}
        return httpx.get(self._url + "/click", headers=headers, trust_env=False, timeout=30)


@pytest.fixture
def routed(place: Provider, app: App) -> Routed:
    """An app whose machines are reached through the proxy."""
    return Routed(place, app)


def volume_in(app: App, status: int = 200, /, **body: Json) -> Json:
    made = {"name": "data", "size_gb": 1, **body}
    return app.api.expect(status, "POST", f"{app.path}/volumes", made)


def test_case_70_a_cordon_can_be_repeated_and_shows(app: App) -> None:
    machine = app.machine()
    for verb, shown in (("cordon", True), ("uncordon", False)):
        for _ in range(2):
            assert machine.post(verb) == {"ok": True}
        assert machine.get()["cordoned"] is shown


def test_case_70_the_proxy_does_not_route_to_a_cordoned_machine(routed: Routed) -> None:
    machine = routed.machine()
    assert routed.get(machine.id).status_code == 200
    machine.post("cordon")
    assert routed.get(machine.id).status_code == 503
    machine.post("uncordon")
    assert routed.get(machine.id).status_code == 200


def test_case_71_a_volume_is_created_or_restoring(app: App) -> None:
    volume = volume_in(app)
    assert volume["id"].startswith("vol_")
    assert (volume["state"], volume["snapshot_retention"]) == ("created", 5)
    path = f"{app.path}/volumes/{volume['id']}"
    machine = app.machine(mounts=[{"volume": volume["id"], "path": "/data"}])
    machine.run("sh", "-c", "echo then > /data/mark; sync")
    app.api.expect(200, "POST", f"{path}/snapshots")
    taken = until(lambda: finished(app.api, path), seconds=300)
    machine.run("sh", "-c", "echo now > /data/mark")
    restored = volume_in(app, snapshot_id=taken["id"])
    assert restored["state"] == "restoring"
    again = f"{app.path}/volumes/{restored['id']}"
    until(lambda: app.api.expect(200, "GET", again)["state"] == "created", seconds=300)
    second = app.machine(mounts=[{"volume": restored["id"], "path": "/data"}])
    assert second.run("cat", "/data/mark") == "then\n"


def finished(api: Api, path: str) -> Json:
    """The newest snapshot once it is `created`."""
    listed = api.expect(200, "GET", f"{path}/snapshots")
    assert {one["status"] for one in listed} <= {"waiting", "pending", "running", "created"}
    return next((one for one in listed if one["status"] == "created"), None)


def test_case_72_a_volume_is_deleted_when_it_is_free(app: App) -> None:
    volume = volume_in(app)
    path = f"{app.path}/volumes/{volume['id']}"
    machine = app.machine(mounts=[{"volume": volume["id"], "path": "/data"}])
    assert app.api.expect(200, "GET", path)["attached_machine_id"] == machine.id
    text = app.api.expect(412, "DELETE", path)["error"]
    assert f"volume is currently bound to machine: {machine.id}" in text
    machine.call(200, "DELETE", force="true")
    machine.wait("destroyed")
    until(lambda: app.api.send("DELETE", path).status_code == 200, seconds=300)


def test_case_73_a_volume_grows_and_never_shrinks(app: App) -> None:
    path = f"{app.path}/volumes/{volume_in(app, size_gb=2)['id']}/extend"
    grown = app.api.expect(200, "PUT", path, {"size_gb": 3})
    assert grown["volume"]["size_gb"] == 3
    assert isinstance(grown["needs_restart"], bool)
    reply = app.api.send("PUT", path, {"size_gb": 1})
    assert 400 <= reply.status_code < 500
    assert error_of(reply)


def test_case_74_a_second_snapshot_at_once_is_412(
    slowed: Callable[[str], AbstractContextManager[App]],
) -> None:
    with slowed("snapshot_ms") as app:
        path = f"{app.path}/volumes/{volume_in(app)['id']}"
        app.api.expect(200, "POST", f"{path}/snapshots")
        text = app.api.expect(412, "POST", f"{path}/snapshots")["error"]
        assert "snapshot is already scheduled at" in text


def test_case_74_a_snapshot_takes_its_time(app: App) -> None:
    path = f"{app.path}/volumes/{volume_in(app)['id']}"
    app.api.expect(200, "POST", f"{path}/snapshots")
    assert until(lambda: finished(app.api, path), seconds=300)["id"].startswith("vs_")


def test_case_75_the_fourth_create_at_once_is_429_and_get_may_be_read_more_often(
    tuned: Callable[..., AbstractContextManager[App]],
) -> None:
    with tuned(limits=True) as app:
        body = {"config": app.config(), "skip_launch": True}
        began, replies = time.monotonic(), list[httpx.Response]()
        while not replies or replies[-1].status_code == 200:
            replies.append(app.api.send("POST", f"{app.path}/machines", body))
        # On a busy machine one more is admitted in each second.
        assert 4 <= len(replies) <= 4 + (time.monotonic() - began)
        assert replies[-1].status_code == 429
        assert "rate limit exceeded" in error_of(replies[-1])
        path = f"{app.path}/machines/{replies[0].json()['id']}"
        assert {app.api.send("GET", path).status_code for _ in range(10)} == {200}


@pytest.mark.parametrize(
    ("given", "shown"),
    [("stop", True), (True, True), ("off", False), (False, False), ("suspend", "suspend")],
)
def test_case_76_autostop_is_shown_in_its_old_words(app: App, given: Json, shown: Json) -> None:
    services = [{"protocol": "tcp", "internal_port": 80, "ports": [], "autostop": given}]
    made = app.create(config=app.config(services=services), skip_launch=True)
    assert made["config"]["services"][0]["autostop"] == shown


def test_case_77_autostart_must_be_a_boolean(app: App) -> None:
    services = [{"protocol": "tcp", "internal_port": 80, "ports": [], "autostart": "true"}]
    assert app.create(400, config=app.config(services=services))["error"]


@pytest.mark.parametrize("verb", ["stop", "suspend"])
def test_case_80_a_forced_instance_is_reached_and_started(routed: Routed, verb: str) -> None:
    machine, other = routed.machine(autostart=True), routed.machine(autostart=True)
    assert routed.get(machine.id).text == "1"
    machine.goes(verb, "suspended" if verb == "suspend" else "stopped")
    assert routed.get(machine.id).text == ("2" if verb == "suspend" else "1")
    assert routed.get(other.id).text == "1"
    assert machine.get()["state"] == "started"


def test_case_80_an_unknown_instance_is_an_error_and_no_other_is_taken(routed: Routed) -> None:
    machine = routed.machine()
    assert routed.get("0" * 14).status_code >= 400
    assert routed.get(machine.id).text == "1"
