"""What stands for fly-proxy: reaches a machine's guest, and starts it when it rests."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import httpx
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from local.fly import configs, leases
from local.fly.app import RequestIds
from local.fly.errors import ApiError
from local.fly.guests import Guest
from local.fly.machines import Machine
from local.fly.world import World

FORCE_HEADER = "fly-force-instance-id"
APP_HEADER = "fly-app-name"
"""Names the app where the Host does not: the emulator's own, for clients without wildcard DNS."""

_TRANSIENT = frozenset({"created", "starting", "restarting", "replacing", "stopping", "suspending"})
_HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)


class NoRoute(Exception):
    """No machine can take the request; status and text are the answer's."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


@dataclass(frozen=True)
class Target:
    """Whom a request is for: an app, a machine of it, or a machine alone."""

    app: str
    machine_id: str

    @classmethod
    def of(cls, request: Request) -> "Target":
        """Read `<machine>.<app>.localhost`, `<app>.localhost` and the two headers."""
        host = request.headers.get("host", "").partition(":")[0].lower()
        labels = host.removesuffix(".localhost").split(".") if host.endswith(".localhost") else []
        app = labels[-1] if labels else request.headers.get(APP_HEADER, "")
        named = labels[0] if len(labels) == 2 else ""
        return cls(app, request.headers.get(FORCE_HEADER, named))


class Proxy:
    """Routes a request to one guest and streams both bodies.

    A forced machine is the only candidate, with no fallback. Cordoned machines are no candidates.
    """

    def __init__(self, world: World, client: httpx.AsyncClient) -> None:
        self._world = world
        self._client = client

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        request = Request(scope, receive)
        async with contextlib.AsyncExitStack() as stack:
            try:
                response = await self._forward(request, stack)
            except NoRoute as error:
                response = PlainTextResponse(error.text + "\n", error.status)
            except (ClientDisconnect, httpx.HTTPError) as error:
                response = PlainTextResponse(f"upstream failed: {type(error).__name__}\n", 502)
            await response(scope, receive, send)

    async def _forward(self, request: Request, stack: contextlib.AsyncExitStack) -> Response:
        """The guest's answer, whose body is still to come; the stack closes it."""
        machine = self._pick(Target.of(request))
        guest = await self._running(machine)
        await self._accepting(guest)
        outgoing = self._client.build_request(
            request.method,
            f"http://127.0.0.1:{guest.port}{_target(request)}",
            headers=_passed_on(request.headers.items()),
            content=request.stream() if _has_body(request) else None,
        )
        answer = await self._client.send(outgoing, stream=True)
        stack.push_async_callback(answer.aclose)
        body = _body(answer, request.scope["extensions"]["roost.abort"])
        response = StreamingResponse(body, answer.status_code)
        response.raw_headers = [
            (name.lower(), value)
            for name, value in answer.headers.raw
            if name.lower().decode() not in _HOP_BY_HOP
        ]
        return response

    def _pick(self, target: Target) -> Machine:
        if target.machine_id:
            machine = self._world.fleet.find(target.machine_id)
            if machine is None or target.app not in ("", machine.record.app):
                raise NoRoute(404, f"no machine {target.machine_id}")
            return _routable(machine)
        if not target.app:
            raise NoRoute(404, "name an app in Host or a machine in fly-force-instance-id")
        return self._pick_of_app(target.app)

    def _pick_of_app(self, app: str) -> Machine:
        """A started machine, else one that can be woken."""
        try:
            machines = self._world.fleet.seen_machines(app)
        except ApiError as error:
            raise NoRoute(404, error.text) from error
        able = [m for m in machines if not m.record.cordoned and m.record.live]
        for states in ({"started"}, _TRANSIENT, {"suspended", "stopped"}):
            for machine in able:
                if machine.state in states:
                    return machine
        raise NoRoute(503, "[PR03] could not find a good candidate within 1 attempts")

    async def _running(self, machine: Machine) -> Guest:
        """The machine's guest; wakes a resting machine if its services let traffic do that."""
        deadline = time.monotonic() + self._world.settings.ready_ms / 1000
        while machine.state != "started" or machine.guest is None:
            _routable(machine)
            if machine.state in ("stopped", "suspended"):
                self._wake(machine)
            elif machine.state not in _TRANSIENT:
                raise NoRoute(503, f"[PM08] machine is in a non-startable state: {machine.state}")
            try:
                await machine.change(deadline - time.monotonic())
            except TimeoutError:
                raise NoRoute(503, "[PM07] failed to change machine state in time") from None
        return machine.guest

    def _wake(self, machine: Machine) -> None:
        settings = self._world.settings
        if not configs.autostart(machine.record.config, settings.autostart_default):
            raise NoRoute(503, "[PM08] machine is stopped and has no autostart")
        try:
            leases.check(machine, "", settings)
            self._world.lifecycle.start(machine, "proxy")
        except ApiError as error:
            raise NoRoute(503, f"[PM01] machines API returned an error: {error.text}") from error

    async def _accepting(self, guest: Guest) -> None:
        """Wait until the guest accepts a connection: started is not ready."""
        deadline = time.monotonic() + self._world.settings.ready_ms / 1000
        while not guest.accepting:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", guest.port)
            except OSError:
                if time.monotonic() > deadline or not guest.main.running:
                    raise NoRoute(503, "[PC01] instance refused connection") from None
                await asyncio.sleep(0.01)
                continue
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            guest.accepting = True


@contextlib.asynccontextmanager
async def build_proxy(world: World) -> AsyncIterator[ASGIApp]:
    """The proxy over this world; its client is closed when the block ends."""
    # No connection is kept: after a suspend or a stop it would be another boot's, or dead.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    timeout = httpx.Timeout(None, connect=5)
    # Nothing from the environment: a developer's HTTP_PROXY is not for loopback.
    # And no TLS: guests are on loopback, and loading the authorities takes 20 ms.
    async with httpx.AsyncClient(
        limits=limits, timeout=timeout, trust_env=False, verify=False
    ) as client:
        yield RequestIds(Proxy(world, client), world.settings.region)


def _routable(machine: Machine) -> Machine:
    if machine.record.cordoned:
        raise NoRoute(503, "[PR03] machine is cordoned")
    if machine.gone:
        raise NoRoute(404, f"no machine {machine.id}")
    return machine


def _target(request: Request) -> str:
    raw: bytes = request.scope["raw_path"]
    query: bytes = request.scope["query_string"]
    return (raw + (b"?" + query if query else b"")).decode("latin-1")


def _has_body(request: Request) -> bool:
    return "content-length" in request.headers or "transfer-encoding" in request.headers


def _passed_on(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(name, value) for name, value in headers if name.lower() not in _HOP_BY_HOP]


async def _body(answer: httpx.Response, abort: Callable[[], None]) -> AsyncIterator[bytes]:
    try:
        async for chunk in answer.aiter_raw():
            yield chunk
    except httpx.HTTPError:
        # The head is out: all that can tell the client is the end of its own connection.
        abort()
        await asyncio.sleep(0)
