"""Actions on a machine: start, stop, suspend, restart, signal."""

from local.fly import go_json
from local.fly.api.operation import OK, Call, Operation, Reply
from local.fly.errors import ApiError, wrong_state
from local.fly.machines.lifecycle import StopRequest, signal_number, stop_request
from local.fly.machines.machine import Machine
from local.fly.rate_limits import ACTION
from local.fly.wiring import Backend

_STEM = "/v1/apps/{app}/machines/{machine}"

STOP_SIGNALS = frozenset(
    {"SIGHUP", "SIGINT", "SIGQUIT", "SIGKILL", "SIGUSR1", "SIGUSR2", "SIGTERM"}
)
"""The signals that a stop accepts (Fly's OpenAPI: StopRequest)."""


async def start(backend: Backend, call: Call) -> Reply:
    """Start or resume. The answer does not say which."""
    before = backend.lifecycle.start(call.machine(backend), "user")
    return Reply(200, {"previous_state": before, "migrated": False, "new_host": ""})


async def stop(backend: Backend, call: Call) -> Reply:
    """Stop with a signal, and with SIGKILL after the timeout."""
    machine = call.machine(backend)
    body = call.json("main.stopRequest")
    name = go_json.text(body, "signal")
    if name and name.upper() not in STOP_SIGNALS:
        raise ApiError(400, f"invalid_argument: signal {name} cannot be used for a stop")
    backend.lifecycle.stop(machine, stop_request(machine.record, name, body.get("timeout")), "user")
    return OK


async def suspend(backend: Backend, call: Call) -> Reply:
    """Begin to suspend. The answer does not wait for the end."""
    backend.lifecycle.suspend(call.machine(backend), "user")
    return OK


async def restart(backend: Backend, call: Call) -> Reply:
    """Stop and start."""
    machine = call.machine(backend)
    backend.lifecycle.restart(machine, _restart_request(machine, call), "user")
    return OK


async def send_signal(backend: Backend, call: Call) -> Reply:
    """Signal the main process, by name or by number."""
    machine = call.machine(backend)
    number = signal_number(call.json("main.signalRequest").get("signal"))
    if machine.state != "started" or machine.guest is None:
        raise wrong_state("signal", machine.state)
    machine.guest.main.signal(number)
    return OK


def _restart_request(machine: Machine, call: Call) -> StopRequest:
    """The query's signal and timeout (a Go duration, or a number of seconds)."""
    given = call.query.get("timeout", "")
    timeout = f"{given}s" if given.isdigit() else given or None
    if call.flag("force_stop"):
        return stop_request(machine.record, "SIGKILL", timeout)
    return stop_request(machine.record, call.query.get("signal"), timeout)


OPERATIONS = (
    Operation("start", "POST", _STEM + "/start", start, leased=True, rate=ACTION),
    Operation("stop", "POST", _STEM + "/stop", stop, leased=True, rate=ACTION),
    Operation("suspend", "POST", _STEM + "/suspend", suspend, leased=True, rate=ACTION),
    Operation("restart", "POST", _STEM + "/restart", restart, leased=True, rate=ACTION),
    # Not guarded by the lease: `flyctl machine kill` does not take it.
    Operation("signal", "POST", _STEM + "/signal", send_signal, rate=ACTION),
)
