"""An agent service for each test, on a database of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from session_service.server.agent_service import AgentSettings
from tests.agent.harness import Replica, replica

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
def agent_settings() -> AgentSettings:
    """The settings of the replicas of a test; a module overrides them by a fixture of this name."""
    return AgentSettings()


@pytest.fixture
async def agents(database_url: str, agent_settings: AgentSettings) -> AsyncIterator[Replica]:
    """One replica."""
    async with replica(database_url, agent_settings) as running:
        yield running
