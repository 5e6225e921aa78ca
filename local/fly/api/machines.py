"""Machines: create, list, get, update, delete, and their history."""

from collections.abc import Callable

from local.fly import configs, ids, leases, view, wire
from local.fly.calls import OK, Call, Operation, Reply
from local.fly.errors import ApiError
from local.fly.limits import ACTION, GET_MACHINE
from local.fly.machines import Machine
from local.fly.wire import JsonObject
from local.fly.world import World

_STEM = "/v1/apps/{app}/machines"
EVENTS_DEFAULT, EVENTS_MAX = 20, 50


async def create(world: World, call: Call) -> Reply:
    """Make a machine and, unless `skip_launch`, boot it."""
    world.fleet.app(call.app)
    body = call.json("main.createMachineRequest")
    _check_unused(body)
    config = configs.accepted(_config(body))
    ttl_s = _lease_ttl(body)
    run = not wire.flag(body, "skip_launch")
    name, region = wire.text(body, "name") or "", wire.text(body, "region") or ""
    machine = world.fleet.create_machine(call.app, name, region, config, run=run)
    return Reply(200, view.machine(machine, nonce=_lease(machine, call, ttl_s)))


async def list_(world: World, call: Call) -> Reply:
    """The machines of an app: live ones, unless destroyed ones are asked for."""
    wanted = machine_filter(call)
    found = [m for m in world.fleet.seen_machines(call.app) if wanted(m)]
    summary = call.flag("summary")
    return Reply(200, [view.machine(m, summary=summary) for m in found])


async def get(world: World, call: Call) -> Reply:
    """One machine; a destroyed one is found too."""
    return Reply(200, view.machine(call.seen_machine(world)))


async def update(world: World, call: Call) -> Reply:
    """Replace the whole config; a machine that rests stays at rest."""
    machine = call.machine(world)
    body = call.json("main.updateMachineRequest")
    _check_unused(body)
    config = configs.accepted(_config(body))
    ttl_s = _lease_ttl(body)
    expected = wire.text(body, "current_version") or ""
    world.lifecycle.update(machine, config, expected, "user")
    return Reply(200, view.machine(machine, nonce=_lease(machine, call, ttl_s)))


async def delete(world: World, call: Call) -> Reply:
    """Destroy; docs say `force`, fly-go sends `kill`."""
    machine = call.machine(world)
    force = call.flag("force") or call.flag("kill")
    world.lifecycle.destroy(machine, force=force, source="user")
    return OK


async def events(world: World, call: Call) -> Reply:
    """The machine's history, newest first."""
    try:
        limit = int(call.query.get("limit", EVENTS_DEFAULT))
    except ValueError:
        raise ApiError(400, "invalid_argument: limit must be a number") from None
    limit = max(1, min(limit, EVENTS_MAX))
    return Reply(200, view.events(call.seen_machine(world).record, limit))


async def versions(world: World, call: Call) -> Reply:
    """The configs the machine has had, newest first."""
    known = reversed(call.seen_machine(world).record.versions)
    return Reply(200, [{"version": one.id, "user_config": one.config} for one in known])


async def cordon(world: World, call: Call) -> Reply:
    """Stop routing to the machine."""
    world.lifecycle.set_cordon(call.machine(world), True, "user")
    return OK


async def uncordon(world: World, call: Call) -> Reply:
    """Route to the machine again."""
    world.lifecycle.set_cordon(call.machine(world), False, "user")
    return OK


def _check_unused(body: JsonObject) -> None:
    """What Fly takes and nothing here depends on is still of a type."""
    for name in ("skip_launch", "skip_service_registration", "skip_secrets", "lsvd"):
        wire.flag(body, name)
    for name in ("name", "region"):
        wire.text(body, name)
    wire.number(body, "min_secrets_version")


def _config(body: JsonObject) -> JsonObject:
    return wire.mapping(body, "config") or {}


def _lease_ttl(body: JsonObject) -> int:
    """The seconds of the lease asked for, 0 for none; looked at before anything is committed."""
    ttl_s = wire.number(body, "lease_ttl") or 0
    if ttl_s < 0:
        raise ApiError(400, "invalid_argument: lease_ttl must be positive")
    return ttl_s


def _lease(machine: Machine, call: Call, ttl_s: int) -> str:
    """Take the lease that a create or update asked for; its nonce, or nothing."""
    if not ttl_s:
        return ""
    lease = leases.acquire(machine, ttl_s, ids.owner(call.token), "", call.nonce)
    return lease.nonce


def machine_filter(call: Call) -> Callable[[Machine], bool]:
    """What a listing's query asks for: regions, states, labels, and destroyed ones or not."""
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
    """A query parameter that may be repeated or hold a comma list."""
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
