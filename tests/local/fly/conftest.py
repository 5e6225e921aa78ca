"""Fixtures: an emulator on free ports for each test, and a client of its API."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from local.fly.admin import Admin
from local.fly.emulator import Emulator, serve
from local.fly.settings import Settings
from tests.local.fly.api_client import ApiClient, App


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Short transitions, free ports, no rate limits; a test module may override it."""
    return Settings(
        data=tmp_path / "fly",
        port=0,
        proxy_port=0,
        limits=False,
        create_ms=5,
        start_ms=5,
        resume_ms=5,
        suspend_ms=20,
        replace_ms=5,
        destroy_ms=5,
    )


@pytest.fixture
async def emulator(settings: Settings) -> AsyncIterator[Emulator]:
    """A running emulator."""
    async with serve(settings) as running:
        yield running


@pytest.fixture
async def client(emulator: Emulator) -> AsyncIterator[ApiClient]:
    """Requests to the emulator's API, with a token."""
    async with ApiClient(emulator.api_url) as speaking:
        yield speaking


@pytest.fixture
async def app(client: ApiClient) -> App:
    """An app for machines."""
    await client.expect(201, "POST", "/v1/apps", {"app_name": "birds", "org_slug": "personal"})
    return App(client, "birds")


@pytest.fixture
async def admin(emulator: Emulator) -> AsyncIterator[Admin]:
    """The emulator's logs and faults."""
    async with Admin(emulator.api_url) as reading:
        yield reading
