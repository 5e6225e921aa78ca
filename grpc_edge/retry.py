"""How long a client waits before it calls again: for gRPC's own retry policies, in their header.

The retry policies of gRPC's libraries do not read google.rpc.RetryInfo. They read the trailing
metadata `grpc-retry-pushback-ms` (gRFC A6): a number of milliseconds, or -1 for "do not try again".
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from google.rpc import error_details_pb2

if TYPE_CHECKING:
    from google.rpc import status_pb2

PUSHBACK_HEADER = "grpc-retry-pushback-ms"
#: The same request would be refused again.
NEVER = "-1"


def pushback(status: status_pb2.Status) -> tuple[str, str]:
    """The trailing metadata that says the same as the status's RetryInfo; NEVER if it has none.

    The number is a whole one and at least 1: clients take any other text for NEVER.
    """
    retry = error_details_pb2.RetryInfo()
    for detail in status.details:
        if detail.Unpack(retry):
            milliseconds = retry.retry_delay.ToNanoseconds() / 1_000_000
            return PUSHBACK_HEADER, str(max(1, math.ceil(milliseconds)))
    return PUSHBACK_HEADER, NEVER
