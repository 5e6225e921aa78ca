"""A client that goes away between two steps of gRPC's is no line that would wake somebody.

The moment cannot be chosen: of 10,000 requests of `make fuzz` one met it. What grpc.aio logs then
is logged here by hand.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from grpc._cython.cygrpc import ExecuteBatchError  # type: ignore[import-not-found]

from grpc_edge.departures import log_departures_as_debug
from tests.grpc_edge.test_malformed import loud

if TYPE_CHECKING:
    import pytest

    from tests.grpc_edge.conftest import Server

GRPC = logging.getLogger("grpc._cython.cygrpc")
TEXT = "ExecuteBatchError raised in core by servicer method [/a.A/B]"


async def test_an_answer_that_cannot_be_sent_is_no_error(
    servers: tuple[Server, Server], caplog: pytest.LogCaptureFixture
) -> None:
    """While a server of ours runs in this process."""
    assert servers
    GRPC.error(TEXT, exc_info=ExecuteBatchError('Failed "execute_batch"'))
    assert loud(caplog) == []


def test_at_debug_it_is_a_line(caplog: pytest.LogCaptureFixture) -> None:
    log_departures_as_debug()
    caplog.set_level(logging.DEBUG, GRPC.name)
    GRPC.error(TEXT, exc_info=ExecuteBatchError('Failed "execute_batch"'))
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("DEBUG", TEXT)
    ]


def test_any_other_error_of_grpc_stays_one(caplog: pytest.LogCaptureFixture) -> None:
    log_departures_as_debug()
    GRPC.error("Unexpected [ValueError] raised by servicer method", exc_info=ValueError("x"))
    GRPC.error("Something else")
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]
