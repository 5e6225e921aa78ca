"""Captured log records keep nothing alive that a test has left."""

from __future__ import annotations

import gc
import logging
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


class Held:
    """Stands for a connection that could not be established."""


def test_an_exception_that_is_logged_keeps_no_locals(caplog: pytest.LogCaptureFixture) -> None:
    """Neither its own nor those of the exception that it came from."""
    held: list[weakref.ref[Held]] = []

    def inner() -> None:
        local = Held()
        held.append(weakref.ref(local))
        raise TimeoutError

    def outer() -> None:
        local = Held()
        held.append(weakref.ref(local))
        try:
            inner()
        except TimeoutError as error:
            raise OSError("no answer") from error

    try:
        outer()
    except OSError as error:
        logging.getLogger(__name__).warning("failed: %s", error)
    gc.collect()
    assert caplog.records[-1].getMessage() == "failed: no answer"
    assert len(held) == 2
    assert [reference() for reference in held] == [None, None]
