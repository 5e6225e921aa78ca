"""Apps: create, get, list, delete."""

import re

from local.fly import ids, view, wire
from local.fly.calls import Call, Operation, Reply
from local.fly.errors import ApiError
from local.fly.limits import DELETE_APP
from local.fly.records import App
from local.fly.wire import JsonObject
from local.fly.world import World

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


async def create(world: World, call: Call) -> Reply:
    """Make an app; both `app_name` and `name` are in use (Fly docs; fly-go)."""
    body = call.json("main.createAppRequest")
    name = wire.text(body, "app_name") or wire.text(body, "name") or ""
    org_slug = wire.text(body, "org_slug")
    if not org_slug:
        raise ApiError(400, "invalid_argument: org_slug is required")
    if not _NAME.fullmatch(name):
        text = "Validation failed: Name under 63 chars, lowercase letters, numbers and dashes"
        raise ApiError(422, text)
    made = world.fleet.create_app(name, org_slug, wire.text(body, "network") or "default")
    if call.flag("wait"):
        return Reply(201, _show(world, made) | {"created_at": made.created_at_ms})
    return Reply(201, {"id": ids.machine_id(), "created_at": made.created_at_ms})


async def get(world: World, call: Call) -> Reply:
    """One app."""
    return Reply(200, _show(world, world.fleet.app(call.app)))


async def list_(world: World, call: Call) -> Reply:
    """The apps of an organisation."""
    org_slug = call.query.get("org_slug", "")
    if not org_slug:
        raise ApiError(400, "invalid_argument: org_slug is required")
    apps = [_show(world, app) for app in world.fleet.apps(org_slug)]
    return Reply(200, {"total_apps": len(apps), "apps": apps})


async def delete(world: World, call: Call) -> Reply:
    """Delete an app and all of its machines."""
    await world.fleet.delete_app(call.app)
    return Reply(202)


def _show(world: World, app: App) -> JsonObject:
    machines = world.fleet.seen_machines(app.name)
    volumes = sum(record.live for record in world.shelf.listed(app.name))
    return view.app(app, sum(machine.record.live for machine in machines), volumes)


OPERATIONS = (
    Operation("app_create", "POST", "/v1/apps", create),
    Operation("app_list", "GET", "/v1/apps", list_),
    Operation("app_get", "GET", "/v1/apps/{app}", get),
    Operation("app_delete", "DELETE", "/v1/apps/{app}", delete, rate=DELETE_APP),
)
