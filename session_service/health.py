"""The standard health service: NOT_SERVING until the database and container_service answer."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import grpc.aio
import psycopg
from grpc_health.v1 import health, health_pb2

from session_service.errors import StorageUnavailable
from session_service.storage import installation

if TYPE_CHECKING:
    from session_service.storage.database import Database

_log = logging.getLogger(__name__)

CHECK_SECONDS = 5.0
LONGEST_PAUSE_SECONDS = 5.0
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Health:
    """Tells whether the service can do its work.

    Once both have answered it stays SERVING: when one is away later, each call says so for itself;
    running sessions can still be reused then, and callers must be able to hear it.
    """

    def __init__(
        self, database: Database, channel: grpc.aio.Channel, services: tuple[str, ...]
    ) -> None:
        self.servicer = health.aio.HealthServicer()
        self._database = database
        self._check_peer = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        self._services = ("", *services)

    async def begin(self) -> None:
        """Say NOT_SERVING, before the server takes calls."""
        await self._tell(_NOT_SERVING)

    async def run(self) -> None:
        """Check until both have answered."""
        pause = 0.05
        while not await self.check():
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
        await self._tell(_SERVING)
        _log.info("the database and container_service answer; serving", extra={"action": "health"})

    async def check(self) -> bool:
        """Whether the database and container_service answer now."""
        try:
            await installation.read(self._database)
            request = health_pb2.HealthCheckRequest()
            answer = await self._check_peer(request, timeout=CHECK_SECONDS)
        except (StorageUnavailable, psycopg.Error, grpc.aio.AioRpcError) as error:
            reason = error.code().name if isinstance(error, grpc.aio.AioRpcError) else str(error)
            _log.warning("not serving yet: %s", reason, extra={"action": "health"})
            return False
        return bool(answer.status == _SERVING)

    async def _tell(self, status: int) -> None:
        for service in self._services:
            await self.servicer.set(service, status)
