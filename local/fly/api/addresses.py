"""Addresses of apps: kept and shown, and nothing listens there."""

import secrets
from typing import TYPE_CHECKING

from local.fly import wire
from local.fly.calls import Call, Operation, Reply
from local.fly.clock import rfc3339_now
from local.fly.errors import ApiError
from local.fly.limits import ACTION
from local.fly.world import World

if TYPE_CHECKING:
    from local.fly.wire import JsonObject

_PATH = "/v1/apps/{app}/ip_assignments"
_TYPES = ("shared_v4", "v4", "v6", "private_v6")


async def list_(world: World, call: Call) -> Reply:
    """The app's addresses."""
    return Reply(200, {"ips": world.fleet.app(call.app).ips})


async def assign(world: World, call: Call) -> Reply:
    """Give the app another address."""
    app = world.fleet.app(call.app)
    body = call.json("main.assignIPRequest")
    kind = wire.text(body, "type") or ""
    if kind not in _TYPES:
        raise ApiError(400, f"invalid_argument: type must be one of {', '.join(_TYPES)}")
    assigned: JsonObject = {
        "ip": _address(kind),
        "region": wire.text(body, "region") or "global",
        "created_at": rfc3339_now(),
        "shared": kind == "shared_v4",
        "service_name": wire.text(body, "service_name") or "",
    }
    app.ips.append(assigned)
    world.fleet.keep(app)
    return Reply(200, assigned)


async def release(world: World, call: Call) -> Reply:
    """Take an address back."""
    app = world.fleet.app(call.app)
    kept = [one for one in app.ips if one["ip"] != call.path["ip"]]
    if len(kept) == len(app.ips):
        raise ApiError(404, "ip assignment not found")
    app.ips[:] = kept
    world.fleet.keep(app)
    return Reply(204)


def _address(kind: str) -> str:
    """An address of documentation ranges: nobody is reached by mistake."""
    if kind in ("shared_v4", "v4"):
        return f"203.0.113.{secrets.randbelow(254) + 1}"
    prefix = "fdaa:0" if kind == "private_v6" else "2001:db8"
    return f"{prefix}:{secrets.randbelow(65536):x}::{secrets.randbelow(65536):x}"


OPERATIONS = (
    Operation("ip_list", "GET", _PATH, list_, rate=ACTION),
    Operation("ip_assign", "POST", _PATH, assign, rate=ACTION),
    Operation("ip_release", "DELETE", _PATH + "/{ip}", release, rate=ACTION),
)
