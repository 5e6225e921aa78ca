"""Health checks in Machine objects."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.conformance.provider_client import App, Json, Machine, unique, until

if TYPE_CHECKING:
    from collections.abc import Callable

STATUSES = {"passing", "warning", "critical"}
#: With a timeout that no check reaches on a busy machine.
OFTEN = {"interval": "1s", "timeout": "30s", "grace_period": "0s"}
ALIVE = {"type": "http", "port": 8080, "method": "GET", "path": "/", **OFTEN}


def checks_of(machine: Machine) -> dict[str, Json]:
    """A machine's checks by name, after validating their shape."""
    found = machine.get()["checks"]
    for check in found:
        assert set(check) == {"name", "status", "output", "updated_at"}
        assert check["status"] in STATUSES
    return {check["name"]: check for check in found}


def has(machine: Machine, name: str, status: str) -> Callable[[], bool]:
    return lambda: bool(checks_of(machine)[name]["status"] == status)


def counter(app: App, **config: Json) -> Machine:
    """A machine that answers over HTTP."""
    made = app.create(name=unique("m"), config={"image": "roost/counter", **config})
    machine = Machine(app, made["id"])
    machine.wait("started")
    return machine


def test_a_machine_without_checks_shows_none(app: App) -> None:
    assert app.machine().get().get("checks") in ([], None)


def test_a_check_without_a_listener_is_critical_after_its_grace(app: App) -> None:
    machine = app.machine(checks={"alive": {"type": "tcp", "port": 8080, **OFTEN}})
    until(has(machine, "alive", "critical"))
    assert checks_of(machine)["alive"]["output"]


@pytest.mark.parametrize("kind", ["tcp", "http"])
def test_a_check_of_one_that_answers_passes(faulty: App, kind: str) -> None:
    machine = counter(faulty, checks={"alive": ALIVE | {"type": kind}})
    until(has(machine, "alive", "passing"))
    check = checks_of(machine)["alive"]
    assert check["output"] == ("0" if kind == "http" else "Success")
    assert check["updated_at"].endswith("Z")


def test_a_check_that_is_answered_with_an_error_is_critical(faulty: App) -> None:
    machine = counter(faulty, checks={"lost": ALIVE | {"path": "/nowhere"}})
    # Until it listens, connections are refused.
    until(lambda: str(checks_of(machine)["lost"]["output"]).startswith("404"))
    assert checks_of(machine)["lost"]["status"] == "critical"


def test_services_have_checks_too(faulty: App) -> None:
    check = {"type": "http", "path": "/", "interval": "1s", "timeout": "30s"}
    other = {"type": "tcp", "port": 9000, "interval": "2h"}
    services = [{"protocol": "tcp", "internal_port": 8080, "ports": [], "checks": [check, other]}]
    machine = counter(faulty, services=services)
    until(has(machine, "servicecheck-00-http-8080", "passing"))
    assert set(checks_of(machine)) == {"servicecheck-00-http-8080", "servicecheck-01-tcp-9000"}
    # Fly checks a service once a minute at least.
    shown = machine.get()["config"]["services"][0]["checks"]
    assert [one["interval"] for one in shown] == ["1s", "1m0s"]


def test_nothing_is_blamed_within_its_grace(faulty: App) -> None:
    # A second failing check, without a grace period, shows that both have run.
    silent = {"type": "tcp", "port": 8080, "interval": "1s"}
    checks = {"old": silent | {"grace_period": "0s"}, "young": silent | {"grace_period": "1h"}}
    machine = faulty.machine(checks=checks)
    until(has(machine, "old", "critical"))
    assert checks_of(machine)["young"]["status"] == "warning"


def test_a_check_fails_when_its_application_does_and_a_boot_resets_it(faulty: App) -> None:
    machine = counter(faulty, checks={"alive": ALIVE})
    until(has(machine, "alive", "passing"))
    machine.goes("stop", "stopped")
    assert checks_of(machine)["alive"]["status"] == "warning"
    machine.goes("start", "started")
    until(has(machine, "alive", "passing"))


def test_a_suspended_machine_is_as_it_was(faulty: App) -> None:
    machine = counter(faulty, checks={"alive": ALIVE | {"interval": "50ms"}})
    until(has(machine, "alive", "passing"))
    machine.goes("suspend", "suspended")
    check = checks_of(machine)["alive"]
    time.sleep(0.3)  # several intervals, in which nothing must happen
    assert checks_of(machine)["alive"] == check
    assert check["status"] == "passing"
    machine.goes("start", "started")
    until(has(machine, "alive", "passing"))


def test_a_summary_has_no_checks(app: App) -> None:
    app.machine(checks={"alive": {"type": "tcp", "port": 8080, **OFTEN}})
    assert all("checks" not in one for one in app.list(summary="true"))


@pytest.mark.parametrize(
    "check",
    [
        {"type": "udp"},
        {"type": "http", "path": "no-slash"},
        {"type": "http", "method": "GE T"},
        {"type": "http", "headers": [{"name": "a b", "values": ["x"]}]},
        {"type": "tcp", "interval": "often"},
    ],
)
def test_a_check_that_cannot_be_made_is_400(faulty: App, check: Json) -> None:
    checks = {"odd": {"port": 8080, **check}}
    assert faulty.create(400, config=faulty.config(checks=checks))["error"]


@pytest.mark.parametrize(
    "check",
    [
        {"path": "/" + "x" * 70_000},
        {"path": "/[::/%zz?#"},
        {"headers": [{"name": "content-length", "values": ["7"]}]},
        {"timeout": "1ns"},
        {"interval": "99999999999h"},
    ],
)
def test_an_invalid_check_affects_only_itself(faulty: App, check: Json) -> None:
    machine = counter(faulty, checks={"odd": ALIVE | check, "alive": ALIVE})
    until(has(machine, "alive", "passing"))
    until(lambda: checks_of(machine)["odd"]["status"] in ("critical", "passing"))
    assert machine.get()["state"] == "started"
