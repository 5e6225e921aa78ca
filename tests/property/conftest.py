"""The two implementations of the port: in memory, and container_service over the emulator."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import grpc.aio
import pytest

from container_service.main import serve as serve_containers
from local.fly.emulator import serve
from local.fly.settings import Settings
from session_service.clients.containers import GrpcContainers
from tests.container.harness import APP, TOKEN, UNPACED, config_for, make_app
from tests.property.memory_containers import Cloud, MemoryContainers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from session_service.ports import Containers


@pytest.fixture(params=["memory", "container_service"])
async def containers(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Containers]:
    """Each implementation of the port in turn."""
    if request.param == "memory":
        yield MemoryContainers(Cloud())
        return
    async with AsyncExitStack() as stack:
        settings = Settings(
            data=tmp_path / "fly", port=0, proxy_port=0, token=TOKEN, limits=False,
            create_ms=5, start_ms=5, resume_ms=5, suspend_ms=5, destroy_ms=5,
        )  # fmt: skip
        emulator = await stack.enter_async_context(serve(settings))
        await make_app(emulator)
        unpaced = config_for(emulator, fly_rate_share=UNPACED)
        service = await stack.enter_async_context(serve_containers(unpaced))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(service.target))
        yield GrpcContainers(channel)


@pytest.fixture
def app() -> str:
    """The app of both implementations."""
    return APP
