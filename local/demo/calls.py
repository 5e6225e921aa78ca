"""The demo's calls: timed, run in a thread, and reported when they fail."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, TypeVar

from local.demo.session_client import CallFailed

if TYPE_CHECKING:
    from collections.abc import Callable

    from local.demo.report import Report

    T = TypeVar("T")


class ScenarioAborted(Exception):
    """A call failed whose result the scenario needs; the report has the failure."""


async def answered(report: Report, name: str, call: Callable[[], T]) -> tuple[T, float]:
    """Run a call of the blocking client in a thread; return its answer and the milliseconds.

    A failed call is reported as a wrong value and raises ScenarioAborted.
    """
    began = time.monotonic()
    try:
        answer = await asyncio.to_thread(call)
    except CallFailed as error:
        came = error.reason or error.code.name
        report.row(name, f"error: {came}", since(began), {"answer": ("no error", error)})
        raise ScenarioAborted from error
    return answer, since(began)


async def failure(call: Callable[[], object]) -> tuple[CallFailed | None, float]:
    """Run a call that should fail; return its error, or None, and the milliseconds."""
    began = time.monotonic()
    try:
        await asyncio.to_thread(call)
    except CallFailed as error:
        return error, since(began)
    return None, since(began)


def since(began: float) -> float:
    """Milliseconds since `began`, a reading of the monotonic clock."""
    return 1000 * (time.monotonic() - began)
