"""The composition root: builds the service from its configuration, runs it and shuts it down."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2_grpc

from container_service import logs
from container_service.config import Config, ConfigError, check_names, describe
from container_service.containers.state_command import CommandStateChannel
from container_service.containers.state_transfer import StateTransfer
from container_service.fly.app_health import AppHealthRegistry
from container_service.fly.circuit_breaker import BreakerSettings
from container_service.fly.client import open_client
from container_service.fly.state_http import open_http_state_channel
from container_service.rpc.health import Health
from container_service.rpc.interceptors import ErrorStatus, RequestLog
from container_service.rpc.servicer import ContainerServicer
from grpc_edge import exposure, tls
from grpc_edge.binding import PortTaken, bind
from grpc_edge.certificates import CertificateError
from grpc_edge.departures import log_departures_as_debug
from grpc_edge.handlers import Layers
from grpc_edge.health_server import health_server
from grpc_edge.options import server_options
from grpc_edge.readers import Readers
from grpc_edge.reflection import add_reflection
from grpc_edge.signals import until_signal
from grpc_edge.stopping import GracefulStop
from roost.container.v1 import container_service_pb2 as pb
from roost.container.v1 import container_service_pb2_grpc as rpc

if TYPE_CHECKING:
    import signal
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

    from container_service.containers.provider import StateChannel

log = logging.getLogger(__name__)

SERVICE = pb.DESCRIPTOR.services_by_name["ContainerService"].full_name


@dataclass(frozen=True, slots=True)
class Running:
    """A running service."""

    target: str
    """Its address, `host:port`, with the actual port."""

    leave: Callable[[], Awaitable[None]]
    """Makes health say NOT_SERVING for good, while calls are served as before."""

    health_target: str = ""
    """The address of the health service alone; empty without one."""


@asynccontextmanager
async def serve(config: Config) -> AsyncGenerator[Running]:
    """Run the service. At the end, let calls in flight finish within the grace, then close all."""
    async with AsyncExitStack() as stack:
        provider, volumes = await stack.enter_async_context(
            open_client(
                config.fly_base_url,
                config.fly_token,
                config.fly_rate_share,
                health=_app_health(config),
            )
        )
        http_state = await stack.enter_async_context(
            open_http_state_channel(config.url_template, config.state_limit)
        )
        channels: dict[str, StateChannel] = {
            "http_path": http_state,
            "command": CommandStateChannel(provider, config.state_limit),
        }
        servicer = ContainerServicer(
            provider,
            volumes,
            StateTransfer(provider, channels, config.lag_window),
            config.fly_app,
            config.lag_window,
        )
        stack.push_async_callback(servicer.aclose)
        health_check = Health(provider, config.fly_app, (SERVICE,))
        await health_check.begin()

        log_departures_as_debug()
        # Outermost first: the log line contains the status, which ErrorStatus sets.
        graceful = GracefulStop()
        readers = Readers(config.reader_patience)
        layers = Layers(RequestLog(), readers, ErrorStatus(), graceful)
        server = grpc.aio.server(
            interceptors=(layers,), options=server_options(config.connection_age)
        )
        rpc.add_ContainerServiceServicer_to_server(servicer, server)
        health_pb2_grpc.add_HealthServicer_to_server(health_check.servicer, server)
        add_reflection(server, (SERVICE, health.SERVICE_NAME))
        credentials = await stack.enter_async_context(tls.server_credentials(config.tls))
        port = bind(server, config.listen, credentials, variable="ROOST_CONTAINER_LISTEN")
        health_target = await stack.enter_async_context(
            health_server(config.health_listen, health_check.servicer, layers)
        )
        await server.start()
        stack.push_async_callback(graceful.stop, server, config.grace)
        # Runs before the server stops, so that load balancers send no more calls.
        stack.push_async_callback(health_check.servicer.enter_graceful_shutdown)
        checking = asyncio.create_task(health_check.run(), name="health")
        stack.push_async_callback(cancel, checking)

        host = config.listen.rpartition(":")[0]
        leave = health_check.servicer.enter_graceful_shutdown
        yield Running(f"{host}:{port}", leave, health_target)


def _app_health(config: Config) -> AppHealthRegistry:
    settings = BreakerSettings(
        failures=config.fly_breaker_failures, longest_interval=config.fly_breaker_longest
    )
    return AppHealthRegistry(config.fly_retry_ratio, settings)


async def cancel(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait for its end."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def run(config: Config) -> None:
    """Serve until SIGTERM or SIGINT, and for `config.lame_duck` seconds more, which a second signal
    cuts short. Then calls in flight finish, and one more signal kills the process.
    """

    def told(number: signal.Signals) -> None:
        more = {"action": "stop", "lame_duck": config.lame_duck}
        log.info("Stopping on %s", number.name, extra=more)

    async with serve(config) as running:

        def ready() -> None:
            about = {"action": "serving", "config": config}
            log.info("Serving on %s", running.target, extra=about)

        await until_signal(running.leave, config.lame_duck, ready, told)
    log.info("Stopped", extra={"action": "stopped"})


def main(argv: Sequence[str] | None = None) -> int:
    """Run the service as a command; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m container_service",
        description="Serves roost.container.v1.ContainerService on top of the Fly Machines API.",
        epilog=describe(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args(argv)
    try:
        config = Config.from_env(os.environ)
        logs.configure(config.log_level)
        if names := check_names(os.environ):
            listed = ", ".join(names)
            log.warning("unknown variables are ignored: %s", listed, extra={"action": "configure"})
        exposure.admit(config.exposed, insecure=config.insecure)
        with asyncio.Runner(loop_factory=fast_loop()) as runner:
            runner.run(run(config))
    except (ConfigError, exposure.Exposed, CertificateError) as error:
        print(f"container_service: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except PortTaken as error:
        print(  # noqa: T201
            f"container_service: {error.variable}: cannot listen on {error}:"
            " the port is in use, or the address is not one of this machine's",
            file=sys.stderr,
        )
        return 2
    return 0


def fast_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The event loop of uvloop if it is installed; None stands for that of asyncio."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
