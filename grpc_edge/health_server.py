"""The health service at an address of its own, for probes that show no certificate.

Kubernetes' gRPC probes can neither use TLS nor send credentials. This address answers them, in
plain text and beyond loopback too, and serves nothing else: whether a replica serves is no secret.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import SERVICE_NAME

from grpc_edge.binding import bind
from grpc_edge.options import server_options

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from grpc_health.v1 import health

    from grpc_edge.handlers import Layers

#: The variable of the address.
VARIABLE = "ROOST_HEALTH_LISTEN"


#: What a stranger can hold is little: connections end after so many seconds, a request has at most
#: so many bytes, and there are at most so many calls at once.
CONNECTION_AGE = 300.0
LIMITS = {
    "grpc.max_receive_message_length": 1024,
    "grpc.max_concurrent_streams": 8,
    "grpc.max_connection_age_grace_ms": 5_000,
}
CALLS = 100


def _checks(servicer: health.aio.HealthServicer) -> grpc.GenericRpcHandler:
    """Check, which answers at once. Watch keeps its request and a place among the watchers
    for as long as the client likes: on the main port, whose clients are known.
    """
    methods = {
        "Check": grpc.unary_unary_rpc_method_handler(
            servicer.Check,
            health_pb2.HealthCheckRequest.FromString,
            health_pb2.HealthCheckResponse.SerializeToString,
        ),
    }
    return grpc.method_handlers_generic_handler(SERVICE_NAME, methods)


@asynccontextmanager
async def health_server(
    listen: str, servicer: health.aio.HealthServicer, layers: Layers
) -> AsyncGenerator[str]:
    """Serve Check of grpc.health.v1 while the context is open; the address, `host:port`. Without
    an address nothing is served, and the result is empty.

    `layers` are those of the service's own server. Raises PortTaken.
    """
    if not listen:
        yield ""
        return
    server = grpc.aio.server(
        interceptors=(layers.for_another_server(),),
        options=tuple((dict(server_options(CONNECTION_AGE)) | LIMITS).items()),
        maximum_concurrent_rpcs=CALLS,
    )
    server.add_generic_rpc_handlers((_checks(servicer),))
    port = bind(server, listen, variable=VARIABLE)
    await server.start()
    try:
        yield f"{listen.rpartition(':')[0]}:{port}"
    finally:
        await server.stop(None)
