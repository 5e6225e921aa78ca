"""The health service at an address of its own, for probes that show no certificate.

Kubernetes' gRPC probes can neither use TLS nor send credentials. This address answers them, in
plain text and beyond loopback too, and serves nothing else: whether a replica serves is no secret.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import grpc.aio
from grpc_health.v1 import health_pb2_grpc

from grpc_edge.binding import bind
from grpc_edge.options import server_options

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from grpc_health.v1 import health

    from grpc_edge.handlers import Layers

#: The variable of the address.
VARIABLE = "ROOST_HEALTH_LISTEN"


@asynccontextmanager
async def health_server(
    listen: str, servicer: health.aio.HealthServicer, layers: Layers
) -> AsyncGenerator[str]:
    """Serve grpc.health.v1 while the context is open; the address, `host:port`. Without an address
    nothing is served, and the result is empty.

    `layers` are those of the service's own server. Raises PortTaken.
    """
    if not listen:
        yield ""
        return
    interceptors = (layers.for_another_server(),)
    server = grpc.aio.server(interceptors=interceptors, options=server_options(0))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = bind(server, listen, variable=VARIABLE)
    await server.start()
    try:
        yield f"{listen.rpartition(':')[0]}:{port}"
    finally:
        await server.stop(None)
