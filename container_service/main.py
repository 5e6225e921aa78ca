"""The composition root: builds the service from its configuration, runs it, and takes it down."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from container_service import logs
from container_service.config import Config, ConfigError, describe
from container_service.fly.breaker import Tolerance
from container_service.fly.client import open_client
from container_service.fly.guest_http import open_http_state
from container_service.fly.weather import Weather
from container_service.health import Health
from container_service.hook_commands import CommandState
from container_service.interceptors import ErrorAnswer, RequestLog
from container_service.servicer import ContainerServicer
from container_service.transferring import Transferring
from roost.container.v1 import container_service_pb2 as pb
from roost.container.v1 import container_service_pb2_grpc as rpc

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from container_service.provider import StateChannel

log = logging.getLogger(__name__)

SERVICE = pb.DESCRIPTOR.services_by_name["ContainerService"].full_name

#: Two servers on one port would share its connections without a word: a taken port is an error.
#: Messages stay below gRPC's own limit of 4 MiB, named here because the contract states it.
SERVER_OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", 4 * 1024 * 1024),
)


class PortTaken(Exception):
    """The address cannot be served on."""


@dataclass(frozen=True, slots=True)
class Running:
    """A service that takes calls."""

    #: Where: `host:port`, the port that was really taken.
    target: str


@asynccontextmanager
async def serve(config: Config) -> AsyncGenerator[Running]:
    """Run the service; at the end, finish the calls in flight within the grace and close all."""
    async with AsyncExitStack() as stack:
        provider, volumes = await stack.enter_async_context(
            open_client(
                config.fly_base_url,
                config.fly_token,
                config.fly_rate_share,
                weather=_weather(config),
            )
        )
        http_state = await stack.enter_async_context(
            open_http_state(config.url_template, config.state_limit)
        )
        channels: dict[str, StateChannel] = {
            "http_path": http_state,
            "command": CommandState(provider, config.state_limit),
        }
        servicer = ContainerServicer(
            provider,
            volumes,
            Transferring(provider, channels, config.lag_window),
            config.fly_app,
            config.lag_window,
        )
        stack.push_async_callback(servicer.aclose)
        watch = Health(provider, config.fly_app, (SERVICE,))
        await watch.begin()

        # Outermost first: the log line tells the status that an error was turned into.
        server = grpc.aio.server(interceptors=(RequestLog(), ErrorAnswer()), options=SERVER_OPTIONS)
        rpc.add_ContainerServiceServicer_to_server(servicer, server)
        health_pb2_grpc.add_HealthServicer_to_server(watch.servicer, server)
        names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        port = bind(server, config.listen)
        await server.start()
        stack.push_async_callback(server.stop, config.grace)
        # Said before the server stops: load balancers then send no more calls.
        stack.push_async_callback(watch.servicer.enter_graceful_shutdown)
        checking = asyncio.create_task(watch.run(), name="health")
        stack.push_async_callback(cancel, checking)

        host = config.listen.rpartition(":")[0]
        yield Running(f"{host}:{port}")


def _weather(config: Config) -> Weather:
    tolerance = Tolerance(failures=config.fly_breaker_failures, longest=config.fly_breaker_longest)
    return Weather(config.fly_retry_ratio, tolerance)


def bind(server: grpc.aio.Server, listen: str) -> int:
    """Take the address; return the port. Raises PortTaken."""
    try:
        port = server.add_insecure_port(listen)
    except RuntimeError as error:
        raise PortTaken(listen) from error
    if not port:
        raise PortTaken(listen)
    return port


async def cancel(task: asyncio.Task[None]) -> None:
    """End a task and wait for its end."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def run(config: Config) -> None:
    """Serve until a signal says to stop; a second signal kills."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop(number: signal.Signals) -> None:
        # From here on the next signal kills at once, loop or no loop; one that came so close
        # behind that the loop has it already is raised again.
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_DFL)
        if stopping.is_set():
            signal.raise_signal(number)
        log.info("Stopping on %s", number.name, extra={"action": "stop"})
        stopping.set()

    async with serve(config) as running:
        for each in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(each, stop, each)
        log.info("Serving on %s", running.target, extra={"action": "serving", "config": config})
        await stopping.wait()
    log.info("Stopped", extra={"action": "stopped"})


def main(argv: Sequence[str] | None = None) -> int:
    """Run the service as a command; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m container_service",
        description="Serves roost.container.v1.ContainerService over the Fly Machines API.",
        epilog=describe(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args(argv)
    try:
        config = Config.from_env(os.environ)
        logs.configure(config.log_level)
        with asyncio.Runner(loop_factory=fast_loop()) as runner:
            runner.run(run(config))
    except ConfigError as error:
        print(f"container_service: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except PortTaken as error:
        print(  # noqa: T201
            f"container_service: ROOST_CONTAINER_LISTEN: {error} cannot be served on:"
            " is it taken, or not this machine's?",
            file=sys.stderr,
        )
        return 2
    return 0


def fast_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Uvloop's event loop where it is installed; None means asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
