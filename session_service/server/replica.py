"""One replica: opens its parts in order, serves, and closes the parts in reverse order.

The `add_` functions put a service onto the gRPC server, together with the loop that belongs to it.
"""

from __future__ import annotations

import asyncio
import logging
import math
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, TypeVar

import grpc
import psycopg
import sqlalchemy.exc
from grpc_health.v1 import health, health_pb2_grpc

from grpc_edge import tls
from grpc_edge.binding import bind
from grpc_edge.departures import log_departures_as_debug
from grpc_edge.handlers import Layers
from grpc_edge.health_server import health_server
from grpc_edge.options import server_options
from grpc_edge.readers import Readers
from grpc_edge.reflection import add_reflection
from grpc_edge.stopping import GracefulStop
from roost.session.v1 import (
    checkpoint_service_pb2,
    checkpoint_service_pb2_grpc,
    policy_service_pb2,
    policy_service_pb2_grpc,
    session_service_pb2,
    session_service_pb2_grpc,
)
from session_service import loops
from session_service.clients.containers import GrpcContainers
from session_service.errors import StorageUnavailable
from session_service.metrics import exporter
from session_service.metrics.sink import MetricsSink
from session_service.rpc.checkpoint.servicer import CheckpointServicer
from session_service.rpc.interceptors import ErrorInterceptor
from session_service.rpc.policy.servicer import PolicyServicer
from session_service.rpc.session.render import Renderer
from session_service.rpc.session.servicer import SessionServicer
from session_service.server import agent_service, background, composition
from session_service.server.health import Health
from session_service.storage import pooler, refusals
from session_service.storage.database import Database
from session_service.storage.revision import check, known, read, usable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from session_service.checkpoints.retention import Retention
    from session_service.config import Config
    from session_service.dispatch.dispatcher import Dispatcher
    from session_service.metrics.prometheus import Metrics
    from session_service.policy.service import PolicyService
    from session_service.rpc.checkpoint.servicer import CheckpointCases
    from session_service.rpc.session.servicer import UseCases
    from session_service.server.background import Background
    from session_service.server.composition import Connect


T = TypeVar("T")
SESSION = session_service_pb2.DESCRIPTOR.services_by_name["SessionService"].full_name
POLICY = policy_service_pb2.DESCRIPTOR.services_by_name["PolicyService"].full_name
CHECKPOINT = checkpoint_service_pb2.DESCRIPTOR.services_by_name["CheckpointService"].full_name
#: Interval of the loop over changed policies, in s. The call that changes a policy updates the live
#: sessions itself. The loop updates those that remain if its replica died before it had finished.
SPREAD_EVERY = 15.0
#: Interval of the loop over checkpoints whose writer is gone, and those past their retention, in s.
RETAIN_EVERY = 60.0


def add_sessions(
    server: grpc.aio.Server,
    cases: UseCases,
    renderer: Renderer,
    sink: MetricsSink,
    connection_age: float,
) -> None:
    """Serve SessionService."""
    servicer = SessionServicer(cases, renderer, sink, connection_age)
    session_service_pb2_grpc.add_SessionServiceServicer_to_server(servicer, server)


async def add_policies(
    stack: AsyncExitStack,
    server: grpc.aio.Server,
    policies: PolicyService,
    sink: MetricsSink,
    quiet: float,
) -> None:
    """Serve PolicyService. Its loop runs while the stack is open, after the first `quiet` s."""
    servicer = PolicyServicer(policies)
    policy_service_pb2_grpc.add_PolicyServiceServicer_to_server(servicer, server)
    spreading = loops.running(
        "policies",
        policies.propagate,
        every=SPREAD_EVERY,
        after=loops.AFTER_START,
        quiet=quiet,
        late=sink.late,
    )
    await stack.enter_async_context(spreading)


async def add_checkpoints(
    stack: AsyncExitStack,
    server: grpc.aio.Server,
    cases: CheckpointCases,
    renderer: Renderer,
    retention: Retention,
    sink: MetricsSink,
    quiet: float,
) -> None:
    """Serve CheckpointService. Its loop runs while the stack is open, but not in the first `quiet`
    s; closing the stack first waits for the checkpoints that calls are writing.
    """
    servicer = CheckpointServicer(cases, renderer)
    checkpoint_service_pb2_grpc.add_CheckpointServiceServicer_to_server(servicer, server)
    retaining = loops.running(
        "checkpoints",
        retention.shot,
        every=RETAIN_EVERY,
        after=loops.AFTER_START,
        quiet=quiet,
        late=sink.late,
    )
    await stack.enter_async_context(retaining)
    stack.push_async_callback(cases.save.drain)


_log = logging.getLogger(__name__)

#: How long to wait for a database that is starting, in s.
DATABASE_PATIENCE = 60.0
#: How often the log says why it still waits, in s.
TELL_EVERY = 30.0


@dataclass(frozen=True, slots=True)
class Running:
    """A replica that serves: its address, and the parts that tests drive directly."""

    target: str
    work: Dispatcher
    database: Database
    background: Background
    policies: PolicyService
    leave: Callable[[], Awaitable[None]]
    """Makes health say NOT_SERVING for good, while calls are served as before."""
    metrics_target: str = ""
    """The address of /metrics; empty if metrics are off."""
    health_target: str = ""
    """The address of the health service alone; empty without one."""


@asynccontextmanager
async def serve(config: Config, connect: Connect = GrpcContainers) -> AsyncGenerator[Running]:
    """Serve while the context is open. Its end lets calls in flight finish within `config.grace`.
    `connect` makes the client of ContainerService.

    The port is bound first, so that a wrong address fails at once. But the server starts and takes
    calls only when everything behind it is open. Closing runs in reverse, and the order matters.
    Health reports NOT_SERVING first, so that load balancers send no new calls. Then watch streams
    are ended: they would not end by themselves, and the server would wait for them for its whole
    grace. Then the server rejects new calls and waits for those in flight, which still need the
    transitions of this replica. Then the loops end, and after them the transitions that this
    replica owns finish, or give up their leases, in what is left of the grace. The connections,
    which all of these use, are closed last.

    Raises LibraryMissing, CertificateError, PortTaken, AddressTaken, SchemaMismatch, and
    StorageUnavailable if the database does not answer.
    """
    bucket = composition.bucket_of(config)
    async with AsyncExitStack() as stack:
        # First, because a wrong file ends the start.
        credentials = await stack.enter_async_context(tls.server_credentials(config.tls))
        channel = await stack.enter_async_context(composition.channel(config))
        database = await stack.enter_async_context(
            Database(config.database_url, max_size=config.pool_size, pooled=config.pooled)
        )
        ours = (SESSION, POLICY, CHECKPOINT, agent_service.SERVICE)
        checks = Health(database, channel, ours, config.health_interval)
        await checks.begin()
        metrics = counting(config) if config.metrics_listen else None
        sink = metrics or MetricsSink()
        log_departures_as_debug()
        graceful = GracefulStop()
        layers = Layers(Readers(config.reader_patience), ErrorInterceptor(sink), graceful)
        server = grpc.aio.server(
            interceptors=(layers,), options=server_options(config.connection_age)
        )
        health_pb2_grpc.add_HealthServicer_to_server(checks.servicer, server)
        add_reflection(server, (*ours, health.SERVICE_NAME))
        port = bind(server, config.listen, credentials, variable="ROOST_SESSION_LISTEN")
        # Before the database is waited for, so that a probe gets an answer in that time.
        probed = health_server(config.health_listen, checks.servicer, layers)
        health_target = await stack.enter_async_context(probed)

        await prepare(config)
        outside = await composition.reach(stack, config, database, channel, bucket, connect)
        ownership = composition.own(config, database)
        wired = composition.build(config, outside, ownership, metrics)
        renderer = Renderer(outside.previews, background.timings(config))
        add_sessions(server, wired.cases, renderer, sink, config.connection_age)
        quiet = config.quiet.total_seconds()
        await add_policies(stack, server, wired.policies, sink, quiet)
        retention = outside.vault.retention
        await add_checkpoints(stack, server, wired.checkpoints, renderer, retention, sink, quiet)
        end_streams = await agent_service.add(stack, server, config, database, late=sink.late)
        metrics_target = ""
        if metrics is not None:
            rows_every = config.gauges_interval.total_seconds()
            metrics.add_gauges(database, wired.limiter, rows_every)
            exporting = exporter.serving(config.metrics_listen, metrics.render)
            metrics_target = await stack.enter_async_context(exporting)
        await server.start()
        # Set when the stop begins.
        until = math.inf

        async def drain() -> None:
            await ownership.drain(min(config.grace, max(0.0, until - monotonic())))

        async def stop() -> None:
            nonlocal until
            until = monotonic() + config.grace

            def end_all_streams() -> None:
                outside.notices.stop()
                end_streams()

            await graceful.stop(server, config.grace, end_all_streams)

        stack.push_async_callback(drain)
        await background.run(stack, config, wired.background, database, outside.installation, sink)
        stack.push_async_callback(stop)
        stack.push_async_callback(checks.servicer.enter_graceful_shutdown)
        checking = asyncio.create_task(checks.run(), name="health")
        stack.push_async_callback(loops.end, {checking})
        target = f"{config.listen.rpartition(':')[0]}:{port}"
        leave = checks.servicer.enter_graceful_shutdown
        yield Running(
            target,
            wired.work,
            database,
            wired.background,
            wired.policies,
            leave,
            metrics_target,
            health_target,
        )


def counting(config: Config) -> Metrics:
    """The metrics sink that counts. Imported here: a replica without metrics does not need
    prometheus_client, which takes 1 MB.
    """
    from session_service.metrics.prometheus import Metrics

    return Metrics(insecure=bool(config.exposed))


async def prepare(config: Config) -> None:
    """Migrate the database, or check that its schema is current; check what leads to it. Waits for
    one that is starting or that is a standby, and says in the log why.

    Raises SchemaMismatch, DatabaseRefused at once, and StorageUnavailable after DATABASE_PATIENCE.
    """
    work = bring_up_to_date if config.migrate else check
    direct = config.direct_url
    await _patiently(config.direct_variable, lambda: asyncio.to_thread(work, direct))
    if not config.pooled:
        return
    lacking = await _patiently(
        "ROOST_DATABASE_URL", lambda: pooler.check_pooled(config.database_url, direct)
    )
    if lacking:
        _log.warning(
            "the pooler's connections have no %s: set them for the database's user "
            "(docs/production.md)",
            ", ".join(lacking),
            extra={"action": "migrate"},
        )


async def _patiently(variable: str, work: Callable[[], Awaitable[T]]) -> T:
    """The result of the work on the address that the variable has, repeated while that may help."""
    loop = asyncio.get_running_loop()
    until = loop.time() + DATABASE_PATIENCE
    tell = loop.time()
    while True:
        try:
            with refusals.of(variable):
                return await work()
        except (
            psycopg.OperationalError,
            sqlalchemy.exc.OperationalError,
            refusals.ReadOnlyDatabase,
        ) as error:
            read_only = isinstance(error, refusals.ReadOnlyDatabase)
            message = str(error) if read_only else refusals.said(error)
            if message and not read_only and refusals.is_final(error):
                raise refusals.DatabaseRefused(
                    f"{variable}: the database rejects the connection: {message}"
                ) from error
            why = message or refusals.SILENT
            if loop.time() > until:
                raise StorageUnavailable(f"the database cannot be used: {why}") from error
            if loop.time() >= tell:
                _log.warning("waiting for the database: %s", why, extra={"action": "migrate"})
                tell += TELL_EVERY
            await asyncio.sleep(0.5)


def bring_up_to_date(url: str) -> None:
    """Apply the missing migrations. Alembic is imported only if there are any: it takes CPU and
    memory that a replica otherwise never needs.

    Raises what `storage.migrate.upgrade` and `storage.revision.read` raise.
    """
    if usable(read(url), known()):
        return
    from session_service.storage.migrate import upgrade

    upgrade(url)
