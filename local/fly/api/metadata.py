"""Metadata: labels that can be changed without a new version of the machine."""

from local.fly import wire
from local.fly.calls import Call, Operation, Reply
from local.fly.errors import ApiError
from local.fly.limits import ACTION
from local.fly.machines import Machine
from local.fly.world import World

_PATH = "/v1/apps/{app}/machines/{machine}/metadata"
_NO_CONTENT = Reply(204)


async def get_all(world: World, call: Call) -> Reply:
    """All labels."""
    return Reply(200, call.seen_machine(world).record.metadata)


async def get_one(world: World, call: Call) -> Reply:
    """One label."""
    labels = call.seen_machine(world).record.metadata
    if call.path["key"] not in labels:
        raise ApiError(404, "metadata key not found")
    return Reply(200, {"value": labels[call.path["key"]]})


async def set_one(world: World, call: Call) -> Reply:
    """Set one label."""
    machine = call.machine(world)
    value = wire.text(call.json("main.upsertMetadataKeyRequest"), "value")
    if value is None:
        raise ApiError(400, "invalid_argument: value is required")
    _merge(world, machine, {call.path["key"]: value})
    return _NO_CONTENT


async def merge(world: World, call: Call) -> Reply:
    """Set several labels; null and the empty string delete."""
    machine = call.machine(world)
    body = call.json("main.updateMetadataRequest")
    version = wire.text(body, "machine_version")
    if version and version != machine.record.instance_id:
        raise ApiError(412, "failed_precondition: machine_version does not match")
    given = wire.mapping(body, "metadata") or {}
    _merge(world, machine, {key: wire.text(given, key) for key in given})
    return _NO_CONTENT


async def delete_one(world: World, call: Call) -> Reply:
    """Delete one label; one that is not there is as good."""
    _merge(world, call.machine(world), {call.path["key"]: None})
    return _NO_CONTENT


def _merge(world: World, machine: Machine, changes: dict[str, str | None]) -> None:
    kept = {**machine.record.metadata, **changes}
    labels = {key: value for key, value in kept.items() if value}
    # A new config object: the versions of the machine share the old one.
    machine.record.config = {**machine.record.config, "metadata": labels}
    machine.touch()
    world.actions.machine(machine.record, "metadata", "user", {"keys": sorted(changes)})


OPERATIONS = (
    Operation("metadata_get", "GET", _PATH, get_all, rate=ACTION),
    Operation("metadata_get", "GET", _PATH + "/{key}", get_one, rate=ACTION),
    Operation("metadata_set", "POST", _PATH + "/{key}", set_one, rate=ACTION),
    Operation("metadata_set", "PUT", _PATH, merge, rate=ACTION),
    Operation("metadata_set", "PATCH", _PATH, merge, rate=ACTION),
    Operation("metadata_delete", "DELETE", _PATH + "/{key}", delete_one, rate=ACTION),
)
