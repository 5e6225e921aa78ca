"""The proxy: forward a request to a machine's guest, and start the machine if needed."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

import httpx
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from local.fly.api.application import RequestIds
from local.fly.machines.machine import Machine
from local.fly.proxy.routing import NoRoute, Routing, Target
from local.fly.wiring import Backend

REPLAY_HEADER = "fly-replay"
REPLAY_SOURCE_HEADER = "fly-replay-src"
UNAVAILABLE_HEADER = "fly-preferred-instance-unavailable"
"""Request header: the preferred machine is not available, and this guest replaces it."""

REPLAYS_MAX = 4
REPLAY_BODY_MAX = 1024 * 1024

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


class Proxy:
    """Routes a request to one guest and streams both bodies; the guest may request a replay."""

    def __init__(self, backend: Backend, client: httpx.AsyncClient) -> None:
        self._traffic = backend.traffic
        self._routing = Routing(backend)
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
        """The guest's response, whose body is not read yet; `stack` closes it."""
        target, sent = Target.of(request), SentBody(request)
        headers = _passed_on(request.headers.items())
        for _ in range(REPLAYS_MAX):
            machine = self._routing.pick(target)
            answer = await self._ask(machine, target, request, headers, sent, stack)
            directive = answer.headers.get(REPLAY_HEADER)
            if directive is None:
                return _response(answer, request)
            sent.rewind()
            target = target.replayed(directive, machine.record.app)
            source = (
                f"instance={machine.id};region={machine.record.region};t={time.time_ns() // 1000}"
            )
            headers = [*_passed_on(request.headers.items()), (REPLAY_SOURCE_HEADER, source)]
        raise NoRoute(502, "[PR04] too many replays")

    async def _ask(
        self,
        machine: Machine,
        target: Target,
        request: Request,
        headers: list[tuple[str, str]],
        sent: "SentBody",
        stack: contextlib.AsyncExitStack,
    ) -> httpx.Response:
        # Counted from here on, so that a machine that is being started is not idle.
        self._traffic.begin(machine.id)
        stack.callback(self._traffic.end, machine.id)
        guest = await self._routing.running(machine)
        if target.preferred not in ("", machine.id):
            headers = [*headers, (UNAVAILABLE_HEADER, target.preferred)]
        outgoing = self._client.build_request(
            request.method,
            f"http://127.0.0.1:{guest.port}{target.path}{_query(request)}",
            headers=headers,
            content=sent.parts() if _has_body(request) else None,
        )
        answer = await self._client.send(outgoing, stream=True)
        stack.push_async_callback(answer.aclose)
        return answer


class SentBody:
    """A request's body while it is streamed; up to a megabyte is kept for a replay."""

    def __init__(self, request: Request) -> None:
        self._stream = request.stream()
        self._kept: list[bytes] = []
        self._size = 0

    async def parts(self) -> AsyncIterator[bytes]:
        """The parts kept so far, then those still to be received."""
        for part in list(self._kept):
            yield part
        async for part in self._stream:
            self._size += len(part)
            if self._size <= REPLAY_BODY_MAX:
                self._kept.append(part)
            yield part

    def rewind(self) -> None:
        """Prepare to send the body again. Raises NoRoute when it is too large."""
        if self._size > REPLAY_BODY_MAX:
            raise NoRoute(502, "[PR04] the body is too large to be replayed")


@contextlib.asynccontextmanager
async def build_proxy(backend: Backend) -> AsyncIterator[ASGIApp]:
    """The proxy as an ASGI application; its HTTP client is closed when the block ends."""
    # No keep-alive: after a stop or a suspend a kept connection is dead, or another boot's.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    timeout = httpx.Timeout(None, connect=5)
    # `trust_env=False`: a developer's HTTP_PROXY must not apply to loopback. `verify=False`: there
    # is no TLS, and loading the certificate authorities takes 20 ms.
    async with httpx.AsyncClient(
        limits=limits, timeout=timeout, trust_env=False, verify=False
    ) as client:
        yield RequestIds(Proxy(backend, client), backend.settings.region)


def _response(answer: httpx.Response, request: Request) -> Response:
    body = _body(answer, request.scope["extensions"]["roost.abort"])
    response = StreamingResponse(body, answer.status_code)
    response.raw_headers = [
        (name.lower(), value)
        for name, value in answer.headers.raw
        if name.lower().decode() not in _HOP_BY_HOP
    ]
    return response


def _query(request: Request) -> str:
    query: bytes = request.scope["query_string"]
    return (b"?" + query if query else b"").decode("latin-1")


def _has_body(request: Request) -> bool:
    return "content-length" in request.headers or "transfer-encoding" in request.headers


def _passed_on(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(name, value) for name, value in headers if name.lower() not in _HOP_BY_HOP]


async def _body(answer: httpx.Response, abort: Callable[[], None]) -> AsyncIterator[bytes]:
    try:
        async for chunk in answer.aiter_raw():
            yield chunk
    except httpx.HTTPError:
        # The head is sent already: only aborting the connection can tell the client.
        abort()
        await asyncio.sleep(0)
