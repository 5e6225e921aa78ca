"""Cases 54 to 69: waits, leases, exec, metadata, events."""

from __future__ import annotations

import threading
import time

import pytest

from tests.conformance.provider_client import App, Json, error_of, until


def test_case_54_a_wait_is_for_started_unless_it_says_otherwise(app: App) -> None:
    machine = app.machine()
    waited = machine.call(200, "GET", "wait")
    assert (waited["ok"], waited["state"]) == (True, "started")
    assert waited["version"] == machine.get()["instance_id"]


@pytest.mark.parametrize("timeout", ["0", "90"])
def test_case_55_a_wait_out_of_range_is_400(app: App, timeout: str) -> None:
    text = app.machine().wait("started", status=400, timeout=timeout)["error"]
    assert "invalid_argument" in text
    assert "[1s, 1m0s]" in text


def test_case_56_a_wait_that_is_not_met_is_408(app: App) -> None:
    text = app.machine().wait("stopped", status=408, timeout=1)["error"]
    assert "machine failed to reach desired state, stopped, currently started" in text


def test_case_57_states_can_be_repeated_or_listed_and_settled_is_any(app: App) -> None:
    machine = app.machine()
    machine.goes("suspend", "suspended")
    for state in (["stopped", "suspended"], "stopped,suspended", "settled"):
        waited = machine.call(200, "GET", "wait", state=state, timeout=5)
        assert waited["state"] == "suspended"


@pytest.mark.parametrize(("needed", "status"), [("false", 200), ("true", 400)])
def test_case_58_a_wait_for_stopped_may_need_a_version(
    tuned: Json, needed: str, status: int
) -> None:
    with tuned(wait_stopped_needs_version=needed) as app:
        machine = app.machine()
        machine.post("stop")
        version = machine.get()["instance_id"]
        machine.wait("stopped", instance_id=version)
        machine.wait("stopped", status=status)


def test_case_59_a_wait_from_an_event_ignores_what_was_before(app: App) -> None:
    machine = app.machine()
    newest = machine.get()["events"][0]["id"]
    machine.wait("started", status=408, from_event_id=newest, timeout=1)
    machine.goes("stop", "stopped")
    machine.goes("start", "started")
    waited = machine.wait("started", from_event_id=newest)
    assert waited["event_id"] > newest


@pytest.mark.parametrize("in_query", [True, False])
def test_case_60_a_lease_is_taken_by_body_or_query(app: App, in_query: bool) -> None:
    machine = app.machine()
    body, query = (None, {"ttl": 30}) if in_query else ({"ttl": 30}, {})
    taken = machine.call(201, "POST", "lease", body, **query)
    assert taken["status"] == "success"
    lease = taken["data"]
    assert lease["nonce"]
    assert lease["version"] == machine.get()["instance_id"]
    assert 0 < lease["expires_at"] - time.time() < 60


def test_case_61_a_second_lease_is_409(app: App) -> None:
    machine = app.machine()
    machine.post("lease", {"ttl": 30}, status=201)
    error = machine.post("lease", {"ttl": 30}, status=409)
    assert "lease currently held by" in error["message"]
    assert f"machine ID {machine.id}" in error["message"]


def test_case_62_a_refresh_keeps_the_nonce_and_moves_the_expiry(app: App) -> None:
    machine = app.machine()
    first = machine.post("lease", {"ttl": 30}, status=201)["data"]
    second = machine.post("lease", {"ttl": 90}, status=201, nonce=first["nonce"])["data"]
    assert second["nonce"] == first["nonce"]
    assert second["expires_at"] > first["expires_at"]


def test_case_62_an_expired_lease_frees_the_machine(app: App) -> None:
    machine = app.machine()
    machine.post("lease", {"ttl": 1}, status=201)
    machine.post("stop", status=409)
    until(lambda: app.api.send("POST", f"{machine.path}/stop").status_code == 200)


def test_case_63_no_lease_is_404_and_a_release_makes_it_so(app: App) -> None:
    machine = app.machine()
    assert "lease not found" in error_of(app.api.send("GET", f"{machine.path}/lease"))
    nonce = machine.post("lease", {"ttl": 30}, status=201)["data"]["nonce"]
    assert machine.call(200, "GET", "lease")["data"]["nonce"] == nonce
    machine.call(200, "DELETE", "lease", nonce=nonce)
    machine.call(404, "GET", "lease")


def test_case_64_looks_metadata_and_signals_need_no_nonce(app: App) -> None:
    machine = app.machine()
    machine.post("lease", {"ttl": 30}, status=201)
    machine.call(204, "POST", "metadata/colour", {"value": "red"})
    assert machine.run("echo", "hello") == "hello\n"
    assert machine.call(200, "GET", "ps")
    machine.wait("started")
    machine.post("signal", {"signal": "SIGCONT"})


def test_case_65_an_exec_returns_the_exit_code_of_its_command(app: App) -> None:
    machine = app.machine()
    assert machine.post("exec", {"command": ["sh", "-c", "exit 3"]})["exit_code"] == 3
    assert machine.post("exec", {"cmd": "echo words"})["stdout"] == "words\n"


@pytest.mark.parametrize("name", ["SIGUSR1", 10])
def test_case_66_a_signal_goes_by_name_or_number(app: App, name: Json) -> None:
    script = "trap 'echo seen > seen' USR1; touch ready; while :; do sleep 0.05; done"
    machine = app.scripted(script)
    machine.post("signal", {"signal": name})
    until(lambda: machine.run("sh", "-c", "cat seen 2>/dev/null || true") == "seen\n")


def test_case_66_nine_kills(app: App) -> None:
    machine = app.machine(restart={"policy": "no"})
    machine.post("signal", {"signal": 9})
    machine.wait("stopped")


def test_case_67_metadata_changes_without_a_new_version(app: App) -> None:
    machine = app.machine()
    version = machine.get()["instance_id"]
    machine.call(204, "POST", "metadata/colour", {"value": "red"})
    assert machine.call(200, "GET", "metadata")["colour"] == "red"
    assert machine.call(200, "GET", "metadata/colour") == {"value": "red"}
    assert machine.get()["config"]["metadata"]["colour"] == "red"
    machine.call(204, "DELETE", "metadata/colour")
    assert "colour" not in machine.call(200, "GET", "metadata")
    machine.call(404, "GET", "metadata/colour")
    assert machine.get()["instance_id"] == version


@pytest.mark.parametrize("method", ["PATCH", "PUT"])
def test_case_68_a_merge_deletes_by_null_and_minds_the_version(app: App, method: str) -> None:
    machine = app.machine(metadata={"a": "1", "b": "2", "c": "3"})
    changes = {"metadata": {"a": None, "b": "", "d": "4"}}
    machine.call(204, method, "metadata", changes)
    kept = machine.call(200, "GET", "metadata")
    assert {key: kept.get(key) for key in "abcd"} == {"a": None, "b": None, "c": "3", "d": "4"}
    stale = {"metadata": {"d": "5"}, "machine_version": "01ARZ3NDEKTSV4RRFFQ69G5FAV"}
    machine.call(412, method, "metadata", stale)
    assert machine.call(200, "GET", "metadata")["d"] == "4"


def test_case_69_events_come_newest_first_and_at_most_fifty(app: App) -> None:
    machine = app.machine()
    for _ in range(14):
        machine.goes("stop", "stopped")
        machine.goes("start", "started")
    by_default = machine.call(200, "GET", "events")
    many = machine.call(200, "GET", "events", limit=500)
    assert len(by_default) == 20
    assert 20 < len(many) <= 50
    assert len(machine.call(200, "GET", "events", limit=2)) == 2
    stamps = [one["timestamp"] for one in many]
    assert stamps == sorted(stamps, reverse=True)
    assert len({one["id"] for one in many}) == len(many)


def test_a_wait_is_answered_when_the_state_is_reached(app: App) -> None:
    machine = app.machine()
    timer = threading.Timer(0.3, machine.post, ["stop"])
    timer.start()
    assert machine.wait("stopped", timeout=30)["state"] == "stopped"
    timer.join()
