"""Inside a running machine: exec and ps."""

import asyncio
import shlex

from local.fly import wire
from local.fly.calls import Call, Operation, Reply
from local.fly.errors import ApiError, wrong_state
from local.fly.faults import Occasion
from local.fly.guests import ExecTimedOut, Guest
from local.fly.limits import ACTION
from local.fly.machines import Machine
from local.fly.procfs import SORTABLE, processes, sorted_by
from local.fly.wire import JsonObject
from local.fly.world import World

_STEM = "/v1/apps/{app}/machines/{machine}"


async def exec_(world: World, call: Call) -> Reply:
    """Run a command in the guest; 200 also when the command failed."""
    machine = call.machine(world)
    body = call.json("fly.MachineExecRequest")
    argv = _command(body)
    guest = _running_guest(machine, "exec")
    failed = _injected(world, machine)
    if failed is not None:
        return failed
    stdin = b""
    if world.settings.exec_stdin == "delivered":
        stdin = (wire.text(body, "stdin") or "").encode()
    timeout_s = wire.number(body, "timeout") or world.settings.exec_timeout_s
    try:
        result = await guest.exec(argv, stdin, timeout_s)
    except ExecTimedOut:
        raise ApiError(408, "deadline_exceeded: exec timed out") from None
    return Reply(
        200,
        {
            "exit_code": result.exit_code,
            "exit_signal": result.exit_signal,
            "stdout": result.stdout.decode(errors="replace"),
            "stderr": result.stderr.decode(errors="replace"),
        },
    )


async def ps(world: World, call: Call) -> Reply:
    """The guest's processes, by their ids unless another member is to sort them."""
    member, order = call.query.get("sort_by") or "pid", call.query.get("order") or "asc"
    if member not in SORTABLE:
        raise ApiError(400, f"invalid_argument: sort_by must be one of {', '.join(SORTABLE)}")
    if order not in ("asc", "desc"):
        raise ApiError(400, "invalid_argument: order must be asc or desc")
    guest = _running_guest(call.seen_machine(world), "list processes of")
    found = await asyncio.to_thread(processes, guest.main.pid)
    return Reply(200, sorted_by(found, member, descending=order == "desc"))


def _running_guest(machine: Machine, verb: str) -> Guest:
    if machine.state != "started" or machine.guest is None:
        raise wrong_state(verb, machine.state)
    return machine.guest


def _command(body: JsonObject) -> list[str]:
    """The command: an array, or the deprecated string, which a shell's words are made of."""
    argv = [part for part in wire.items(body, "command") if isinstance(part, str)]
    line = wire.text(body, "cmd")
    if not argv and line:
        try:
            argv = shlex.split(line)
        except ValueError:
            raise ApiError(400, "invalid_argument: cmd cannot be split into words") from None
    if not argv:
        raise ApiError(400, "invalid_argument: command is required")
    return argv


def _injected(world: World, machine: Machine) -> Reply | None:
    fault = world.faults.fire("exec_fails", Occasion("exec", machine.record.app, machine.id))
    if fault is None:
        return None
    if fault.exit_code is None:
        raise ApiError(fault.status, fault.body or "unknown: exec failed")
    result = {"exit_code": fault.exit_code, "stdout": "", "stderr": fault.body or ""}
    return Reply(200, result)


OPERATIONS = (
    Operation("exec", "POST", _STEM + "/exec", exec_, rate=ACTION),
    Operation("ps", "GET", _STEM + "/ps", ps, rate=ACTION),
)
