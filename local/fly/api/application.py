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
    machine_actions,
    machines,
    memory,
    metadata,
    orgs,
    platform,
    volumes,
    waits,
)
from local.fly.api.admin_routes import Control
from local.fly.api.endpoint import Endpoint
from local.fly.api.operation import Operation
from local.fly.errors import ApiError
from local.fly.wiring import Backend

OPERATIONS: tuple[Operation, ...] = (
    *apps.OPERATIONS,
    *machines.OPERATIONS,
    *machine_actions.OPERATIONS,
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
"""Every operation of the API. A new area is added by one line here."""

ACTIONS = frozenset(operation.action for operation in OPERATIONS)
"""The names of the operations in the request log, in faults and in the rate limits."""


def build_api(backend: Backend) -> ASGIApp:
    """The ASGI application of the API, including `/_emulator`."""
    routes: list[BaseRoute] = [
        Route(operation.path, Endpoint(backend, operation), methods=[operation.method])
        for operation in OPERATIONS
    ]
    api = Starlette(
        routes=[*routes, *Control(backend, ACTIONS).routes()],
        exception_handlers={
            HTTPException: _http_error,
            ApiError: _api_error,
            Exception: _internal_error,
        },
    )
    return RequestIds(api, backend.settings.region)


class RequestIds:
    """ASGI middleware that adds `fly-request-id` to every response."""

    def __init__(self, app: ASGIApp, region: str) -> None:
        self._app = app
        self._region = region

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the wrapped application and add the header to its response."""

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["fly-request-id"] = ids.request_id(self._region)
            await send(message)

        await self._app(scope, receive, sending)


async def _http_error(request: Request, error: Exception) -> Response:
    """Render an error of the router, such as an unknown path, in the API's envelope."""
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail.lower()}, error.status_code, error.headers)


async def _internal_error(request: Request, error: Exception) -> Response:
    """Render an unexpected exception; the server logs its traceback."""
    return JSONResponse({"error": "internal error"}, 500)


async def _api_error(request: Request, error: Exception) -> Response:
    """Render an error of `/_emulator`."""
    assert isinstance(error, ApiError)
    return JSONResponse(error.body(), error.http_status)
