"""Leases: acquire or refresh, read, release."""

from local.fly import errors, ids, leases, view, wire
from local.fly.calls import Call, Operation, Reply
from local.fly.errors import ApiError
from local.fly.limits import ACTION
from local.fly.world import World

_PATH = "/v1/apps/{app}/machines/{machine}/lease"


async def acquire(world: World, call: Call) -> Reply:
    """Take the lease; with its nonce, move its expiry. The ttl is in the body or the query."""
    machine = call.machine(world)
    body = call.json("main.createLeaseRequest")
    ttl_s = _ttl(world, call, wire.number(body, "ttl"))
    description = wire.text(body, "description") or ""
    lease = leases.acquire(machine, ttl_s, ids.owner(call.token), description, call.nonce)
    action = "lease_refresh" if call.nonce else "lease"
    world.actions.machine(machine.record, action, "user", {"ttl_s": ttl_s})
    return Reply(201, view.lease(lease))


async def read(world: World, call: Call) -> Reply:
    """The lease that is in force."""
    lease = leases.held(call.machine(world))
    if lease is None:
        raise errors.lease_not_found()
    return Reply(200, view.lease(lease))


async def release(world: World, call: Call) -> Reply:
    """Give the lease back."""
    machine = call.machine(world)
    leases.release(machine, call.nonce)
    world.actions.machine(machine.record, "lease_release", "user")
    return Reply(200, {"status": "success", "data": {"ok": True}})


def _ttl(world: World, call: Call, in_body: int | None) -> int:
    given = call.query.get("ttl")
    if given is None:
        return world.settings.lease_ttl_s if in_body is None else in_body
    if not given.isdigit():
        raise ApiError(400, "invalid_argument: ttl must be a number of seconds")
    return int(given)


OPERATIONS = (
    Operation("lease", "POST", _PATH, acquire, rate=ACTION),
    Operation("lease_get", "GET", _PATH, read, rate=ACTION),
    Operation("lease_release", "DELETE", _PATH, release, rate=ACTION),
)
