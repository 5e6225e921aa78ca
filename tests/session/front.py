"""A proxy before the emulator: it forwards requests, and can answer with a wrong listing.

A provider that reads a stale replica of its database answers so. The emulator cannot: it has one
consistent state.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from local.fly.emulator import Emulator
from local.fly.http_server import serving

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from starlette.requests import Request

# Any: machines as Fly's JSON has them.
Machine = dict[str, Any]
#: Returns the listing to answer with, from the emulator's.
Listing = Callable[[list[Machine]], list[Machine]]
_LISTING = re.compile(r"/v1/apps/[^/]+/machines")
_PASSED_ON = ("authorization", "content-type", "fly-machine-lease-nonce")


@dataclass(frozen=True)
class Asked:
    """A request to the proxy."""

    method: str
    path: str


#: Answers in place of the emulator, with a status and JSON; None forwards the request.
Answer = Callable[[Asked], tuple[int, object] | None]


@dataclass
class Front:
    """The proxy's address, and its answers in place of the emulator's; unset fields forward."""

    truth: Emulator
    url: str = ""
    listing: Listing | None = None
    answer: Answer | None = None
    gate: asyncio.Event | None = None
    """Listings are read from the emulator at once, and answered when this is set."""
    read: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a listing has been read and waits for the gate."""

    @property
    def emulator(self) -> Emulator:
        """The emulator at the proxy's address."""
        return Emulator(self.url, self.truth.proxy_url)

    def hold_listings(self) -> asyncio.Event:
        """Delay answers of listings, each read at its request, until the returned event is set."""
        self.gate = asyncio.Event()
        self.read.clear()
        return self.gate


@asynccontextmanager
async def fronted(truth: Emulator) -> AsyncGenerator[Front]:
    """Run a proxy before the emulator."""
    front = Front(truth)
    async with httpx.AsyncClient(trust_env=False, verify=False, timeout=30) as http:

        async def handle(request: Request) -> Response:
            return await _handle(front, http, request)

        methods = ["GET", "POST", "DELETE", "PUT", "PATCH"]
        app = Starlette(routes=[Route("/{rest:path}", handle, methods=methods)])
        async with serving(app, "127.0.0.1", 0, "front") as port:
            front.url = f"http://127.0.0.1:{port}"
            yield front


async def _handle(front: Front, http: httpx.AsyncClient, request: Request) -> Response:
    asked = Asked(request.method, request.url.path)
    given = None if front.answer is None else front.answer(asked)
    if given is not None:
        return Response(json.dumps(given[1]), given[0], media_type="application/json")
    answer = await http.request(
        request.method,
        f"{front.truth.api_url}{request.url.path}",
        params=str(request.query_params),
        content=await request.body(),
        headers={name: request.headers[name] for name in _PASSED_ON if name in request.headers},
    )
    content = answer.content
    if request.method == "GET" and _LISTING.fullmatch(request.url.path) and answer.is_success:
        content = await _shown(front, answer)
    kind = answer.headers.get("content-type")
    return Response(content, answer.status_code, media_type=kind)


async def _shown(front: Front, answer: httpx.Response) -> bytes:
    """The listing to answer with, once the gate is open."""
    machines: list[Machine] = answer.json()
    if front.gate is not None:
        front.read.set()
        await front.gate.wait()
    if front.listing is not None:
        machines = front.listing(machines)
    return json.dumps(machines).encode()
