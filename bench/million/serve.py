"""A replica of session_service as a process of its own, before a provider that answers at once.

It runs no passes, which would be measured with the calls beside them: a walk over 100,000 sessions
takes seconds. A scrape of its metrics always reads the database. `ROOST_DATABASE_URL` and the like
are those of session_service; the first line of its output has the addresses of the service and of
its metrics.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import uuid
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from roost.container.v1 import container_service_pb2 as pb
from session_service.cli.serve import fast_loop
from session_service.config import Config
from session_service.server.replica import serve

if TYPE_CHECKING:
    from collections.abc import Mapping

#: What a replica is given beside the address of its database.
ENVIRONMENT: Mapping[str, str] = {
    "ROOST_SESSION_LISTEN": "127.0.0.1:0",
    "ROOST_METRICS_LISTEN": "127.0.0.1:0",
    "ROOST_FLY_APP": "roost-local",
    "ROOST_DEFAULT_IMAGE": "roost/counter",
    "ROOST_LIVE_SESSIONS_PER_TENANT": "1000000",
    "ROOST_SWEEP": "off",
    "ROOST_SWEEP_INTERVAL": "86400",
    "ROOST_RECONCILE_INTERVAL": "3600",
    "ROOST_RETENTION_INTERVAL": "86400",
    "ROOST_LOG_LEVEL": "ERROR",
}


async def create(request: pb.CreateContainerRequest, context: object) -> pb.CreateContainerResponse:
    """A container that runs."""
    made = pb.Container(
        app=request.app or "roost-local",
        container_id=uuid.uuid4().hex[:14],
        name=request.name,
        state=pb.CONTAINER_STATE_STARTED,
        region="iad",
        labels=request.labels,
        host_reachable=True,
    )
    return pb.CreateContainerResponse(container=made)


async def wait(request: pb.WaitContainerRequest, context: object) -> pb.WaitContainerResponse:
    """It runs already."""
    return pb.WaitContainerResponse(state=pb.CONTAINER_STATE_STARTED)


async def execute(request: pb.ExecContainerRequest, context: object) -> pb.ExecContainerResponse:
    """The boot id, which is all that session_service asks for."""
    return pb.ExecContainerResponse(stdout=f"{uuid.uuid4()}\n")


def provider() -> grpc.GenericRpcHandler:
    """A container_service that creates containers; other calls are not implemented."""
    # Any: the handlers are of several messages.
    methods: dict[str, tuple[Any, Any]] = {
        "CreateContainer": (create, pb.CreateContainerRequest),
        "WaitContainer": (wait, pb.WaitContainerRequest),
        "ExecContainer": (execute, pb.ExecContainerRequest),
    }
    handlers: dict[str, Any] = {
        name: grpc.unary_unary_rpc_method_handler(
            answer,
            request_deserializer=request.FromString,
            response_serializer=lambda response: response.SerializeToString(),
        )
        for name, (answer, request) in methods.items()
    }
    return grpc.method_handlers_generic_handler("roost.container.v1.ContainerService", handlers)


async def _run() -> None:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((provider(),))
    checks = health.aio.HealthServicer()
    await checks.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    environment = {**os.environ, "ROOST_CONTAINER_TARGET": f"127.0.0.1:{port}"}
    config = replace(
        Config.from_env(environment), gauges_interval=timedelta(0), quiet=timedelta(days=1)
    )
    async with serve(config) as running:
        print(running.target, running.metrics_target, flush=True)
        # Until the process that began this one ends, or closes the pipe.
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    # As the command does: what is imported is never looked through for garbage.
    gc.freeze()
    with asyncio.Runner(loop_factory=fast_loop()) as runner:
        runner.run(_run())
    sys.exit(0)
