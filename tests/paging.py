"""Reads lists page by page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

TIMEOUT = 30.0


async def pages(call: Callable[..., Any], request: Any) -> AsyncGenerator[Any]:
    """The answers of a call of a stub that answers with pages, to the last one, which has no token.
    Any: a call, its requests and its answers.
    """
    while True:
        page = await call(request, timeout=TIMEOUT)
        yield page
        if not page.next_page_token:
            return
        following = type(request)()
        following.CopyFrom(request)
        following.page_token = page.next_page_token
        request = following
