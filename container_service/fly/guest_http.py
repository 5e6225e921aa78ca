"""State over HTTP: the application in a container, asked through Fly's proxy."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import httpx

from container_service.errors import (
    FieldViolation,
    InvalidRequest,
    OutcomeUnknown,
    ProviderUnavailable,
    StateHookFailed,
)
from container_service.transferring import CHUNK_BYTES, too_large

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from container_service.container import ContainerRef
    from container_service.deadlines import Deadline

#: Only this machine is asked, with no fallback to another of the app (Fly docs: dynamic routing).
FORCE_HEADER = "fly-force-instance-id"
#: What a gateway answers where it does not reach the application, or loses it.
_NOT_REACHED = frozenset({502, 503, 504})
_SAID_BYTES = 2048
_CONNECT_SECONDS = 5.0
_CONNECTIONS = 64


class HttpState:
    """A `StateChannel` over HTTP. No redirect is followed: the address is ours to say."""

    def __init__(self, http: httpx.AsyncClient, template: str, limit: int) -> None:
        """`template` is where previews answer, naming `{container_id}` and `{app}` if need be."""
        self._http = http
        self._template = template
        self.limit = limit

    async def read(
        self, ref: ContainerRef, value: str, deadline: Deadline
    ) -> AsyncGenerator[bytes]:
        """GET. An answer that does not tell where it ends cannot be told from one that was cut."""
        # Not one timeout around all: whoever takes the pieces is slow in a time of its own.
        request = self._request("GET", ref, value)
        response = await self._answer(request, deadline)
        try:
            await _check(response, deadline)
            self._must_be_whole(response)
            pieces = response.aiter_raw(CHUNK_BYTES)
            while True:
                async with _bounded(deadline):
                    piece = await anext(pieces, None)
                if piece is None:
                    return
                yield piece
        finally:
            await response.aclose()

    async def write(
        self, ref: ContainerRef, value: str, chunks: AsyncIterator[bytes], deadline: Deadline
    ) -> None:
        """PUT, chunked: an application that is cut off sees no end of the body."""
        body = _Body(chunks)
        try:
            request = self._request("PUT", ref, value, body.parts())
            response = await self._answer(request, deadline)
            try:
                await _check(response, deadline)
            finally:
                await response.aclose()
        except ProviderUnavailable as error:
            raise OutcomeUnknown(str(error)) from error
        if not body.ended:
            raise OutcomeUnknown("the application answered before it had the whole state")

    def _request(
        self, method: str, ref: ContainerRef, path: str, body: AsyncIterator[bytes] | None = None
    ) -> httpx.Request:
        if not self._template:
            raise InvalidRequest(
                FieldViolation(
                    "state_hook.http_path", "needs ROOST_URL_TEMPLATE, which the service has not"
                )
            )
        base = self._template.format(container_id=ref.container_id, app=ref.app)
        url = httpx.URL(base.rstrip("/") + path)
        headers = {
            "host": url.netloc.decode(),
            "user-agent": "roost",
            "accept": "*/*",
            "accept-encoding": "identity",
            FORCE_HEADER: ref.container_id,
        }
        if url.host.endswith(".localhost"):
            # RFC 6761: such names are the loopback's; not every resolver knows.
            url = url.copy_with(host="127.0.0.1")
        return self._http.build_request(method, url, headers=headers, content=body)

    async def _answer(self, request: httpx.Request, deadline: Deadline) -> httpx.Response:
        async with _bounded(deadline):
            return await self._http.send(request, stream=True)

    def _must_be_whole(self, response: httpx.Response) -> None:
        length = response.headers.get("content-length")
        chunked = "chunked" in response.headers.get("transfer-encoding", "").lower()
        if length is None and not chunked:
            raise StateHookFailed("the state hook answers without a length and not chunked")
        if response.headers.get("content-encoding", "identity") != "identity":
            raise StateHookFailed("the state hook answers in a content coding it was not asked for")
        if length is not None and int(length) > self.limit:
            raise too_large(int(length), self.limit)


class _Body:
    """A request's body, and whether its end was sent."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self.ended = False

    async def parts(self) -> AsyncGenerator[bytes]:
        """The body, as it comes."""
        async for chunk in self._chunks:
            yield chunk
        self.ended = True


@asynccontextmanager
async def open_http_state(template: str, limit: int) -> AsyncGenerator[HttpState]:
    """A channel for the life of the process."""
    # No connection is kept: after a suspend or a stop it would be another boot's, or dead.
    limits = httpx.Limits(max_connections=_CONNECTIONS, max_keepalive_connections=0)
    # A proxy that the environment names is for the world outside, never for loopback.
    outside = template.startswith("https:")
    timeout = httpx.Timeout(None, connect=_CONNECT_SECONDS)
    async with httpx.AsyncClient(
        limits=limits, timeout=timeout, trust_env=outside, verify=outside
    ) as http:
        yield HttpState(http, template, limit)


async def _check(response: httpx.Response, deadline: Deadline) -> None:
    """Raise what an answer that is no success means."""
    if response.is_success:
        return
    said = await _said(response, deadline)
    message = f"the state hook answered {response.status_code}: {said}"
    request_id = response.headers.get("fly-request-id", "")
    if response.status_code in _NOT_REACHED:
        raise ProviderUnavailable(message, provider_request_id=request_id)
    raise StateHookFailed(
        message,
        provider_request_id=request_id,
        http_status=str(response.status_code),
        said=said,
    )


async def _said(response: httpx.Response, deadline: Deadline) -> str:
    """The beginning of a refusal's text; nothing where that breaks off too."""
    said = b""
    try:
        async with _bounded(deadline):
            async for piece in response.aiter_raw(_SAID_BYTES):
                said += piece
                if len(said) >= _SAID_BYTES:
                    break
    except ProviderUnavailable:
        pass
    text = said[:_SAID_BYTES].decode(errors="replace").strip()
    return "".join(c if c.isprintable() else " " for c in text)


@asynccontextmanager
async def _bounded(deadline: Deadline) -> AsyncGenerator[None]:
    """HTTP's failures as ours, by the deadline."""
    try:
        async with asyncio.timeout(deadline.remaining()):
            yield
    except TimeoutError as error:
        raise ProviderUnavailable("the container did not answer in time") from error
    except httpx.HTTPError as error:
        raise ProviderUnavailable(f"the container broke off: {type(error).__name__}") from error
