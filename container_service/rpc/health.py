"""The standard health service: NOT_SERVING until the provider has answered once."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from grpc_health.v1 import health, health_pb2

from container_service.containers.deadlines import Deadline
from container_service.containers.errors import ServiceError

if TYPE_CHECKING:
    from container_service.containers.provider import Provider

log = logging.getLogger(__name__)

CHECK_SECONDS = 5.0
LONGEST_PAUSE_SECONDS = 15.0

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Health:
    """Checks the provider at start, and sets the status of the health service.

    After the first answer the service stays SERVING, also in an outage of the provider. Otherwise
    load balancers would send no more calls, and callers would not get the error that names the
    provider as the cause and says when to retry.
    """

    def __init__(self, provider: Provider, app: str, services: tuple[str, ...]) -> None:
        self.servicer = health.aio.HealthServicer()
        self._provider = provider
        # Any name will do: a 404 also shows that the provider accepts the token.
        self._app = app or "roost"
        self._services = ("", *services)

    async def begin(self) -> None:
        """Set NOT_SERVING. Call it before the server starts."""
        await self._set(_NOT_SERVING)

    async def run(self) -> None:
        """Check the provider, with growing pauses, until it answers."""
        pause = 0.25
        while not await self.check():
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)

    async def check(self) -> bool:
        """Check the provider once; set SERVING and return True if it answers."""
        try:
            await self._provider.check(self._app, Deadline.after(CHECK_SECONDS))
        except ServiceError as error:
            log.warning(
                "Not serving yet, as the provider does not answer: %s",
                error,
                extra={"action": "health"},
            )
            return False
        await self._set(_SERVING)
        log.info("The provider answers; now serving", extra={"action": "health"})
        return True

    async def _set(self, status: int) -> None:
        for service in self._services:
            await self.servicer.set(service, status)
