"""The standard health service: NOT_SERVING until the provider has answered us once."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from grpc_health.v1 import health, health_pb2

from container_service.deadlines import Deadline
from container_service.errors import ServiceError

if TYPE_CHECKING:
    from container_service.provider import Provider

log = logging.getLogger(__name__)

CHECK_SECONDS = 5.0
LONGEST_PAUSE_SECONDS = 15.0

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Health:
    """Tells whether the service can do its work.

    Once the provider has answered, the service stays SERVING: when the provider is away later, each
    call says so for itself, and callers must be able to hear it.
    """

    def __init__(self, provider: Provider, app: str, services: tuple[str, ...]) -> None:
        self.servicer = health.aio.HealthServicer()
        self._provider = provider
        # Any answer to our token will do, also that there is no such app.
        self._app = app or "roost"
        self._services = ("", *services)

    async def begin(self) -> None:
        """Say NOT_SERVING, before the server takes calls."""
        await self._tell(_NOT_SERVING)

    async def run(self) -> None:
        """Check until the provider has answered."""
        pause = 0.25
        while not await self.check():
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)

    async def check(self) -> bool:
        """Ask the provider once; say SERVING if it answered."""
        try:
            await self._provider.check(self._app, Deadline.after(CHECK_SECONDS))
        except ServiceError as error:
            log.warning("The provider does not answer us: %s", error, extra={"action": "health"})
            return False
        await self._tell(_SERVING)
        log.info("The provider answers; serving", extra={"action": "health"})
        return True

    async def _tell(self, status: int) -> None:
        for service in self._services:
            await self.servicer.set(service, status)
