"""The activity source of a spec: whether somebody uses a container, as itself says."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import httpx

from session_service.domain import spec as specs
from session_service.ports import Address

if TYPE_CHECKING:
    from session_service.clients.preview import Preview
    from session_service.domain.session import Container
    from session_service.ports import Containers

_log = logging.getLogger(__name__)

#: One question, in s.
TIMEOUT = 5.0
#: Both of a guest's tables; Fly's machines always have IPv6, by which its proxy reaches them.
TABLES = ("cat", "/proc/net/tcp", "/proc/net/tcp6")
#: As /proc/net/tcp has it: the state of an established connection.
ESTABLISHED = "01"


class Activity:
    """Asks the application over HTTP, or the guest for its connections."""

    def __init__(self, previews: Preview, containers: Containers) -> None:
        self._previews = previews
        self._containers = containers

    async def active(self, container: Container, spec: str) -> bool:
        """What the spec's source says; False without one, or where it does not answer."""
        source = specs.load(spec).get("activity", {})
        if container.container_id is None or not source:
            return False
        if "http_path" in source:
            return await self._by_http(container, source["http_path"])
        return await self._by_connections(container, int(source["connections_port"]))

    async def _by_http(self, container: Container, path: str) -> bool:
        """2xx: somebody is there; 204 and everything else, a redirect too: nobody."""
        try:
            status = await self._previews.get_status(container, path, TIMEOUT)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            _log.debug("the activity hook did not answer: %r", error, extra={"action": "activity"})
            return False
        return status != httpx.codes.NO_CONTENT and httpx.codes.is_success(status)

    async def _by_connections(self, container: Container, port: int) -> bool:
        """Whether a connection to the port is established."""
        where = Address(container.app, container.container_id or "")
        listed = await self._containers.read_text(where, TABLES, timeout=TIMEOUT)
        return listed is not None and any(_to(line, port) for line in listed.splitlines())


def _to(line: str, port: int) -> bool:
    """Whether a line of /proc/net/tcp is an established connection to this port of ours.

    `sl local_address rem_address st …`: addresses as hex `address:port`.
    """
    words = line.split()
    if len(words) < 4 or words[3] != ESTABLISHED:
        return False
    return words[1].rpartition(":")[2] == f"{port:04X}"
