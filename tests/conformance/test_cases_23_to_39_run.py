"""Cases 23 to 39: finding machines, and running them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.conformance.emulators import FOREVER
from tests.conformance.provider_client import App, Json, Machine, error_of, unique, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

IDLE = "touch ready; while :; do sleep 0.05; done"


def test_case_23_a_listing_can_be_narrowed(app: App) -> None:
    mark = unique("mark")
    one = app.machine(metadata={"mark": mark, "kind": "a"})
    two = app.machine(metadata={"mark": mark, "kind": "b"})
    two.goes("stop", "stopped")
    region = one.get()["region"]

    def ids(**query: Json) -> list[str]:
        return sorted(found["id"] for found in app.list(**{"metadata.mark": mark, **query}))

    both = sorted([one.id, two.id])
    assert ids() == ids(region=region) == ids(state="started,stopped") == both
    assert ids(region="nrt" if region != "nrt" else "gru") == []
    assert ids(state="started") == [one.id]
    assert ids(**{"metadata.kind": "b"}) == [two.id]
    summary = app.list(**{"metadata.mark": mark, "summary": "true"})
    assert {"id", "state"} <= set(summary[0])
    assert not {"config", "events", "checks", "host_status", "nonce"} & set(summary[0])


def test_case_24_a_destroyed_machine_is_only_listed_when_asked_for(app: App) -> None:
    machine = app.machine(metadata={"mark": (mark := unique("mark"))})
    machine.call(200, "DELETE", force="true")
    machine.wait("destroyed")
    assert app.list(**{"metadata.mark": mark}) == []
    listed = app.list(**{"metadata.mark": mark, "include_deleted": "true"})
    assert [one["state"] for one in listed] == ["destroyed"]


def test_case_25_a_destroyed_machine_is_readable_and_an_unknown_one_404(app: App) -> None:
    machine = app.machine()
    machine.call(200, "DELETE", force="true")
    machine.wait("destroyed")
    until(lambda: machine.get()["state"] == "destroyed")
    text = Machine(app, "0" * 14).call(404, "GET")["error"]
    assert "machine not found" in text


@pytest.mark.parametrize("form", ["none", "empty", "fly-go"])
def test_case_26_a_stop_ends_in_stopped_with_an_exit_event(app: App, form: str) -> None:
    machine = app.machine()
    bodies: dict[str, Json] = {
        "none": None,
        "empty": {},
        "fly-go": {"id": machine.id, "timeout": "0s"},
    }
    assert machine.post("stop", bodies[form]) == {"ok": True}
    assert machine.get()["state"] in ("stopping", "stopped")
    machine.wait("stopped")
    assert machine.exit_event()["requested_stop"] is True


def test_case_27_a_stop_sends_the_signal_asked_for(app: App) -> None:
    machine = app.scripted(f"trap 'exit 7' TERM; {IDLE}")
    machine.post("stop", {"signal": "SIGTERM", "timeout": "20s"})
    machine.wait("stopped")
    assert machine.exit_event()["exit_code"] == 7


def test_case_27_a_process_that_takes_too_long_is_killed(app: App) -> None:
    machine = app.scripted(f"trap '' INT; {IDLE}")
    machine.post("stop", {"signal": "SIGINT", "timeout": "1s"})
    machine.wait("stopped")
    assert machine.exit_event()["requested_stop"] is True


def test_case_28_a_stop_with_an_array_is_400(app: App) -> None:
    assert "cannot unmarshal array" in app.machine().post("stop", [], status=400)["error"]


def test_case_29_a_stop_of_a_stopped_machine_is_200(app: App) -> None:
    machine = app.machine()
    machine.goes("stop", "stopped")
    machine.post("stop")
    assert machine.get()["state"] == "stopped"


def test_case_30_a_stop_drops_the_snapshot_of_a_suspended_machine(app: App) -> None:
    machine = app.machine()
    boot_id = machine.boot_id()
    machine.goes("suspend", "suspended")
    machine.goes("stop", "stopped")
    machine.goes("start", "started")
    assert machine.boot_id() != boot_id


@pytest.mark.parametrize("window", ["0", "600", "60000"])
def test_case_31_a_start_right_after_a_stop_may_be_412(
    tuned: Callable[..., AbstractContextManager[App]], window: str
) -> None:
    with tuned(still_active_ms=window) as app:
        machine = app.machine()
        machine.goes("stop", "stopped")
        if window == "600":
            machine.goes("start", "started")
            return
        reply = app.api.send("POST", f"{machine.path}/start")
        assert reply.status_code == (200 if window == "0" else 412)
        if window != "0":
            assert "machine still active, refusing to start" in error_of(reply)


def test_case_32_a_start_after_a_stop_has_a_fresh_root_and_its_volume(app: App) -> None:
    body = {"name": "data", "size_gb": 1}
    volume = app.api.expect(200, "POST", f"{app.path}/volumes", body)
    machine = app.machine(mounts=[{"volume": volume["id"], "path": "/data"}])
    machine.run("sh", "-c", "echo kept > /data/mark; echo lost > mark")
    machine.goes("stop", "stopped")
    assert machine.post("start")["previous_state"] == "stopped"
    machine.wait("started")
    assert machine.run("cat", "/data/mark") == "kept\n"
    assert machine.run("sh", "-c", "test -e mark || echo gone") == "gone\n"


def test_case_33_a_start_while_starting_is_409(
    slowed: Callable[[str], AbstractContextManager[App]],
) -> None:
    with slowed("start_ms") as app:
        machine = Machine(app, app.create(skip_launch=True)["id"])
        machine.wait("stopped")
        machine.post("start")
        text = machine.post("start", status=409)["error"]
        assert "aborted: machine still attempting to start" in text


@pytest.mark.parametrize(("setting", "status"), [("ok", 200), ("conflict", 409)])
def test_case_34_a_start_of_a_started_machine_is_200_or_409(
    tuned: Callable[..., AbstractContextManager[App]], setting: str, status: int
) -> None:
    with tuned(start_on_started=setting) as app:
        machine = app.machine()
        reply = app.api.send("POST", f"{machine.path}/start")
        assert reply.status_code == status
        if status == 200:
            assert reply.json()["previous_state"] == "started"
        assert machine.get()["state"] == "started"


def test_case_35_and_36_a_suspend_keeps_memory_pid_and_root(app: App) -> None:
    counts = "i=0; while :; do i=$((i+1)); echo $$ $i > count; sleep 0.05; done"
    machine = app.machine("sh", "-c", counts)
    boot_id = machine.boot_id()

    def count() -> tuple[str, int]:
        def read() -> list[str]:
            return machine.run("sh", "-c", "cat count 2>/dev/null || true").split()

        pid, number = until(lambda: words if len(words := read()) == 2 else None) or ("", "0")
        return pid, int(number)

    pid, before = count()
    assert machine.post("suspend") == {"ok": True}
    assert machine.get()["state"] in ("suspending", "suspended")
    machine.wait("suspended")
    assert machine.post("start")["previous_state"] == "suspended"
    machine.wait("started")
    assert machine.boot_id() == boot_id
    again, after = count()
    assert (again, after >= before) == (pid, True)
    until(lambda: count()[1] > after)


@pytest.mark.parametrize("dropped", [True, False])
def test_case_37_a_resume_without_its_snapshot_is_a_cold_boot_that_keeps_the_root(
    faulty: App, dropped: bool
) -> None:
    machine = faulty.machine()
    boot_id = machine.boot_id()
    machine.run("sh", "-c", "echo kept > mark")
    machine.goes("suspend", "suspended")
    if dropped:
        faulty.api.fault("snapshot_dropped", match={"machine": machine.id})
    assert machine.post("start")["previous_state"] == "suspended"
    machine.wait("started")
    assert (machine.boot_id() != boot_id) is dropped
    assert machine.run("cat", "mark") == "kept\n"


@pytest.mark.parametrize(("setting", "status"), [("interrupt", 200), ("refuse", 412)])
def test_case_38_a_start_while_suspending_interrupts_or_is_412(
    tuned: Callable[..., AbstractContextManager[App]], setting: str, status: int
) -> None:
    with tuned(start_while_suspending=setting, suspend_ms=FOREVER) as app:
        machine = app.machine()
        boot_id = machine.boot_id()
        machine.post("suspend")
        reply = app.api.send("POST", f"{machine.path}/start")
        assert reply.status_code == status
        if status == 200:
            machine.wait("started")
            assert machine.boot_id() == boot_id
        else:
            assert "machine still active, refusing to start" in error_of(reply)


@pytest.mark.parametrize(
    "more", [{"init": {"exec": ["sleep", "1000"], "swap_size_mb": 256}}, {"schedule": "daily"}, {}]
)
def test_case_39_a_machine_with_swap_or_schedule_is_not_suspended(faulty: App, more: Json) -> None:
    machine = faulty.machine(**more)
    reply = faulty.api.send("POST", f"{machine.path}/suspend")
    assert reply.status_code == (412 if more else 200)
    if more:
        assert error_of(reply)
        assert machine.get()["state"] == "started"
