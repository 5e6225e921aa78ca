"""An agent service for each test, on a database of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.agent.harness import Replica, replica

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def agents(database_url: str) -> AsyncIterator[Replica]:
    """One replica."""
    async with replica(database_url) as running:
        yield running
