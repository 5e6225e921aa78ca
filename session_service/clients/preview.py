"""A session's preview over HTTP: where it is, and whether it answers."""

from __future__ import annotations

import asyncio
import logging
from time import monotonic
from typing import TYPE_CHECKING

import httpx

if TYPE_CHECKING:
    from session_service.domain.session import Container

_log = logging.getLogger(__name__)
#: Between two probes, in s: doubled each time, up to the second.
FIRST_PAUSE = 0.02
LONGEST_PAUSE = 0.5
#: One probe, in s.
PROBE_TIMEOUT = 5.0


class Preview:
    """The previews behind one address pattern; where it is empty, there are none to ask."""

    def __init__(self, template: str, http: httpx.AsyncClient) -> None:
        """`template` may name `{container_id}` and `{app}`."""
        self._template = template
        self._http = http

    @property
    def known(self) -> bool:
        """Whether previews have addresses at all."""
        return bool(self._template)

    def url(self, app: str, container_id: str) -> str:
        """Where the container's preview answers; "" where no pattern is configured."""
        if not self._template:
            return ""
        return self._template.format(container_id=container_id, app=app)

    async def answers(self, container: Container, timeout: float = PROBE_TIMEOUT) -> bool:
        """Whether the preview answers now: any status below 500 is an answer."""
        if not self.known or container.container_id is None:
            return False
        try:
            status = await self.get_status(container, "", timeout)
        except httpx.HTTPError as error:
            _log.debug("the preview did not answer: %r", error, extra={"action": "probe"})
            return False
        return status < httpx.codes.INTERNAL_SERVER_ERROR

    async def get_status(self, container: Container, path: str, timeout: float) -> int:
        """The HTTP status of a GET of this path of the preview ("" for the pattern's own), its body
        unread, redirects not followed. `timeout` (s) is for the whole of it.

        Raises httpx.HTTPError; UnsupportedProtocol where the preview has no address.
        """
        url = httpx.URL(self.url(container.app, container.container_id or ""))
        host = url.netloc.decode()
        if url.host.endswith(".localhost"):
            # RFC 6761: such names are the loopback's; not every resolver knows.
            url = url.copy_with(host="127.0.0.1")
        if path:
            # Not joined: whatever the path says, the host stays the preview's.
            url = url.copy_with(raw_path=path.encode())
        headers = {"host": host, "user-agent": "roost-probe"}
        try:
            # httpx's own is for each part: an application could answer a byte at a time for ever.
            async with (
                asyncio.timeout(timeout),
                self._http.stream("GET", url, headers=headers, timeout=timeout) as response,
            ):
                return response.status_code
        except TimeoutError as error:
            raise httpx.ReadTimeout("the preview took too long to answer") from error

    async def wait_ready(
        self,
        container: Container,
        timeout: float,
    ) -> bool:
        """Whether the preview answered within `timeout` s; true where there is none to ask."""
        if not self.known:
            return True
        deadline, pause = monotonic() + timeout, FIRST_PAUSE
        while (left := deadline - monotonic()) > 0:
            if await self.answers(container, min(left, PROBE_TIMEOUT)):
                return True
            await asyncio.sleep(min(pause, max(0.0, deadline - monotonic())))
            pause = min(pause * 2, LONGEST_PAUSE)
        return False
