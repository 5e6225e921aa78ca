"""A session's preview over HTTP: its URL, and whether it answers."""

from __future__ import annotations

import asyncio
import logging
from time import monotonic
from typing import TYPE_CHECKING

import httpx

if TYPE_CHECKING:
    from session_service.domain.session import Container

_log = logging.getLogger(__name__)
#: The pause between two probes, in s. It doubles after each probe, up to LONGEST_PAUSE.
FIRST_PAUSE = 0.02
LONGEST_PAUSE = 0.5
#: Time-out of one probe, in s.
PROBE_TIMEOUT = 5.0


class Preview:
    """The previews that one URL pattern describes. With an empty pattern, previews have no URL."""

    def __init__(self, template: str, http: httpx.AsyncClient) -> None:
        """`template` is the URL pattern; it may contain `{container_id}` and `{app}`."""
        self._template = template
        self._http = http

    @property
    def configured(self) -> bool:
        """Whether previews have URLs."""
        return bool(self._template)

    def url(self, app: str, container_id: str) -> str:
        """The URL of the container's preview; "" if no pattern is configured."""
        if not self._template:
            return ""
        return self._template.format(container_id=container_id, app=app)

    async def answers(self, container: Container, timeout: float = PROBE_TIMEOUT) -> bool:
        """Whether the preview answers now with a status below 500. False if it has no URL, or a
        malformed one.

        `timeout` is in s.
        """
        if not self.configured or container.container_id is None:
            return False
        try:
            status = await self.get_status(container, "", timeout)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            _log.debug("the preview did not answer: %r", error, extra={"action": "probe"})
            return False
        return status < httpx.codes.INTERNAL_SERVER_ERROR

    async def get_status(self, container: Container, path: str, timeout: float) -> int:
        """Send a GET for `path` to the preview, below the path of the pattern, and return the
        status.

        The body is not read, and redirects are not followed. `timeout` (s) is for the whole
        request. Raises httpx.HTTPError if the request fails; its subclass UnsupportedProtocol if
        the preview has no URL.
        Raises httpx.InvalidURL if the pattern or the path make no URL.
        """
        url = httpx.URL(self.url(container.app, container.container_id or ""))
        host = url.netloc.decode()
        if url.host.endswith(".localhost"):
            # RFC 6761 gives these names to the loopback, but not every resolver knows them.
            url = url.copy_with(host="127.0.0.1")
        if path:
            # Put together as text: a path such as `//other.host/` cannot change the host.
            url = url.copy_with(raw_path=url.raw_path.rstrip(b"/") + path.encode())
        headers = {"host": host, "user-agent": "roost-probe"}
        try:
            # httpx's time-out is for each read: an application that sends one byte at a time would
            # never reach it.
            async with (
                asyncio.timeout(timeout),
                self._http.stream("GET", url, headers=headers, timeout=timeout) as response,
            ):
                return response.status_code
        except TimeoutError as error:
            raise httpx.ReadTimeout("the preview took too long to answer") from error
        except AttributeError as error:
            # anyio reads the peer's address from the socket of the new connection. If the other
            # side has closed the connection by then, uvloop returns None for the socket.
            raise httpx.ReadError("the connection was closed as it was opened") from error

    async def wait_ready(
        self,
        container: Container,
        timeout: float,
    ) -> bool:
        """Probe until the preview answers, for up to `timeout` s. Returns whether it answered; True
        if previews have no URL.
        """
        if not self.configured:
            return True
        deadline, pause = monotonic() + timeout, FIRST_PAUSE
        while (left := deadline - monotonic()) > 0:
            if await self.answers(container, min(left, PROBE_TIMEOUT)):
                return True
            await asyncio.sleep(min(pause, max(0.0, deadline - monotonic())))
            pause = min(pause * 2, LONGEST_PAUSE)
        return False
