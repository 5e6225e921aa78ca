"""IP addresses of apps. They are stored and listed; nothing listens on them."""

import secrets
from typing import TYPE_CHECKING

from local.fly import go_json
from local.fly.api.operation import Call, Operation, Reply
from local.fly.clock import rfc3339_now
from local.fly.errors import ApiError
from local.fly.rate_limits import ACTION
from local.fly.wiring import Backend

if TYPE_CHECKING:
    from local.fly.go_json import JsonObject

_PATH = "/v1/apps/{app}/ip_assignments"
_TYPES = ("shared_v4", "v4", "v6", "private_v6")


async def list_(backend: Backend, call: Call) -> Reply:
    """The app's addresses."""
    return Reply(200, {"ips": backend.fleet.app(call.app).ips})


async def assign(backend: Backend, call: Call) -> Reply:
    """Assign another address to the app."""
    app = backend.fleet.app(call.app)
    body = call.json("main.assignIPRequest")
    kind = go_json.text(body, "type") or ""
    if kind not in _TYPES:
        raise ApiError(400, f"invalid_argument: type must be one of {', '.join(_TYPES)}")
    assigned: JsonObject = {
        "ip": _address(kind),
        "region": go_json.text(body, "region") or "global",
        "created_at": rfc3339_now(),
        "shared": kind == "shared_v4",
        "service_name": go_json.text(body, "service_name") or "",
    }
    app.ips.append(assigned)
    backend.fleet.save_app(app)
    return Reply(200, assigned)


async def release(backend: Backend, call: Call) -> Reply:
    """Release an address of the app."""
    app = backend.fleet.app(call.app)
    kept = [one for one in app.ips if one["ip"] != call.path["ip"]]
    if len(kept) == len(app.ips):
        raise ApiError(404, "ip assignment not found")
    app.ips[:] = kept
    backend.fleet.save_app(app)
    return Reply(204)


def _address(kind: str) -> str:
    """A random address of the ranges reserved for documentation, which reaches no host."""
    if kind in ("shared_v4", "v4"):
        return f"203.0.113.{secrets.randbelow(254) + 1}"
    prefix = "fdaa:0" if kind == "private_v6" else "2001:db8"
    return f"{prefix}:{secrets.randbelow(65536):x}::{secrets.randbelow(65536):x}"


OPERATIONS = (
    Operation("ip_list", "GET", _PATH, list_, rate=ACTION),
    Operation("ip_assign", "POST", _PATH, assign, rate=ACTION),
    Operation("ip_release", "DELETE", _PATH + "/{ip}", release, rate=ACTION),
)
