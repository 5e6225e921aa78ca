"""The activity source of a spec: asks a container whether a user is active in it."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import TYPE_CHECKING

import httpx

from session_service.domain import spec as specs
from session_service.ports import Address

if TYPE_CHECKING:
    from session_service.clients.preview import Preview
    from session_service.domain.session import Container
    from session_service.ports import Containers

_log = logging.getLogger(__name__)

#: One question.
TIMEOUT = timedelta(seconds=5)
#: Both of a guest's tables; Fly's machines always have IPv6, by which its proxy reaches them.
TABLES = ("cat", "/proc/net/tcp", "/proc/net/tcp6")
#: The code of an established connection in /proc/net/tcp.
ESTABLISHED = "01"


class Activity:
    """Asks the application over HTTP, or reads the guest's table of TCP connections."""

    def __init__(
        self, previews: Preview, containers: Containers, timeout: timedelta = TIMEOUT
    ) -> None:
        """`timeout` bounds one question as a whole, not each part of its answer."""
        self._previews = previews
        self._containers = containers
        self._timeout = timeout.total_seconds()

    async def active(self, container: Container, spec: str) -> bool:
        """Whether the spec's source reports activity. False if the spec has no source, or if it
        does not answer.
        """
        source = specs.load(spec).get("activity", {})
        if container.container_id is None or not source:
            return False
        if "http_path" in source:
            return await self._by_http(container, source["http_path"])
        return await self._by_connections(container, int(source["connections_port"]))

    async def _by_http(self, container: Container, path: str) -> bool:
        """A 2xx status other than 204 means active. 204 and every other status, redirects included,
        mean inactive.
        """
        try:
            status = await self._previews.get_status(container, path, self._timeout)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            _log.debug("the activity hook did not answer: %r", error, extra={"action": "activity"})
            return False
        return status != httpx.codes.NO_CONTENT and httpx.codes.is_success(status)

    async def _by_connections(self, container: Container, port: int) -> bool:
        """Whether a connection to the port is established."""
        where = Address(container.app, container.container_id or "")
        listed = await self._containers.read_text(where, TABLES, timeout=self._timeout)
        return listed is not None and any(_is_to(line, port) for line in listed.splitlines())


def _is_to(line: str, port: int) -> bool:
    """Whether a line of /proc/net/tcp shows an established connection to this local port.

    The line's form is `sl local_address rem_address st …`; an address is `address:port` in hex.
    """
    words = line.split()
    if len(words) < 4 or words[3] != ESTABLISHED:
        return False
    return words[1].rpartition(":")[2] == f"{port:04X}"
