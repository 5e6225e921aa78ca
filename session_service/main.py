"""The composition root: builds the service from its configuration, runs it, and takes it down."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
import grpc.aio
import sqlalchemy.exc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from roost.session.v1 import session_service_pb2 as pb
from roost.session.v1 import session_service_pb2_grpc as rpc
from session_service import (
    agent_command,
    agent_service,
    background,
    checkpoint_service,
    claim_command,
    commands,
    import_command,
    logs,
    loops,
    points,
    policy_service,
    scrapes,
    stats_command,
    sweep_command,
    tier_command,
    wiring,
)
from session_service.config import Config, ConfigError, describe
from session_service.errors import StorageUnavailable
from session_service.health import Health
from session_service.meters import Meter
from session_service.metrics import Metrics, Standing
from session_service.rpc.interceptors import ErrorAnswer
from session_service.rpc.render import Renderer
from session_service.rpc.session_servicer import SessionServicer
from session_service.storage.database import Database
from session_service.storage.migrate import SchemaMismatch, check, upgrade

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence

    from session_service.background import Background
    from session_service.lifecycle.policies import Policies
    from session_service.lifecycle.takeover import Work

_log = logging.getLogger(__name__)

SERVICE = pb.DESCRIPTOR.services_by_name["SessionService"].full_name
#: Two servers on one port would share its connections without a word: a taken port is an error.
#: Messages stay below gRPC's own limit of 4 MiB, named here because the contract states it.
SERVER_OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", 4 * 1024 * 1024),
)
#: Commands that parse their own arguments.
COMMANDS: Mapping[str, Callable[[Sequence[str]], int]] = {
    "agent": agent_command.main,
    import_command.NAME: import_command.main,
    sweep_command.NAME: sweep_command.main,
    stats_command.NAME: stats_command.main,
    claim_command.NAME: claim_command.main,
    tier_command.NAME: tier_command.main,
}
#: What is said of an address that nothing can be served on.
NOT_OURS = "cannot be served on: is it taken, or not this machine's?"
#: How long to wait for a database that is on its way up, in s.
DATABASE_PATIENCE = 60.0


class PortTaken(Exception):
    """The address cannot be served on."""


@dataclass(frozen=True, slots=True)
class Running:
    """A service that takes calls: where, and its single-shots for whoever drives them."""

    target: str
    work: Work
    database: Database
    background: Background
    policies: Policies
    metrics_target: str = ""
    """Where metrics are served; empty where they are not."""


@asynccontextmanager
async def serve(config: Config) -> AsyncGenerator[Running]:
    """Run the service; at the end, finish the calls in flight within the grace and close all.

    Raises PortTaken, AddressTaken, StorageUnavailable where the database does not come up.
    """
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(
            Database(config.database_url, max_size=config.pool_size)
        )
        channel = await stack.enter_async_context(wiring.channel(config))
        ours = (
            SERVICE,
            policy_service.SERVICE,
            checkpoint_service.SERVICE,
            agent_service.SERVICE,
        )
        watch = Health(database, channel, ours)
        await watch.begin()
        metrics = Metrics() if config.metrics_listen else None
        meter = metrics or Meter()
        server = grpc.aio.server(interceptors=(ErrorAnswer(meter),), options=SERVER_OPTIONS)
        health_pb2_grpc.add_HealthServicer_to_server(watch.servicer, server)
        names = (*ours, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        port = bind(server, config.listen)

        await prepare(config)
        outside = await wiring.reach(stack, config, database, channel)
        ownership = wiring.own(config, database)
        wired = wiring.build(config, outside, ownership)
        renderer = Renderer(outside.previews, background.habits(config))
        servicer = SessionServicer(wired.cases, renderer, meter)
        rpc.add_SessionServiceServicer_to_server(servicer, server)
        await policy_service.add(stack, server, wired.policies)
        retention = outside.vault.retention
        await checkpoint_service.add(stack, server, wired.checkpoints, renderer, retention)
        end_streams = await agent_service.add(stack, server, config, database)
        told = ""
        if metrics is not None:
            metrics.tell(Standing(database, wired.turns))
            scraped = scrapes.serving(config.metrics_listen, metrics.render)
            told = await stack.enter_async_context(scraped)
        await server.start()
        # Closed in reverse: no new calls, calls in flight answered, then the work behind them.
        stack.push_async_callback(ownership.drain, config.grace)
        await background.run(stack, config, wired.background, database, outside.installation, meter)
        stack.push_async_callback(server.stop, config.grace)
        stack.callback(end_streams)
        stack.callback(outside.notices.stop)
        stack.push_async_callback(watch.servicer.enter_graceful_shutdown)
        checking = asyncio.create_task(watch.run(), name="health")
        stack.push_async_callback(loops.end, {checking})
        target = f"{config.listen.rpartition(':')[0]}:{port}"
        yield Running(target, wired.work, database, wired.background, wired.policies, told)


async def prepare(config: Config) -> None:
    """Bring the database up to date, or see that it is, waiting for one that is on its way up.

    Raises StorageUnavailable, and SchemaMismatch.
    """
    work = upgrade if config.migrate else check
    loop = asyncio.get_running_loop()
    until = loop.time() + DATABASE_PATIENCE
    while True:
        try:
            await asyncio.to_thread(work, config.database_url)
        except sqlalchemy.exc.OperationalError as error:
            if loop.time() > until:
                raise StorageUnavailable("the database does not answer") from error
            _log.warning("waiting for the database", extra={"action": "migrate"})
            await asyncio.sleep(0.5)
        else:
            return


def bind(server: grpc.aio.Server, listen: str) -> int:
    """Take the address; return the port. Raises PortTaken."""
    try:
        port = server.add_insecure_port(listen)
    except RuntimeError as error:
        raise PortTaken(listen) from error
    if not port:
        raise PortTaken(listen)
    return port


async def run(config: Config) -> None:
    """Serve until a signal says to stop; a second signal kills."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop(number: signal.Signals) -> None:
        stopping.set()
        # Before it is said: whoever reads that and sends a second signal means it.
        for each in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(each)
            signal.signal(each, signal.SIG_DFL)
        _log.info("stopping on %s", number.name, extra={"action": "stop"})

    async with serve(config) as running:
        for each in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(each, stop, each)
        _log.info("serving on %s", running.target, extra={"action": "serving", "config": config})
        if running.metrics_target:
            place = f"http://{running.metrics_target}{scrapes.PATH}"
            _log.info("metrics at %s", place, extra={"action": "metrics"})
        await stopping.wait()
    _log.info("stopped", extra={"action": "stopped"})


def main(argv: Sequence[str] | None = None) -> int:
    """Run the service, or one of its commands; return the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in COMMANDS:
        return COMMANDS[argv[0]](argv[1:])
    parser = argparse.ArgumentParser(
        prog="python -m session_service",
        description="Serves roost.session.v1.SessionService; PostgreSQL is its state.",
        epilog=describe(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "command",
        nargs="?",
        choices=("serve", "migrate", *COMMANDS),
        default="serve",
        help="serve (default); only bring the database up to date; or, each with a --help of its"
        " own: move agent sessions in and out; adopt an older platform's sessions; compare the"
        " provider's containers with the rows at once; tell the figures of what sessions did; bind"
        " a database that was moved; show or set a tenant's tier",
    )
    command = parser.parse_args(argv).command
    try:
        config = Config.from_env(os.environ)
        points.arm(os.environ)
        logs.configure(config.log_level)
    except (ConfigError, points.BadKillPoint) as error:
        return _failed(str(error), 2)
    try:
        if command == "migrate":
            upgrade(config.database_url)
            return 0
        with asyncio.Runner(loop_factory=fast_loop()) as runner:
            runner.run(run(config))
    except scrapes.AddressTaken as error:
        return _failed(f"ROOST_METRICS_LISTEN: {error} {NOT_OURS}", 2)
    except PortTaken as error:
        return _failed(f"ROOST_SESSION_LISTEN: {error} {NOT_OURS}", 2)
    except (StorageUnavailable, sqlalchemy.exc.OperationalError):
        return _failed(f"ROOST_DATABASE_URL: {commands.why_not(config.database_url)}", 1)
    except SchemaMismatch as error:
        return _failed(str(error), 1)
    except KeyboardInterrupt:
        return 130
    return 0


def _failed(message: str, status: int) -> int:
    print(f"session_service: {message}", file=sys.stderr)  # noqa: T201
    return status


def fast_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Uvloop's event loop where it is installed; None means asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
