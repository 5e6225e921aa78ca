"""The state of an application over HTTP, through Fly's proxy."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import httpx

from container_service.containers.errors import (
    FieldViolation,
    InvalidRequest,
    OutcomeUnknown,
    ProviderUnavailable,
    StateHookFailed,
)
from container_service.containers.state_transfer import CHUNK_BYTES, too_large
from container_service.fly.connection import closed_as_opened

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from container_service.containers.deadlines import Deadline
    from container_service.containers.model import ContainerRef

#: Routes the request to this machine only, never to another of the app (Fly docs: dynamic routing).
FORCE_HEADER = "fly-force-instance-id"
#: Answers of a gateway that cannot reach the application.
_NOT_REACHED = frozenset({502, 503, 504})
_QUOTED_BYTES = 2048
_CONNECT_SECONDS = 5.0
_CONNECTIONS = 64


class HttpStateChannel:
    """A `StateChannel` over HTTP.

    Follows no redirect, so that an application cannot send the service to another address.
    """

    def __init__(self, http: httpx.AsyncClient, template: str, limit: int) -> None:
        """`template`: URL of containers' HTTP services, with `{container_id}` and `{app}`."""
        self._http = http
        self._template = template
        self.limit = limit

    async def read(
        self, ref: ContainerRef, value: str, deadline: Deadline
    ) -> AsyncGenerator[bytes]:
        """GET the path.

        An answer must have a length or be chunked: without either, the end of the connection would
        look the same after the whole state and after half of it.

        Each read has the timeout, and not the loop as a whole. `asyncio.timeout` cancels the task
        that entered it, and across a `yield` the task may be in the consumer's code, which may take
        its time. The `finally` closes the connection when the consumer closes the generator early,
        as after a cancelled capture: the application then sees a broken connection and stops.
        """
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
        """PUT the path, chunked: if the body is cut off, the application sees no end of it."""
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
            raise OutcomeUnknown(
                "the application answered before it had the whole state, so it may have part of it:"
                " restore again"
            )

    def _request(
        self, method: str, ref: ContainerRef, path: str, body: AsyncIterator[bytes] | None = None
    ) -> httpx.Request:
        if not self._template:
            raise InvalidRequest(
                FieldViolation("state_hook.http_path", "needs ROOST_URL_TEMPLATE, which is not set")
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
            # RFC 6761 reserves these names for the loopback, but not every resolver knows them.
            url = url.copy_with(host="127.0.0.1")
        return self._http.build_request(method, url, headers=headers, content=body)

    async def _answer(self, request: httpx.Request, deadline: Deadline) -> httpx.Response:
        async with _bounded(deadline):
            with closed_as_opened():
                return await self._http.send(request, stream=True)

    def _must_be_whole(self, response: httpx.Response) -> None:
        length = response.headers.get("content-length")
        chunked = "chunked" in response.headers.get("transfer-encoding", "").lower()
        if length is None and not chunked:
            raise StateHookFailed(
                "the state hook's answer has neither a content-length nor a chunked body"
            )
        if response.headers.get("content-encoding", "identity") != "identity":
            raise StateHookFailed("the state hook's answer has a content-encoding: send it without")
        if length is not None and int(length) > self.limit:
            raise too_large(int(length), self.limit)


class _Body:
    """The body of a request, and whether its end was sent."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self.ended = False

    async def parts(self) -> AsyncGenerator[bytes]:
        """Yield the body."""
        async for chunk in self._chunks:
            yield chunk
        self.ended = True


@asynccontextmanager
async def open_http_state_channel(template: str, limit: int) -> AsyncGenerator[HttpStateChannel]:
    """Open a channel."""
    # Connections are not reused: after a suspend or a stop they would be dead.
    limits = httpx.Limits(max_connections=_CONNECTIONS, max_keepalive_connections=0)
    # Over plain HTTP (loopback, a private network) no proxy of the environment is used.
    encrypted = template.startswith("https:")
    timeout = httpx.Timeout(None, connect=_CONNECT_SECONDS)
    async with httpx.AsyncClient(
        limits=limits, timeout=timeout, trust_env=encrypted, verify=encrypted
    ) as http:
        yield HttpStateChannel(http, template, limit)


async def _check(response: httpx.Response, deadline: Deadline) -> None:
    """Raise the error that an answer other than a success stands for."""
    if response.is_success:
        return
    quoted = await _beginning(response, deadline)
    message = f"the state hook answered {response.status_code}: {quoted}"
    request_id = response.headers.get("fly-request-id", "")
    if response.status_code in _NOT_REACHED:
        raise ProviderUnavailable(message, provider_request_id=request_id)
    raise StateHookFailed(
        message,
        provider_request_id=request_id,
        http_status=str(response.status_code),
        said=quoted,
    )


async def _beginning(response: httpx.Response, deadline: Deadline) -> str:
    """The beginning of the body, as much as arrived if the connection breaks."""
    body = b""
    try:
        async with _bounded(deadline):
            async for piece in response.aiter_raw(_QUOTED_BYTES):
                body += piece
                if len(body) >= _QUOTED_BYTES:
                    break
    except ProviderUnavailable:
        pass
    text = body[:_QUOTED_BYTES].decode(errors="replace").strip()
    return "".join(c if c.isprintable() else " " for c in text)


@asynccontextmanager
async def _bounded(deadline: Deadline) -> AsyncGenerator[None]:
    """Raise HTTP errors in the block, and the end of the deadline, as ProviderUnavailable."""
    try:
        async with asyncio.timeout(deadline.remaining()):
            yield
    except TimeoutError as error:
        raise ProviderUnavailable("the container did not answer in time: retry") from error
    except httpx.HTTPError as error:
        raise ProviderUnavailable(
            f"the connection to the container broke: {type(error).__name__}"
        ) from error
