"""A whole Roost for each test, in this process: its own database, emulator and replicas."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from local.fly.emulator import Emulator, serve
from local.fly.settings import Settings
from tests.container.harness import TOKEN, make_app
from tests.session.harness import World, world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Fast, on free ports; a test module may override it."""
    return Settings(
        data=tmp_path / "fly",
        port=0,
        proxy_port=0,
        token=TOKEN,
        create_ms=5,
        start_ms=5,
        resume_ms=5,
        suspend_ms=20,
        destroy_ms=5,
        limits=False,
    )


@pytest.fixture
async def emulator(settings: Settings) -> AsyncIterator[Emulator]:
    """A running emulator with an app in it."""
    async with serve(settings) as running:
        await make_app(running)
        yield running


@pytest.fixture
async def roost(emulator: Emulator, database_url: str) -> AsyncIterator[World]:
    """Two replicas over one container_service."""
    async with world(emulator, database_url) as running:
        yield running


@pytest.fixture
async def forgetful(emulator: Emulator, database_url: str) -> AsyncIterator[World]:
    """The same, for whom a look at the provider counts for nothing: every start looks again."""
    from datetime import timedelta

    async with world(emulator, database_url, freshness_window=timedelta(0)) as running:
        yield running
