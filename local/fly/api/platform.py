"""Tokens, regions and placements, as far as clients of the Machines API use them."""

import base64
import json
import time

from local.fly import go_json, ids, regions
from local.fly.api.operation import Call, Operation, Reply
from local.fly.errors import ApiError
from local.fly.faults import FaultContext
from local.fly.go_json import JsonObject
from local.fly.rate_limits import ACTION
from local.fly.wiring import Backend

ROOM = 100
"""The free capacity, in machines, that every region reports."""


async def list_regions(backend: Backend, call: Call) -> Reply:
    """All regions, with Go's capitalised member names, as Fly sends them."""
    rows = [regions.row(code) for code in regions.REGIONS]
    return Reply(200, {"Regions": rows, "Nearest": backend.settings.region})


async def place(backend: Backend, call: Call) -> Reply:
    """A dry run of a placement. A region without capacity is left out."""
    body = call.json("main.getPlacementsRequest")
    org_slug = go_json.text(body, "org_slug")
    if not org_slug:
        raise ApiError(400, "invalid_argument: org_slug is required")
    count = go_json.number(body, "count") or 0
    if backend.faults.fire("capacity", FaultContext("place")) or count > ROOM:
        return Reply(200, {"Regions": []})
    region = regions.place(go_json.text(body, "region") or "", backend.settings.region)
    return Reply(
        200, {"Regions": [{"Region": region, "Count": count or ROOM, "Concurrency": ROOM}]}
    )


async def current_token(backend: Backend, call: Call) -> Reply:
    """The owner of the token: an organisation with access to every app."""
    shown: JsonObject = {
        "token_id": ids.owner(call.token).partition("@")[0],
        "org_slug": "personal",
        "organization": "personal",
        "apps": ["*"],
        "user": ids.owner(call.token),
    }
    return Reply(200, {"tokens": [shown]})


async def authenticate(backend: Backend, call: Call) -> Reply:
    """Accept any token header."""
    return Reply(200, [{"header": _header(call)}])


async def authorize(backend: Backend, call: Call) -> Reply:
    """Authorize every token for everything."""
    return Reply(200, {"verified_token": {"header": _header(call)}})


async def oidc_token(backend: Backend, call: Call) -> Reply:
    """An unsigned JWT that names the caller, as plain text."""
    audience = go_json.text(call.json("main.createOIDCTokenRequest"), "aud")
    now = int(time.time())
    claims = {
        "aud": audience or "https://fly.io/personal",
        "iss": "https://oidc.fly.io/personal",
        "sub": "personal",
        "iat": now,
        "exp": now + 600,
    }
    return Reply(200, text=f"{_part({'alg': 'none', 'typ': 'JWT'})}.{_part(claims)}.")


async def kms_token(backend: Backend, call: Call) -> Reply:
    """A token for Fly's key store, as plain text. The emulator has no key store."""
    return Reply(200, text=f"FlyV1 fm2_{ids.owner(call.token).partition('@')[0]}")


async def deploy_token(backend: Backend, call: Call) -> Reply:
    """A token for the app: the caller's own."""
    backend.fleet.app(call.app)
    go_json.text(call.json("main.createDeployTokenRequest"), "expiry")
    return Reply(200, {"token": f"FlyV1 {call.token}"})


def _header(call: Call) -> str:
    header = go_json.text(call.json("main.tokenRequest"), "header")
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
