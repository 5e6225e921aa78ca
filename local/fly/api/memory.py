"""A machine's memory balloon: a number that is kept in memory and limits nothing."""

from local.fly import go_json
from local.fly.api.operation import Call, Operation, Reply
from local.fly.errors import ApiError
from local.fly.machines.machine import Machine
from local.fly.rate_limits import ACTION
from local.fly.wiring import Backend

_PATH = "/v1/apps/{app}/machines/{machine}/memory"


async def get(backend: Backend, call: Call) -> Reply:
    """The limit and the free memory."""
    return _shown(call.visible_machine(backend))


async def set_limit(backend: Backend, call: Call) -> Reply:
    """Set the limit, at most to the machine's memory."""
    machine = call.machine(backend)
    wanted = go_json.number(call.json("main.setMemoryLimitRequest"), "limit_mb") or 0
    if not 0 < wanted <= machine.record.memory_mb:
        raise ApiError(400, "invalid_argument: limit_mb must be within the machine's memory")
    machine.memory_limit_mb = wanted
    return _shown(machine)


async def reclaim(backend: Backend, call: Call) -> Reply:
    """Reclaim memory from the guest. Nothing is really taken, so the whole amount is available."""
    machine = call.machine(backend)
    amount = go_json.number(call.json("main.reclaimMemoryRequest"), "amount_mb") or 0
    if amount < 0:
        raise ApiError(400, "invalid_argument: amount_mb must not be negative")
    return Reply(200, {"actual_mb": min(amount, _limit(machine))})


def _limit(machine: Machine) -> int:
    return machine.memory_limit_mb or machine.record.memory_mb


def _shown(machine: Machine) -> Reply:
    return Reply(200, {"limit_mb": _limit(machine), "available_mb": _limit(machine)})


OPERATIONS = (
    Operation("memory_get", "GET", _PATH, get, rate=ACTION),
    Operation("memory_set", "PUT", _PATH, set_limit, leased=True, rate=ACTION),
    Operation("memory_reclaim", "POST", _PATH + "/reclaim", reclaim, leased=True, rate=ACTION),
)
