"""The client of a session's preview."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

import httpx
import pytest

from session_service.clients.preview import Preview
from session_service.domain.session import Container, ContainerState

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
CONTAINER = Container(
    UUID(int=1), 1, "roost-1-1", "app", "m1", ContainerState.STARTED, "iad", "boot", NOW,
    NOW, cordoned=False, wanted=True, create_time=NOW, destroy_time=None,
)  # fmt: skip


@pytest.mark.parametrize("template", ["http://{app}:port/", "http://[{app}]/", "http://a\0b/"])
async def test_a_preview_whose_address_is_malformed_does_not_answer(template: str) -> None:
    """httpx.InvalidURL is no httpx.HTTPError."""
    async with httpx.AsyncClient() as http:
        preview = Preview(template, http)
        assert not await preview.answers(CONTAINER)
        assert not await preview.wait_ready(CONTAINER, 0.05)
