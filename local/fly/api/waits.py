"""Wait: a request that is answered once a machine is in a given state."""

import asyncio

from local.fly import errors
from local.fly.api.operation import Call, Operation, Reply
from local.fly.errors import ApiError
from local.fly.go_json import go_seconds
from local.fly.machines.machine import Machine
from local.fly.machines.states import SETTLED, WAITABLE
from local.fly.rate_limits import ACTION
from local.fly.wiring import Backend

TIMEOUT_S = 60.0


async def wait(backend: Backend, call: Call) -> Reply:
    """Answer once the machine is in one of the states, or 408 after the timeout.

    If the machine is destroyed while the caller waits for another state, the answer is 404 (Fly
    docs; flyctl). A wait for a superseded version fails at once with `currently replaced`.
    """
    machine = call.visible_machine(backend)
    wanted, timeout_s = _states(backend, call), _timeout(call)
    version = call.query.get("version") or call.query.get("instance_id") or ""
    after_event = call.query.get("from_event_id", "")
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while True:
        if _reached(machine, wanted, version, after_event):
            return _success(machine)
        if backend.fleet.closing:
            raise ApiError(503, "the emulator is shutting down")
        try:
            await machine.change(deadline - loop.time())
        except TimeoutError:
            raise errors.wait_failed(",".join(wanted), machine.state) from None


def _reached(machine: Machine, wanted: list[str], version: str, after_event: str) -> bool:
    record = machine.record
    if machine.gone:
        raise errors.machine_not_found()
    if version and version != record.instance_id:
        if all(version != known.id for known in record.versions):
            raise ApiError(400, f"invalid_argument: machine has no version {version}")
        raise errors.wait_failed(",".join(wanted), "replaced")
    fresh = not after_event or record.state_event_id > after_event
    if fresh and any(_matches(record.state, state) for state in wanted):
        return True
    if record.state == "destroyed":
        raise errors.machine_not_found()
    return False


def _matches(state: str, wanted: str) -> bool:
    return state in SETTLED if wanted == "settled" else state == wanted


def _success(machine: Machine) -> Reply:
    record = machine.record
    found = {
        "ok": True,
        "state": record.state,
        "version": record.instance_id,
        "event_id": record.state_event_id,
    }
    return Reply(200, found)


def _states(backend: Backend, call: Call) -> list[str]:
    """The requested states, repeated or comma-separated; `started` by default."""
    states = [word for value in call.query.getlist("state") for word in value.split(",") if word]
    unknown = [state for state in states if state not in WAITABLE]
    if unknown:
        raise ApiError(400, f"invalid_argument: cannot wait for state {unknown[0]}")
    versioned = call.query.get("version") or call.query.get("instance_id")
    if "stopped" in states and not versioned and backend.settings.wait_stopped_needs_version:
        raise ApiError(400, "invalid_argument: instance_id is required to wait for stopped")
    return states or ["started"]


def _timeout(call: Call) -> float:
    """The timeout in seconds, from a number or a Go duration. Outside 1 s to 60 s: a 400."""
    given = call.query.get("timeout")
    if given is None:
        return TIMEOUT_S
    timeout = float(given) if given.isdigit() else go_seconds(given)
    if timeout is None or not 1 <= timeout <= TIMEOUT_S:
        raise errors.wait_out_of_range()
    return timeout


OPERATIONS = (
    Operation("wait", "GET", "/v1/apps/{app}/machines/{machine}/wait", wait, rate=ACTION),
)
