"""Leases: acquire or refresh, read, release."""

from local.fly import errors, go_json, ids
from local.fly.api import rendering
from local.fly.api.operation import Call, Operation, Reply
from local.fly.errors import ApiError
from local.fly.machines import leases
from local.fly.rate_limits import ACTION
from local.fly.wiring import Backend

_PATH = "/v1/apps/{app}/machines/{machine}/lease"


async def acquire(backend: Backend, call: Call) -> Reply:
    """Acquire the lease, or with its nonce extend it. The ttl is in the query or the body."""
    machine = call.machine(backend)
    body = call.json("main.createLeaseRequest")
    ttl_s = _ttl(backend, call, go_json.number(body, "ttl"))
    description = go_json.text(body, "description") or ""
    lease = leases.acquire(machine, ttl_s, ids.owner(call.token), description, call.nonce)
    action = "lease_refresh" if call.nonce else "lease"
    backend.actions.machine(machine.record, action, "user", {"ttl_s": ttl_s})
    return Reply(201, rendering.lease(lease))


async def read(backend: Backend, call: Call) -> Reply:
    """The current lease."""
    lease = leases.held(call.machine(backend))
    if lease is None:
        raise errors.lease_not_found()
    return Reply(200, rendering.lease(lease))


async def release(backend: Backend, call: Call) -> Reply:
    """Release the lease."""
    machine = call.machine(backend)
    leases.release(machine, call.nonce)
    backend.actions.machine(machine.record, "lease_release", "user")
    return Reply(200, {"status": "success", "data": {"ok": True}})


def _ttl(backend: Backend, call: Call, in_body: int | None) -> int:
    given = call.query.get("ttl")
    if given is None:
        return backend.settings.lease_ttl_s if in_body is None else in_body
    if not given.isdigit():
        raise ApiError(400, "invalid_argument: ttl must be a number of seconds")
    return int(given)


OPERATIONS = (
    Operation("lease", "POST", _PATH, acquire, rate=ACTION),
    Operation("lease_get", "GET", _PATH, read, rate=ACTION),
    Operation("lease_release", "DELETE", _PATH, release, rate=ACTION),
)
