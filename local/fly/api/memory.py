"""A machine's memory balloon: a number that is kept while the machine runs."""

from local.fly import wire
from local.fly.calls import Call, Operation, Reply
from local.fly.errors import ApiError
from local.fly.limits import ACTION
from local.fly.machines import Machine
from local.fly.world import World

_PATH = "/v1/apps/{app}/machines/{machine}/memory"


async def get(world: World, call: Call) -> Reply:
    """The limit, and what of it is free."""
    return _shown(call.seen_machine(world))


async def set_limit(world: World, call: Call) -> Reply:
    """Move the limit, at most to the machine's size."""
    machine = call.machine(world)
    wanted = wire.number(call.json("main.setMemoryLimitRequest"), "limit_mb") or 0
    if not 0 < wanted <= machine.record.memory_mb:
        raise ApiError(400, "invalid_argument: limit_mb must be within the machine's memory")
    machine.memory_limit_mb = wanted
    return _shown(machine)


async def reclaim(world: World, call: Call) -> Reply:
    """Take memory away from the guest; the host's own is not touched, so all of it is had."""
    machine = call.machine(world)
    amount = wire.number(call.json("main.reclaimMemoryRequest"), "amount_mb") or 0
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
