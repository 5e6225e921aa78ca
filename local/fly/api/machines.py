"""Machines: create, list, get, update, delete, and their history."""

from collections.abc import Callable

from local.fly import go_json, ids
from local.fly.api import rendering
from local.fly.api.operation import OK, Call, Operation, Reply
from local.fly.config import configs
from local.fly.errors import ApiError
from local.fly.go_json import JsonObject
from local.fly.machines import leases
from local.fly.machines.machine import Machine
from local.fly.rate_limits import ACTION, GET_MACHINE
from local.fly.wiring import Backend

_STEM = "/v1/apps/{app}/machines"
EVENTS_DEFAULT, EVENTS_MAX = 20, 50


async def create(backend: Backend, call: Call) -> Reply:
    """Create a machine and boot it unless `skip_launch` is set."""
    backend.fleet.app(call.app)
    body = call.json("main.createMachineRequest")
    _check_ignored_fields(body)
    config = configs.normalized(_config(body))
    ttl_s = _lease_ttl(body)
    run = not go_json.flag(body, "skip_launch")
    name, region = go_json.text(body, "name") or "", go_json.text(body, "region") or ""
    machine = backend.fleet.create_machine(call.app, name, region, config, run=run)
    return Reply(200, rendering.machine(machine, nonce=_lease(machine, call, ttl_s)))


async def list_(backend: Backend, call: Call) -> Reply:
    """List the machines of an app; destroyed ones only on request."""
    wanted = machine_filter(call)
    found = [m for m in backend.fleet.visible_machines(call.app) if wanted(m)]
    summary = call.flag("summary")
    return Reply(200, [rendering.machine(m, summary=summary) for m in found])


async def get(backend: Backend, call: Call) -> Reply:
    """One machine, also a destroyed one."""
    return Reply(200, rendering.machine(call.visible_machine(backend)))


async def update(backend: Backend, call: Call) -> Reply:
    """Replace the whole config. A machine that does not run stays so."""
    machine = call.machine(backend)
    body = call.json("main.updateMachineRequest")
    _check_ignored_fields(body)
    config = configs.normalized(_config(body))
    ttl_s = _lease_ttl(body)
    expected = go_json.text(body, "current_version") or ""
    backend.lifecycle.update(machine, config, expected, "user")
    return Reply(200, rendering.machine(machine, nonce=_lease(machine, call, ttl_s)))


async def delete(backend: Backend, call: Call) -> Reply:
    """Destroy. Fly's docs name the flag `force`; fly-go sends `kill`."""
    machine = call.machine(backend)
    force = call.flag("force") or call.flag("kill")
    backend.lifecycle.destroy(machine, force=force, source="user")
    return OK


async def events(backend: Backend, call: Call) -> Reply:
    """The machine's events, newest first."""
    try:
        limit = int(call.query.get("limit", EVENTS_DEFAULT))
    except ValueError:
        raise ApiError(400, "invalid_argument: limit must be a number") from None
    limit = max(1, min(limit, EVENTS_MAX))
    return Reply(200, rendering.events(call.visible_machine(backend).record, limit))


async def versions(backend: Backend, call: Call) -> Reply:
    """Every config that the machine has had, newest first."""
    known = reversed(call.visible_machine(backend).record.versions)
    return Reply(200, [{"version": one.id, "user_config": one.config} for one in known])


async def cordon(backend: Backend, call: Call) -> Reply:
    """Stop routing to the machine."""
    backend.lifecycle.set_cordon(call.machine(backend), True, "user")
    return OK


async def uncordon(backend: Backend, call: Call) -> Reply:
    """Route to the machine again."""
    backend.lifecycle.set_cordon(call.machine(backend), False, "user")
    return OK


def _check_ignored_fields(body: JsonObject) -> None:
    """Check the types of the fields that Fly accepts and this emulator ignores."""
    for name in ("skip_launch", "skip_service_registration", "skip_secrets", "lsvd"):
        go_json.flag(body, name)
    for name in ("name", "region"):
        go_json.text(body, name)
    go_json.number(body, "min_secrets_version")


def _config(body: JsonObject) -> JsonObject:
    return go_json.mapping(body, "config") or {}


def _lease_ttl(body: JsonObject) -> int:
    """The requested lease in seconds, 0 for none. Checked before anything is committed."""
    ttl_s = go_json.number(body, "lease_ttl") or 0
    if ttl_s < 0:
        raise ApiError(400, "invalid_argument: lease_ttl must be positive")
    return ttl_s


def _lease(machine: Machine, call: Call, ttl_s: int) -> str:
    """Acquire the lease that a create or update requests; its nonce, or an empty string."""
    if not ttl_s:
        return ""
    lease = leases.acquire(machine, ttl_s, ids.owner(call.token), "", call.nonce)
    return lease.nonce


def machine_filter(call: Call) -> Callable[[Machine], bool]:
    """A predicate for the filters of a listing: region, state, metadata, include_deleted."""
    regions = _words(call, "region")
    states = _words(call, "state")
    prefix = "metadata."
    labels = {
        name.removeprefix(prefix): value
        for name, value in call.query.items()
        if name.startswith(prefix)
    }
    destroyed = call.flag("include_deleted") or "destroyed" in states

    def wanted(machine: Machine) -> bool:
        record = machine.record
        return (
            (destroyed or record.state != "destroyed")
            and (not regions or record.region in regions)
            and (not states or record.state in states)
            and labels.items() <= record.metadata.items()
        )

    return wanted


def _words(call: Call, name: str) -> set[str]:
    """The values of a query parameter that is repeated or comma-separated."""
    return {word for value in call.query.getlist(name) for word in value.split(",") if word}


OPERATIONS = (
    Operation("create", "POST", _STEM, create, rate=ACTION),
    Operation("list", "GET", _STEM, list_, rate=ACTION),
    Operation("get", "GET", _STEM + "/{machine}", get, rate=GET_MACHINE),
    Operation("update", "POST", _STEM + "/{machine}", update, leased=True, rate=ACTION),
    Operation("destroy", "DELETE", _STEM + "/{machine}", delete, leased=True, rate=ACTION),
    Operation("events", "GET", _STEM + "/{machine}/events", events, rate=ACTION),
    Operation("versions", "GET", _STEM + "/{machine}/versions", versions, rate=ACTION),
    Operation("cordon", "POST", _STEM + "/{machine}/cordon", cordon, leased=True, rate=ACTION),
    Operation(
        "uncordon", "POST", _STEM + "/{machine}/uncordon", uncordon, leased=True, rate=ACTION
    ),
)
