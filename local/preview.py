"""What a user sees of a session: its preview, through the emulator's proxy."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

import httpx

from local.demo_calls import since

if TYPE_CHECKING:
    from roost.session.v1.session_pb2 import Session

SECONDS = 15.0


class Previews:
    """The previews behind one proxy."""

    def __init__(self, proxy_url: str) -> None:
        # Nothing from the environment: a developer's HTTP_PROXY is not for loopback.
        self._http = httpx.AsyncClient(base_url=proxy_url, trust_env=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def get(self, session: Session, path: str) -> tuple[str, float]:
        """What the preview shows there, or what went wrong; and the milliseconds that it took."""
        # The address is the one of the reply; its name leads to the proxy, which we know.
        host = urlsplit(session.container.url).netloc
        began = time.monotonic()
        try:
            answer = await self._http.get(path, headers={"host": host}, timeout=SECONDS)
            came = answer.text if answer.is_success else f"HTTP {answer.status_code}"
        except httpx.HTTPError as error:
            came = repr(error)
        return came, since(began)
