"""Requests that no client of ours sends: a short run; `make fuzz` has the long one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.fuzz.requests import Fuzzer
from tests.fuzz.sending import Sender, send_all
from tests.grpc_edge.test_malformed import loud

if TYPE_CHECKING:
    from tests.grpc_edge.conftest import Server

#: They take four seconds of CPU, clients and servers together.
REQUESTS = 2_500
AT_ONCE = 16


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_no_request_is_an_internal_error(
    servers: tuple[Server, Server],
    caplog: pytest.LogCaptureFixture,
    request: pytest.FixtureRequest,
) -> None:
    """Nor an unknown one, nor a traceback. The seed of the run decides which are sent."""
    channels = {
        service.full_name: server.channel for server in servers for service in server.services
    }
    methods = [method for server in servers for method in server.methods]
    fuzzer = Fuzzer(request.config.getoption("randomly_seed"), methods)
    sender = Sender(channels)
    await send_all(fuzzer, sender, REQUESTS, AT_ONCE)
    assert sender.outcome.wrong == []
    assert loud(caplog) == []
    assert sender.outcome.count == REQUESTS
