"""The standard health service: whether this replica can do its work.

NOT_SERVING until the database and container_service have answered, and while the database is away.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import grpc.aio
import psycopg
from grpc_health.v1 import health, health_pb2

from session_service.errors import StorageUnavailable
from session_service.storage import installation
from session_service.storage.database import Statement, one

if TYPE_CHECKING:
    from session_service.storage.database import Database

_log = logging.getLogger(__name__)

CHECK_SECONDS = 5.0
LONGEST_PAUSE_SECONDS = 5.0
#: Between two looks at the database, in s.
WATCH_SECONDS = 2.0
#: So many looks in a row must fail: a busy moment is no outage, and callers that are turned away
#: from every replica at once have nowhere to go.
FAILURES = 2
#: A standby, or a primary that was stood down, answers, and can do none of our work.
_WRITABLE = Statement(
    "SELECT current_setting('transaction_read_only')", {}, lambda row: row[0] == "off"
)
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Health:
    """Tells whether the service can do its work.

    Without container_service it stays SERVING once both have answered: running sessions can still
    be reused then, and each other call says so for itself. Without the database it can do nothing.
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
        """Check until both have answered, then watch the database for ever."""
        pause = 0.05
        while not await self.check():
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
        await self._tell(_SERVING)
        _log.info("the database and container_service answer; serving", extra={"action": "health"})
        failures = 0
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            failures = await self._watched(failures)

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

    async def _watched(self, failures: int) -> int:
        """Look at the database, and tell where that changes something; how often in a row it failed
        by now.
        """
        if await self._writable():
            if failures >= FAILURES:
                await self._tell(_SERVING)
                _log.info("the database answers again; serving", extra={"action": "health"})
            return 0
        if failures + 1 == FAILURES:
            await self._tell(_NOT_SERVING)
            _log.error("the database is away; not serving", extra={"action": "health"})
        return failures + 1

    async def _writable(self) -> bool:
        """Whether the database takes writes now."""
        try:
            async with self._database.connection() as connection:
                if await one(connection, _WRITABLE, {}):
                    return True
                # The address may lead to another server by now: the next look asks that one.
                await connection.close()
        except (StorageUnavailable, psycopg.Error):
            return False
        return False

    async def _tell(self, status: int) -> None:
        for service in self._services:
            await self.servicer.set(service, status)
