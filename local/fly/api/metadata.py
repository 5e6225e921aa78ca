"""Metadata: labels of a machine, changed without creating a new version of its config."""

from local.fly import go_json
from local.fly.api.operation import Call, Operation, Reply
from local.fly.errors import ApiError
from local.fly.machines.machine import Machine
from local.fly.rate_limits import ACTION
from local.fly.wiring import Backend

_PATH = "/v1/apps/{app}/machines/{machine}/metadata"
_NO_CONTENT = Reply(204)


async def get_all(backend: Backend, call: Call) -> Reply:
    """All labels."""
    return Reply(200, call.visible_machine(backend).record.metadata)


async def get_one(backend: Backend, call: Call) -> Reply:
    """One label."""
    labels = call.visible_machine(backend).record.metadata
    if call.path["key"] not in labels:
        raise ApiError(404, "metadata key not found")
    return Reply(200, {"value": labels[call.path["key"]]})


async def set_one(backend: Backend, call: Call) -> Reply:
    """Set one label."""
    machine = call.machine(backend)
    value = go_json.text(call.json("main.upsertMetadataKeyRequest"), "value")
    if value is None:
        raise ApiError(400, "invalid_argument: value is required")
    _merge(backend, machine, {call.path["key"]: value})
    return _NO_CONTENT


async def merge(backend: Backend, call: Call) -> Reply:
    """Set several labels; null or an empty string deletes one."""
    machine = call.machine(backend)
    body = call.json("main.updateMetadataRequest")
    version = go_json.text(body, "machine_version")
    if version and version != machine.record.instance_id:
        raise ApiError(412, "failed_precondition: machine_version does not match")
    given = go_json.mapping(body, "metadata") or {}
    _merge(backend, machine, {key: go_json.text(given, key) for key in given})
    return _NO_CONTENT


async def delete_one(backend: Backend, call: Call) -> Reply:
    """Delete one label; a missing one is no error."""
    _merge(backend, call.machine(backend), {call.path["key"]: None})
    return _NO_CONTENT


def _merge(backend: Backend, machine: Machine, changes: dict[str, str | None]) -> None:
    kept = {**machine.record.metadata, **changes}
    labels = {key: value for key, value in kept.items() if value}
    # A new object, because the machine's versions share the old one.
    machine.record.config = {**machine.record.config, "metadata": labels}
    machine.touch()
    backend.actions.machine(machine.record, "metadata", "user", {"keys": sorted(changes)})


OPERATIONS = (
    Operation("metadata_get", "GET", _PATH, get_all, rate=ACTION),
    Operation("metadata_get", "GET", _PATH + "/{key}", get_one, rate=ACTION),
    Operation("metadata_set", "POST", _PATH + "/{key}", set_one, rate=ACTION),
    Operation("metadata_set", "PUT", _PATH, merge, rate=ACTION),
    Operation("metadata_set", "PATCH", _PATH, merge, rate=ACTION),
    Operation("metadata_delete", "DELETE", _PATH + "/{key}", delete_one, rate=ACTION),
)
