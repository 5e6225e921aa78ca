"""Tokens, regions and placements, as far as a client of machines asks for them."""

import base64
import json
import time

from local.fly import ids, regions, wire
from local.fly.calls import Call, Operation, Reply
from local.fly.errors import ApiError
from local.fly.faults import Occasion
from local.fly.limits import ACTION
from local.fly.wire import JsonObject
from local.fly.world import World

ROOM = 100
"""How many machines every region says that it has room for."""


async def list_regions(world: World, call: Call) -> Reply:
    """All regions. In Go's own spelling, which is what the field sees."""
    rows = [regions.row(code) for code in regions.REGIONS]
    return Reply(200, {"Regions": rows, "Nearest": world.settings.region})


async def place(world: World, call: Call) -> Reply:
    """A dry run of placing machines: a region with no room is left out."""
    body = call.json("main.getPlacementsRequest")
    org_slug = wire.text(body, "org_slug")
    if not org_slug:
        raise ApiError(400, "invalid_argument: org_slug is required")
    count = wire.number(body, "count") or 0
    if world.faults.fire("capacity", Occasion("place")) or count > ROOM:
        return Reply(200, {"Regions": []})
    region = regions.place(wire.text(body, "region") or "", world.settings.region)
    return Reply(
        200, {"Regions": [{"Region": region, "Count": count or ROOM, "Concurrency": ROOM}]}
    )


async def current_token(world: World, call: Call) -> Reply:
    """Whose token it is: of an organisation that has every app."""
    shown: JsonObject = {
        "token_id": ids.owner(call.token).partition("@")[0],
        "org_slug": "personal",
        "organization": "personal",
        "apps": ["*"],
        "user": ids.owner(call.token),
    }
    return Reply(200, {"tokens": [shown]})


async def authenticate(world: World, call: Call) -> Reply:
    """The tokens of a header, none of them looked into."""
    return Reply(200, [{"header": _header(call)}])


async def authorize(world: World, call: Call) -> Reply:
    """Every token may do everything."""
    return Reply(200, {"verified_token": {"header": _header(call)}})


async def oidc_token(world: World, call: Call) -> Reply:
    """A JWT that says who asks and is signed by nobody, as plain text."""
    audience = wire.text(call.json("main.createOIDCTokenRequest"), "aud")
    now = int(time.time())
    claims = {
        "aud": audience or "https://fly.io/personal",
        "iss": "https://oidc.fly.io/personal",
        "sub": "personal",
        "iat": now,
        "exp": now + 600,
    }
    return Reply(200, text=f"{_part({'alg': 'none', 'typ': 'JWT'})}.{_part(claims)}.")


async def kms_token(world: World, call: Call) -> Reply:
    """A token for Fly's key store, as plain text. There is none here that would take it."""
    return Reply(200, text=f"FlyV1 fm2_{ids.owner(call.token).partition('@')[0]}")


async def deploy_token(world: World, call: Call) -> Reply:
    """A token for the app; as good as the caller's."""
    world.fleet.app(call.app)
    wire.text(call.json("main.createDeployTokenRequest"), "expiry")
    return Reply(200, {"token": f"FlyV1 {call.token}"})


def _header(call: Call) -> str:
    header = wire.text(call.json("main.tokenRequest"), "header")
    if not header:
        raise ApiError(400, "invalid_argument: header is required")
    return header


def _part(value: JsonObject | dict[str, str]) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


OPERATIONS = (
    Operation("regions", "GET", "/v1/platform/regions", list_regions, rate=ACTION),
    Operation("place", "POST", "/v1/platform/placements", place, rate=ACTION),
    Operation("token_current", "GET", "/v1/tokens/current", current_token, rate=ACTION),
    Operation("token_authenticate", "POST", "/v1/tokens/authenticate", authenticate, rate=ACTION),
    Operation("token_authorize", "POST", "/v1/tokens/authorize", authorize, rate=ACTION),
    Operation("token_oidc", "POST", "/v1/tokens/oidc", oidc_token, rate=ACTION),
    Operation("token_kms", "POST", "/v1/tokens/kms", kms_token, rate=ACTION),
    Operation("deploy_token", "POST", "/v1/apps/{app}/deploy_token", deploy_token, rate=ACTION),
)
