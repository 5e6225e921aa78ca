"""Cases 78 and 79: calls as Fly's own clients send them, byte for byte where it matters.

The tests imitate the clients, which are Go modules (fly-go, flyctl). No test builds them; to check
with the real ones, build them and set FLY_FLAPS_BASE_URL.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.conformance.provider_client import App, Machine, until

if TYPE_CHECKING:
    import httpx


def decoded(reply: httpx.Response) -> None:
    """Assert what fly-go requires of a reply: a status below 300, and a JSON body."""
    assert reply.status_code <= 299, reply.text
    assert reply.json()


def launch(app: App) -> Machine:
    body = {"config": app.config(), "skip_launch": False, "skip_secrets": False, "region": "any"}
    reply = app.api.send("POST", f"{app.path}/machines", body)
    decoded(reply)
    return Machine(app, reply.json()["id"])


def awaited(machine: Machine, state: str, version: str) -> None:
    query = {"instance_id": version, "timeout": "60", "state": state}
    machine.call(200, "GET", "wait", **query)


def test_case_78_the_round_trip_of_fly_go(app: App) -> None:
    machine = launch(app)
    version = machine.get()["instance_id"]
    awaited(machine, "started", version)
    for verb, state in (("suspend", "suspended"), ("start", "started"), ("stop", "stopped")):
        # Stop names the machine once more, and a timeout of nothing.
        body = {"id": machine.id, "timeout": "0s"} if verb == "stop" else None
        reply = app.api.send("POST", f"{machine.path}/{verb}", body)
        assert reply.status_code == 200
        if verb == "start":
            assert reply.json()["previous_state"] == "suspended"
        awaited(machine, state, version)
    updated = machine.update(config=app.config(), skip_launch=False)
    awaited(machine, "stopped", updated["instance_id"])
    assert machine.call(200, "DELETE", kill="true")["ok"]
    awaited(machine, "destroyed", updated["instance_id"])


def test_case_79_the_calls_of_flyctl_under_a_lease_without_a_body(app: App) -> None:
    machine = launch(app)
    machine.wait("started")
    listed = app.list()
    assert [one["id"] for one in listed] == [machine.id]
    # `machine status` reads these and falls over without.
    assert listed[0]["config"]["guest"]["memory_mb"]
    assert listed[0]["host_status"] == "ok"
    for verb, state in (("stop", "stopped"), ("start", "started"), ("suspend", "suspended")):
        lease = machine.call(201, "POST", "lease", ttl=120)
        nonce = lease["data"]["nonce"]
        assert lease["data"]["version"] == machine.get()["instance_id"]
        machine.post(verb, {} if verb == "stop" else None, nonce=nonce)
        machine.call(200, "DELETE", "lease", nonce=nonce)
        machine.wait(state)


def test_case_79_kill_sends_a_number_and_takes_no_lease(app: App) -> None:
    machine = app.machine(restart={"policy": "no"})
    machine.post("lease", {"ttl": 60}, status=201)
    machine.post("signal", {"signal": 9})
    until(lambda: machine.get()["state"] == "stopped")
