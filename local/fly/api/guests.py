"""Inside a running machine: exec and ps."""

import asyncio
import shlex

from local.fly import go_json
from local.fly.api.operation import Call, Operation, Reply
from local.fly.errors import ApiError, wrong_state
from local.fly.faults import FaultContext
from local.fly.go_json import JsonObject
from local.fly.guests.guest import ExecTimedOut, Guest
from local.fly.guests.procfs import SORTABLE, processes, sorted_by
from local.fly.machines.machine import Machine
from local.fly.rate_limits import ACTION
from local.fly.wiring import Backend

_STEM = "/v1/apps/{app}/machines/{machine}"


async def exec_(backend: Backend, call: Call) -> Reply:
    """Run a command in the guest. The answer is 200 even when the command failed."""
    machine = call.machine(backend)
    body = call.json("fly.MachineExecRequest")
    argv = _command(body)
    guest = _running_guest(machine, "exec")
    failed = _injected(backend, machine)
    if failed is not None:
        return failed
    stdin = b""
    if backend.settings.exec_stdin == "delivered":
        stdin = (go_json.text(body, "stdin") or "").encode()
    timeout_s = go_json.number(body, "timeout") or backend.settings.exec_timeout_s
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


async def ps(backend: Backend, call: Call) -> Reply:
    """List the guest's processes, sorted by `sort_by` (default: pid)."""
    member, order = call.query.get("sort_by") or "pid", call.query.get("order") or "asc"
    if member not in SORTABLE:
        raise ApiError(400, f"invalid_argument: sort_by must be one of {', '.join(SORTABLE)}")
    if order not in ("asc", "desc"):
        raise ApiError(400, "invalid_argument: order must be asc or desc")
    guest = _running_guest(call.visible_machine(backend), "list processes of")
    found = await asyncio.to_thread(processes, guest.main.pid, guest.main.argv)
    return Reply(200, sorted_by(found, member, descending=order == "desc"))


def _running_guest(machine: Machine, verb: str) -> Guest:
    if machine.state != "started" or machine.guest is None:
        raise wrong_state(verb, machine.state)
    return machine.guest


def _command(body: JsonObject) -> list[str]:
    """The command: an array, or the deprecated string, split as a shell would."""
    argv = [part for part in go_json.items(body, "command") if isinstance(part, str)]
    line = go_json.text(body, "cmd")
    if not argv and line:
        try:
            argv = shlex.split(line)
        except ValueError:
            raise ApiError(400, "invalid_argument: cmd cannot be split into words") from None
    if not argv:
        raise ApiError(400, "invalid_argument: command is required")
    return argv


def _injected(backend: Backend, machine: Machine) -> Reply | None:
    fault = backend.faults.fire("exec_fails", FaultContext("exec", machine.record.app, machine.id))
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
