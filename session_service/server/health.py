"""The standard health service, grpc.health.v1: whether this replica can do its work.

NOT_SERVING until the database and container_service have answered once, and while the database does
not answer or is read-only.
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
    from datetime import timedelta

    from session_service.storage.database import Database

_log = logging.getLogger(__name__)

CHECK_SECONDS = 5.0
LONGEST_PAUSE_SECONDS = 5.0
#: So many checks in a row must fail before the replica says NOT_SERVING: a busy moment is no
#: outage, and a load balancer that loses every replica at once has none to send calls to.
FAILURES = 2
#: A standby, or a primary that was demoted, answers and rejects every write.
_WRITABLE = Statement(
    "SELECT current_setting('transaction_read_only')", {}, lambda row: row[0] == "off"
)
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Health:
    """Sets the status of every service of this replica.

    Once both have answered, a failure of container_service changes nothing: running sessions can
    still be reused, and every other call reports the failure itself. Without the database no call
    can be answered.
    """

    def __init__(
        self,
        database: Database,
        channel: grpc.aio.Channel,
        services: tuple[str, ...],
        interval: timedelta,
    ) -> None:
        """`interval` is the time between two checks of the database."""
        self.servicer = health.aio.HealthServicer()
        self._database = database
        self._check_peer = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        self._services = ("", *services)
        self._interval = interval.total_seconds()

    async def begin(self) -> None:
        """Set NOT_SERVING, before the server takes calls."""
        await self._set(_NOT_SERVING)

    async def run(self) -> None:
        """Check until both have answered, then check the database for ever."""
        pause = 0.05
        while not await self.check():
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
        await self._set(_SERVING)
        _log.info("the database and container_service answer; serving", extra={"action": "health"})
        failures = 0
        while True:
            await asyncio.sleep(self._interval)
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
        """Check the database, and set the status if it changes. Returns how often in a row the
        check has failed by now.
        """
        if await self._writable():
            if failures >= FAILURES:
                await self._set(_SERVING)
                _log.info("the database answers again; serving", extra={"action": "health"})
            return 0
        if failures + 1 == FAILURES:
            await self._set(_NOT_SERVING)
            _log.error(
                "the database does not answer, or is read-only; not serving",
                extra={"action": "health"},
            )
        return failures + 1

    async def _writable(self) -> bool:
        """Whether the database takes writes now."""
        try:
            async with self._database.connection() as connection:
                if await one(connection, _WRITABLE, {}):
                    return True
                # After a failover the address may lead to another server: reconnect.
                await connection.close()
        except (StorageUnavailable, psycopg.Error):
            return False
        return False

    async def _set(self, status: int) -> None:
        for service in self._services:
            await self.servicer.set(service, status)
