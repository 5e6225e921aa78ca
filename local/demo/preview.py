"""The preview of a session, through the emulator's proxy, as a user sees it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Self

import httpx

from local.demo.calls import since

if TYPE_CHECKING:
    from roost.session.v1.session_pb2 import Session

SECONDS = 15.0


class Previews:
    """A client for the previews, at the URLs of the replies."""

    def __init__(self) -> None:
        # `trust_env=False`: a developer's HTTP_PROXY must not apply to loopback.
        self._http = httpx.AsyncClient(trust_env=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def get(self, session: Session, path: str) -> tuple[str, float]:
        """GET a path of the preview; return the body or the error, and the milliseconds."""
        url = session.container.url.rstrip("/") + path
        began = time.monotonic()
        try:
            answer = await self._http.get(url, timeout=SECONDS)
            came = answer.text if answer.is_success else f"HTTP {answer.status_code}"
        except httpx.HTTPError as error:
            came = repr(error)
        return came, since(began)
