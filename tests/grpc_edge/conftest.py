"""Fixtures: both services in this process, and a channel to each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from container_service.main import serve as serve_containers
from tests.container.harness import config_for
from tests.contracts import CONTAINERS, SESSIONS
from tests.session.conftest import emulator as emulator
from tests.session.conftest import replicas as replicas
from tests.session.conftest import roost as roost
from tests.session.conftest import settings as settings
from tests.session.harness import replica, session_config

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from local.fly.emulator import Emulator


#: Any: descriptors of methods are of one class at run time, and of another in the stubs.
Method = Any


@dataclass(frozen=True)
class Server:
    """A server under test, and the descriptors of the services of ours that it serves."""

    name: str
    channel: grpc.aio.Channel
    target: str
    services: tuple[Any, ...]

    @property
    def methods(self) -> list[Method]:
        """All their methods."""
        return [method for service in self.services for method in service.methods]


@pytest.fixture
async def servers(emulator: Emulator, database_url: str) -> AsyncIterator[tuple[Server, Server]]:
    """session_service and container_service."""
    async with (
        serve_containers(config_for(emulator, grace=0.1)) as containers,
        replica(
            session_config(database_url, containers.target, emulator.proxy_url, grace=0.1)
        ) as one,
        grpc.aio.insecure_channel(containers.target) as channel,
    ):
        yield (
            Server("session_service", one.channel, one.running.target, SESSIONS),
            Server("container_service", channel, containers.target, CONTAINERS),
        )
