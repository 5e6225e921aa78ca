"""Running machines: start, stop, suspend, restart, signal."""

from local.fly import wire
from local.fly.calls import OK, Call, Operation, Reply
from local.fly.errors import ApiError, wrong_state
from local.fly.lifecycle import StopOrder, signal_number, stop_order
from local.fly.limits import ACTION
from local.fly.machines import Machine
from local.fly.world import World

_STEM = "/v1/apps/{app}/machines/{machine}"

STOP_SIGNALS = frozenset(
    {"SIGHUP", "SIGINT", "SIGQUIT", "SIGKILL", "SIGUSR1", "SIGUSR2", "SIGTERM"}
)
"""The signals a stop may send (Fly's OpenAPI: StopRequest)."""


async def start(world: World, call: Call) -> Reply:
    """Start or resume; nothing in the answer tells which it will be."""
    before = world.lifecycle.start(call.machine(world), "user")
    return Reply(200, {"previous_state": before, "migrated": False, "new_host": ""})


async def stop(world: World, call: Call) -> Reply:
    """Stop with a signal and, when that takes too long, by force."""
    machine = call.machine(world)
    body = call.json("main.stopRequest")
    name = wire.text(body, "signal")
    if name and name.upper() not in STOP_SIGNALS:
        raise ApiError(400, f"invalid_argument: signal {name} is not one a stop may send")
    world.lifecycle.stop(machine, stop_order(machine.record, name, body.get("timeout")), "user")
    return OK


async def suspend(world: World, call: Call) -> Reply:
    """Suspend; the answer only says that it was begun."""
    world.lifecycle.suspend(call.machine(world), "user")
    return OK


async def restart(world: World, call: Call) -> Reply:
    """Stop and start."""
    machine = call.machine(world)
    world.lifecycle.restart(machine, _restart_order(machine, call), "user")
    return OK


async def send_signal(world: World, call: Call) -> Reply:
    """Signal the main process, by name or by number."""
    machine = call.machine(world)
    number = signal_number(call.json("main.signalRequest").get("signal"))
    if machine.state != "started" or machine.guest is None:
        raise wrong_state("signal", machine.state)
    machine.guest.main.signal(number)
    return OK


def _restart_order(machine: Machine, call: Call) -> StopOrder:
    """The query's signal and timeout; the latter may be a Go duration or seconds."""
    given = call.query.get("timeout", "")
    timeout = f"{given}s" if given.isdigit() else given or None
    if call.flag("force_stop"):
        return stop_order(machine.record, "SIGKILL", timeout)
    return stop_order(machine.record, call.query.get("signal"), timeout)


OPERATIONS = (
    Operation("start", "POST", _STEM + "/start", start, leased=True, rate=ACTION),
    Operation("stop", "POST", _STEM + "/stop", stop, leased=True, rate=ACTION),
    Operation("suspend", "POST", _STEM + "/suspend", suspend, leased=True, rate=ACTION),
    Operation("restart", "POST", _STEM + "/restart", restart, leased=True, rate=ACTION),
    # Not guarded by the lease: flyctl's kill takes none.
    Operation("signal", "POST", _STEM + "/signal", send_signal, rate=ACTION),
)
