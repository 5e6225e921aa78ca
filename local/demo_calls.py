"""A call of the demo that must be answered; if it is refused, a story is over."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, TypeVar

from local.client import Refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from local.report import Report

    T = TypeVar("T")


class StoryOver(Exception):
    """A call failed that the rest of the story needs; the report has it."""


async def answered(report: Report, name: str, call: Callable[[], T]) -> tuple[T, float]:
    """The blocking client's answer, from a thread, and the milliseconds that it took.

    Raises StoryOver where it is refused, which is reported as a wrong value.
    """
    began = time.monotonic()
    try:
        answer = await asyncio.to_thread(call)
    except Refused as refused:
        came = refused.reason or refused.code.name
        told = {"answer": ("no error", refused)}
        report.row(name, f"refused: {came}", since(began), told)
        raise StoryOver from refused
    return answer, since(began)


async def refusal(call: Callable[[], object]) -> tuple[Refused | None, float]:
    """The error that a call is answered with, None for none, and the milliseconds that it took."""
    began = time.monotonic()
    try:
        await asyncio.to_thread(call)
    except Refused as refused:
        return refused, since(began)
    return None, since(began)


def since(began: float) -> float:
    """Milliseconds since that reading of the monotonic clock."""
    return 1000 * (time.monotonic() - began)
