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


@pytest.mark.parametrize(
    ("template", "path", "asked"),
    [
        ("http://{container_id}.example/", "", "http://m1.example/"),
        ("http://{container_id}.example/", "/busy?now=1", "http://m1.example/busy?now=1"),
        ("http://{container_id}.example", "/busy", "http://m1.example/busy"),
        ("http://example:81/{app}/{container_id}/", "", "http://example:81/app/m1/"),
        ("http://example:81/{app}/{container_id}/", "/busy", "http://example:81/app/m1/busy"),
        ("http://m.example/", "//other.example/", "http://m.example//other.example/"),
    ],
)
async def test_a_path_is_below_the_path_of_the_pattern(
    template: str, path: str, asked: str
) -> None:
    """As the path of a state hook is, and always at the pattern's host."""
    seen: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(str(request.url))
        return httpx.Response(200)

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
        assert await Preview(template, http).get_status(CONTAINER, path, 5) == 200
    assert seen == [asked]
