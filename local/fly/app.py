"""The Machines API as one ASGI application."""

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from local.fly import ids
from local.fly.api import (
    addresses,
    apps,
    guests,
    leases,
    machines,
    memory,
    metadata,
    orgs,
    platform,
    runs,
    volumes,
    waits,
)
from local.fly.api.control import Control
from local.fly.calls import Operation
from local.fly.errors import ApiError
from local.fly.pipeline import Endpoint
from local.fly.world import World

OPERATIONS: tuple[Operation, ...] = (
    *apps.OPERATIONS,
    *machines.OPERATIONS,
    *runs.OPERATIONS,
    *waits.OPERATIONS,
    *leases.OPERATIONS,
    *metadata.OPERATIONS,
    *guests.OPERATIONS,
    *volumes.OPERATIONS,
    *memory.OPERATIONS,
    *orgs.OPERATIONS,
    *addresses.OPERATIONS,
    *platform.OPERATIONS,
)
"""All that the API can do; an area is added by its line here."""

ACTIONS = frozenset(operation.action for operation in OPERATIONS)
"""What the operations are called in the request log, in faults and in the rate limits."""


def build_api(world: World) -> ASGIApp:
    """The API over this world, `/_emulator` included."""
    routes: list[BaseRoute] = [
        Route(operation.path, Endpoint(world, operation), methods=[operation.method])
        for operation in OPERATIONS
    ]
    api = Starlette(
        routes=[*routes, *Control(world, ACTIONS).routes()],
        exception_handlers={
            HTTPException: _http_error,
            ApiError: _api_error,
            Exception: _internal_error,
        },
    )
    return RequestIds(api, world.settings.region)


class RequestIds:
    """Gives every response its `fly-request-id`."""

    def __init__(self, app: ASGIApp, region: str) -> None:
        self._app = app
        self._region = region

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, and add the header to what comes back."""

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["fly-request-id"] = ids.request_id(self._region)
            await send(message)

        await self._app(scope, receive, sending)


async def _http_error(request: Request, error: Exception) -> Response:
    """What the router refuses, in the API's own envelope."""
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail.lower()}, error.status_code, error.headers)


async def _internal_error(request: Request, error: Exception) -> Response:
    """A fault of our own; the server logs it whole."""
    return JSONResponse({"error": "internal error"}, 500)


async def _api_error(request: Request, error: Exception) -> Response:
    """What `/_emulator` refuses."""
    assert isinstance(error, ApiError)
    return JSONResponse(error.body(), error.http_status)
