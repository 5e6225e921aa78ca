"""Fixtures: for each test a Roost in this process, with its own database and emulator."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from local.fly.emulator import Emulator, serve
from local.fly.settings import Settings
from session_service.storage import database
from tests.container.harness import TOKEN, make_app
from tests.session.harness import World, world
from tests.session.tracing import Tracer, tracing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings of a fast emulator on free ports; a test module may override them."""
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
def patient_database(monkeypatch: pytest.MonkeyPatch) -> None:
    """Statements of services that start after it may wait for a lock as long as the test lasts.

    For tests that hold a lock until others wait for it: how long that takes, a busy machine
    decides, and the service's own limit is 3 s.
    """
    monkeypatch.setattr(database, "ANSWER_TIMEOUT", 60.0)
    monkeypatch.setattr(database, "_CONFIGURE", "SELECT set_config('jit', 'off', false)")


@pytest.fixture
async def emulator(settings: Settings) -> AsyncIterator[Emulator]:
    """A running emulator with one app."""
    async with serve(settings) as running:
        await make_app(running)
        yield running


@pytest.fixture
def replicas(request: pytest.FixtureRequest) -> int:
    """How many replicas `roost` has: two, or as many as the marker `replicas` of the test says."""
    marker = request.node.get_closest_marker("replicas")
    return marker.args[0] if marker else 2


@pytest.fixture
async def roost(emulator: Emulator, database_url: str, replicas: int) -> AsyncIterator[World]:
    """Replicas and one container_service."""
    async with world(emulator, database_url, replicas) as running:
        yield running


@pytest.fixture
async def always_probing(
    emulator: Emulator, database_url: str, replicas: int
) -> AsyncIterator[World]:
    """Like `roost`, but without a freshness window: every start probes the provider."""
    async with world(emulator, database_url, replicas, freshness_window=timedelta(0)) as running:
        yield running


@pytest.fixture
def tracer() -> Iterator[Tracer]:
    """Traces calls to replicas of this test that are created after it."""
    with tracing() as running:
        yield running


@pytest.fixture
async def traced(tracer: Tracer, emulator: Emulator, database_url: str) -> AsyncIterator[World]:
    """Two replicas whose calls can be traced. Their leases are too long to be renewed in a test."""
    async with world(emulator, database_url, lease=timedelta(seconds=30)) as running:
        yield running
