"""Apps: create, get, list, delete."""

import re

from local.fly import go_json, ids
from local.fly.api import rendering
from local.fly.api.operation import Call, Operation, Reply
from local.fly.errors import ApiError
from local.fly.go_json import JsonObject
from local.fly.rate_limits import DELETE_APP
from local.fly.records.machine_records import App
from local.fly.wiring import Backend

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


async def create(backend: Backend, call: Call) -> Reply:
    """Create an app. Clients send `app_name` or `name` (Fly docs; fly-go)."""
    body = call.json("main.createAppRequest")
    name = go_json.text(body, "app_name") or go_json.text(body, "name") or ""
    org_slug = go_json.text(body, "org_slug")
    if not org_slug:
        raise ApiError(400, "invalid_argument: org_slug is required")
    if not _NAME.fullmatch(name):
        text = "Validation failed: Name under 63 chars, lowercase letters, numbers and dashes"
        raise ApiError(422, text)
    made = backend.fleet.create_app(name, org_slug, go_json.text(body, "network") or "default")
    if call.flag("wait"):
        return Reply(201, _show(backend, made) | {"created_at": made.created_at_ms})
    return Reply(201, {"id": ids.machine_id(), "created_at": made.created_at_ms})


async def get(backend: Backend, call: Call) -> Reply:
    """One app."""
    return Reply(200, _show(backend, backend.fleet.app(call.app)))


async def list_(backend: Backend, call: Call) -> Reply:
    """The apps of an organisation."""
    org_slug = call.query.get("org_slug", "")
    if not org_slug:
        raise ApiError(400, "invalid_argument: org_slug is required")
    apps = [_show(backend, app) for app in backend.fleet.apps(org_slug)]
    return Reply(200, {"total_apps": len(apps), "apps": apps})


async def delete(backend: Backend, call: Call) -> Reply:
    """Delete an app and all of its machines."""
    await backend.fleet.delete_app(call.app)
    return Reply(202)


def _show(backend: Backend, app: App) -> JsonObject:
    machines = backend.fleet.visible_machines(app.name)
    volumes = sum(record.live for record in backend.volume_store.listed(app.name))
    return rendering.app(app, sum(machine.record.live for machine in machines), volumes)


OPERATIONS = (
    Operation("app_create", "POST", "/v1/apps", create),
    Operation("app_list", "GET", "/v1/apps", list_),
    Operation("app_get", "GET", "/v1/apps/{app}", get),
    Operation("app_delete", "DELETE", "/v1/apps/{app}", delete, rate=DELETE_APP),
)
