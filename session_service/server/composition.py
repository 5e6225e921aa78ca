"""The composition root: builds the use cases and the background passes from a configuration."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING

import httpx
import uuid_utils.compat as uuids

from grpc_edge import tls
from session_service.admission.limiter import Limiter, Limits
from session_service.bring_down.checkpoint_first import CheckpointFirst
from session_service.bring_down.worker import BringDownWorker
from session_service.bring_up.restore import Restorer
from session_service.bring_up.runner import BringUpRunner
from session_service.checkpoints import vault as vaults
from session_service.checkpoints.write import CheckpointSettings
from session_service.clients.activity import Activity
from session_service.clients.bucket import S3Bucket
from session_service.clients.containers import GrpcContainers
from session_service.clients.preview import Preview
from session_service.clients.states import GrpcStates, GrpcVolumes
from session_service.dispatch.call import Driver
from session_service.dispatch.dispatcher import Dispatcher, Worker
from session_service.dispatch.wait import Waiter
from session_service.domain.policy import OnFingerprintChange, Persistence, Policy
from session_service.domain.states import Transition
from session_service.observe.discard import Discarder
from session_service.observe.probe import Probe
from session_service.policy.service import Operator, PolicyService
from session_service.rpc.checkpoint.servicer import CheckpointCases
from session_service.rpc.session.servicer import UseCases
from session_service.save.keep import Keep
from session_service.save.service import SaveService
from session_service.server import background
from session_service.sessions.holds import Holds
from session_service.sessions.lookup import Lookup
from session_service.sessions.watch import Watch
from session_service.start.choice import Choices
from session_service.start.facts import Defaults
from session_service.start.preview import Previewing
from session_service.start.restore_fork import RestoreForkService
from session_service.start.service import StartParts, StartService
from session_service.stats.service import Stats
from session_service.stop.service import StopService
from session_service.storage import installation
from session_service.storage.notifications import Notices
from session_service.transition.ownership import Ownership, Pace

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager, AsyncExitStack

    import grpc.aio

    from session_service.checkpoints.vault import Vault
    from session_service.config import Config
    from session_service.ports import Activities, Bucket, Containers, Previews
    from session_service.server.background import Background
    from session_service.storage.database import Database
    from session_service.storage.installation import Installation
    from session_service.storage.session.commit import Observer

    #: Makes a client of ContainerService on a channel.
    Connect = Callable[[grpc.aio.Channel], Containers]


#: A container takes about 260 bytes in a listing. With gRPC's default limit of 4 MiB, every listing
#: of an app with more than about 16,000 containers would fail.
CHANNEL_OPTIONS = (("grpc.max_receive_message_length", 256 * 1024 * 1024),)


@dataclass(frozen=True, slots=True)
class Outside:
    """Connections and stores outside this process, which the use cases need."""

    database: Database
    notices: Notices
    containers: Containers
    previews: Previews
    activities: Activities
    installation: Installation
    vault: Vault


@dataclass(frozen=True, slots=True)
class Wired:
    """The use cases, the workers of transitions, and the background passes."""

    cases: UseCases
    work: Dispatcher
    background: Background
    policies: PolicyService
    checkpoints: CheckpointCases
    limiter: Limiter


def channel(config: Config) -> AbstractAsyncContextManager[grpc.aio.Channel]:
    """A channel to container_service that takes the listing of a large app. Raises ConfigError if
    its address must not be called in plain text; entering it raises CertificateError.
    """
    config.check_target()
    return tls.channel(config.container_target, config.container_tls, CHANNEL_OPTIONS)


def bucket_of(config: Config) -> Bucket | None:
    """The bucket of large checkpoints; None if none is configured. Sends no request.

    Raises LibraryMissing.
    """
    return S3Bucket(config.checkpoint_bucket) if config.checkpoint_bucket else None


async def reach(
    stack: AsyncExitStack,
    config: Config,
    database: Database,
    channel: grpc.aio.Channel,
    bucket: Bucket | None,
    connect: Connect = GrpcContainers,
) -> Outside:
    """Open the connections to everything outside this process, until the stack closes.

    `connect` makes the client of ContainerService. Raises StorageUnavailable.
    """
    notices = Notices(config.direct_url)
    await stack.enter_async_context(notices.listening())
    http = await stack.enter_async_context(
        httpx.AsyncClient(follow_redirects=False, trust_env=False, verify=_authorities())
    )
    previews, containers = Preview(config.url_template, http), connect(channel)
    activities = Activity(previews, containers, config.activity_timeout)
    installed = await installation.read(database)
    vault = vaults.build(
        database,
        GrpcStates(channel),
        GrpcVolumes(channel),
        bucket,
        CheckpointSettings(
            f"roost/{installed.installation_id}",
            config.checkpoint_database_limit,
            config.lease,
            config.sweep_min_age,
        ),
        # The objects that a copy of the database names belong to the original.
        deletes=installed.original,
    )
    return Outside(database, notices, containers, previews, activities, installed, vault)


@cache
def _authorities() -> ssl.SSLContext:
    """The trusted certificate authorities. Read once per process: it takes 30 ms."""
    return httpx.create_ssl_context(trust_env=False)


def own(config: Config, database: Database) -> Ownership:
    """The ownership of the transitions that this replica carries out."""
    pace = Pace(lease=config.lease, renew_every=config.lease * 0.3, budget=config.start_budget)
    return Ownership(database, uuids.uuid7(), pace)


def default_policy(config: Config) -> Policy:
    """The operator's policy, for projects that set none."""
    return Policy(
        persistence=Persistence(config.persistence.upper()),
        on_fingerprint_change=OnFingerprintChange(config.on_fingerprint_change.upper()),
        idle_timeout=config.idle_timeout,
        deepen_after=config.deepen_after,
        expire_after=config.expire_after,
        checkpoint_after=config.checkpoint_after,
        grace_period=config.grace_period,
        checkpoint_every=config.checkpoint_every,
    )


def policies_of(config: Config, database: Database) -> PolicyService:
    """The policies in force, and the use cases that set them."""
    spec = {"image": config.default_image} if config.default_image else None
    operator = Operator(default_policy(config), config.tier, spec, config.live_sessions_per_tenant)
    # How long after a change live sessions are still updated. A start that read the policy before
    # the change ends within that time.
    return PolicyService(database, operator, 2 * config.start_budget + timedelta(minutes=1))


def build(
    config: Config, outside: Outside, ownership: Ownership, observer: Observer | None = None
) -> Wired:
    """The use cases and background passes with their parts. `observer` is told of the commits."""
    database, containers, previews = outside.database, outside.containers, outside.previews
    installed = outside.installation
    probe = Probe(database, containers, previews, installed.installation_id, config.lag_window)
    limiter = Limiter(limits(config))
    vault = outside.vault
    discarder = Discarder(database, containers, probe, config.machine_lease)
    bring_up = BringUpRunner(
        database,
        containers,
        previews,
        probe,
        ownership.terms,
        installed.installation_id,
        limiter,
        Restorer(database, vault),
        discarder,
    )
    checkpoint_first = CheckpointFirst(containers, previews, outside.activities, vault)
    bring_down = BringDownWorker(
        database,
        containers,
        probe,
        config.lag_window,
        config.machine_lease,
        limiter,
        checkpoint_first,
    )
    workers: dict[Transition, Worker] = {
        Transition.START: bring_up,
        Transition.PAUSE: bring_down,
        Transition.END: bring_down,
        Transition.PURGE: bring_down,
    }
    work = Dispatcher(database, ownership, workers, discarder, observer)
    waiter = Waiter(database, outside.notices, work, probe)
    driver = Driver(database, work.commit, waiter, observer=observer)
    defaults = Defaults(app=config.app, freshness=config.freshness_window)
    policies = policies_of(config, database)
    choices = Choices(database, config.choice_expiry)
    parts = StartParts(database, work, policies, choices, limiter, defaults)
    starts = StartService(parts, driver)
    checkpoints = CheckpointCases(
        SaveService(database, vault, outside.notices, waiter, config.start_budget),
        Keep(database, vault.retention),
        RestoreForkService(database, starts, limiter),
    )
    cases = UseCases(
        starts=starts,
        preview=Previewing(database, probe, policies, choices, config.freshness_window),
        stops=StopService(database, work, policies, driver),
        lookups=Lookup(database, background.timings(config)),
        holds=Holds(database),
        watch=Watch(database, outside.notices),
        stats=Stats(database),
    )
    passes = background.build(
        config, database, containers, outside.activities, probe, discarder, work, installed, vault
    )
    return Wired(cases, work, passes, policies, checkpoints, limiter)


def limits(config: Config) -> Limits:
    """The concurrency limits, and the lengths of their queues."""
    return Limits(
        starts=config.concurrent_starts,
        background=config.concurrent_background,
        creates=config.concurrent_creates,
        # The other connections serve transitions, which no longer hold a database slot.
        database_slots=max(1, config.pool_size * 3 // 4),
        length=config.queue_length,
        # Fly creates one machine a second in an app: a longer queue outlasts the start budget.
        creates_length=math.ceil(config.start_budget.total_seconds()),
    )
