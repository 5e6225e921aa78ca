"""Fixtures: a real emulator and a real service on top of it, both in the test's process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from local.fly.emulator import Emulator, serve
from local.fly.settings import Settings
from tests.container.harness import TOKEN, Service, make_app, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A fast emulator on free ports, with Fly's rate limits. Test modules may override it."""
    return Settings(
        data=tmp_path / "fly",
        port=0,
        proxy_port=0,
        token=TOKEN,
        create_ms=5,
        start_ms=5,
        resume_ms=5,
        suspend_ms=20,
        replace_ms=5,
        destroy_ms=5,
    )


@pytest.fixture
async def emulator(settings: Settings) -> AsyncIterator[Emulator]:
    """A running emulator that has the app."""
    async with serve(settings) as running:
        await make_app(running)
        yield running


@pytest.fixture
async def patient(emulator: Emulator) -> AsyncIterator[Service]:
    """A running service whose first wait for a change is long.

    That of `service` lasts a second; after that it reads the container. Where a change takes longer
    on a busy machine, a test that counts the calls of an operation would count that read too.
    """
    async with serving(emulator, lag_window=20.0) as running:
        yield running


@pytest.fixture
async def service(emulator: Emulator) -> AsyncIterator[Service]:
    """A running service."""
    async with serving(emulator) as running:
        yield running
