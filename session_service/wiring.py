"""Which object gets which: builds the use cases and what runs behind them from a configuration."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING

import grpc.aio
import httpx
import uuid_utils.compat as uuids

from session_service import background
from session_service.checkpoints.going_back import GoingBack
from session_service.checkpoints.keeping import Keeping
from session_service.checkpoints.taking import Taking
from session_service.clients.activity import Activity
from session_service.clients.bucket import S3Bucket
from session_service.clients.containers import GrpcContainers
from session_service.clients.preview import Preview
from session_service.clients.states import GrpcStates, GrpcVolumes
from session_service.domain.policy import OnFingerprintChange, Persistence, Policy
from session_service.figures.stats import Stats
from session_service.lifecycle.choosing import Choosing
from session_service.lifecycle.climbing import Climber
from session_service.lifecycle.evidence import Looker
from session_service.lifecycle.holding import Holding
from session_service.lifecycle.intents import Defaults
from session_service.lifecycle.joining import Joining
from session_service.lifecycle.ownership import Ownership, Pace
from session_service.lifecycle.policies import Operator, Policies
from session_service.lifecycle.previewing import Previewing
from session_service.lifecycle.resting import Rester
from session_service.lifecycle.restoring import Restorer
from session_service.lifecycle.rests import Rests
from session_service.lifecycle.saving import Saving
from session_service.lifecycle.starts import Starts
from session_service.lifecycle.takeover import Work
from session_service.lifecycle.turns import Limits, Turns
from session_service.lifecycle.watching import Watching
from session_service.lookups import Lookups
from session_service.rpc.checkpoint_servicer import CheckpointCases
from session_service.rpc.session_servicer import UseCases
from session_service.storage import installation
from session_service.storage.notifications import Notices
from session_service.vault import vault as vaults
from session_service.vault.saving import Habits

if TYPE_CHECKING:
    import ssl
    from contextlib import AsyncExitStack

    from session_service.background import Background
    from session_service.config import Config
    from session_service.ports import Activities, Containers, Previews
    from session_service.storage.database import Database
    from session_service.storage.installation import Installation
    from session_service.vault.vault import Vault


#: A container takes some 260 bytes in a listing, so that gRPC's own limit of 4 MiB is reached with
#: some 16,000 in one app: from there on no listing would ever come.
CHANNEL_OPTIONS = (("grpc.max_receive_message_length", 256 * 1024 * 1024),)


@dataclass(frozen=True, slots=True)
class Outside:
    """What the use cases stand on."""

    database: Database
    notices: Notices
    containers: Containers
    previews: Previews
    activities: Activities
    installation: Installation
    vault: Vault


@dataclass(frozen=True, slots=True)
class Wired:
    """What answers calls, what carries transitions out, and what runs behind them."""

    cases: UseCases
    work: Work
    background: Background
    policies: Policies
    checkpoints: CheckpointCases
    turns: Turns


def channel(config: Config) -> grpc.aio.Channel:
    """A channel to container_service, on which a listing of a large app is no fault."""
    return grpc.aio.insecure_channel(config.container_target, options=CHANNEL_OPTIONS)


async def reach(
    stack: AsyncExitStack, config: Config, database: Database, channel: grpc.aio.Channel
) -> Outside:
    """Everything outside this process, for as long as the stack is open.

    Raises StorageUnavailable.
    """
    notices = Notices(config.database_url)
    await stack.enter_async_context(notices.listening())
    http = await stack.enter_async_context(
        httpx.AsyncClient(follow_redirects=False, trust_env=False, verify=_authorities())
    )
    previews, containers = Preview(config.url_template, http), GrpcContainers(channel)
    activities = Activity(previews, containers)
    installed = await installation.read(database)
    vault = vaults.build(
        database,
        GrpcStates(channel),
        GrpcVolumes(channel),
        S3Bucket(config.checkpoint_bucket, http) if config.checkpoint_bucket else None,
        Habits(
            f"roost/{installed.installation_id}",
            config.checkpoint_database_limit,
            config.lease,
            config.sweep_min_age,
        ),
        # What a copy of the database knows is another's to delete.
        deletes=installed.original,
    )
    return Outside(database, notices, containers, previews, activities, installed, vault)


@cache
def _authorities() -> ssl.SSLContext:
    """Who is believed over TLS; read once in a process, since it takes 30 ms."""
    return httpx.create_ssl_context(trust_env=False)


def own(config: Config, database: Database) -> Ownership:
    """Who carries this replica's transitions."""
    pace = Pace(lease=config.lease, renew_every=config.lease * 0.3, budget=config.start_budget)
    return Ownership(database, uuids.uuid7(), pace)


def default_policy(config: Config) -> Policy:
    """How sessions are kept where nothing else was set."""
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


def policies_of(config: Config, database: Database) -> Policies:
    """What is in force, and who sets it."""
    spec = {"image": config.default_image} if config.default_image else None
    operator = Operator(default_policy(config), config.tier, spec, config.live_sessions_per_tenant)
    # A start reads what is in force anew before each commit; this is longer than any goes on.
    return Policies(database, operator, 2 * config.start_budget + timedelta(minutes=1))


def build(config: Config, outside: Outside, ownership: Ownership) -> Wired:
    """The use cases, wired."""
    database, containers, previews = outside.database, outside.containers, outside.previews
    installed = outside.installation
    looker = Looker(database, containers, previews, installed.installation_id, config.lag_window)
    turns = Turns(limits(config))
    vault = outside.vault
    climber = Climber(
        database,
        containers,
        previews,
        looker,
        ownership,
        installed.installation_id,
        turns,
        Restorer(database, vault),
    )
    saving = Saving(containers, previews, outside.activities, vault)
    resting = Rester(
        database, containers, looker, config.lag_window, machine_lease(config.lease), turns, saving
    )
    work = Work(database, ownership, climber, resting)
    joining = Joining(database, outside.notices, work)
    defaults = Defaults(app=config.app, freshness=config.freshness_window)
    policies = policies_of(config, database)
    choosing = Choosing(database, config.choice_expiry)
    starts = Starts(database, looker, work, joining, defaults, turns, policies, choosing)
    checkpoints = CheckpointCases(
        Taking(database, vault, outside.notices, joining, work, config.start_budget),
        Keeping(database, vault.retention),
        GoingBack(database, starts, joining),
    )
    cases = UseCases(
        starts=starts,
        previewing=Previewing(database, looker, policies, choosing, config.freshness_window),
        rests=Rests(database, work, joining, policies),
        lookups=Lookups(database, background.habits(config)),
        holding=Holding(database),
        watching=Watching(database, outside.notices),
        stats=Stats(database),
    )
    behind = background.build(
        config, database, containers, outside.activities, looker, work, installed, vault
    )
    return Wired(cases, work, behind, policies, checkpoints, turns)


def limits(config: Config) -> Limits:
    """How much goes on at once, and how much may wait."""
    return Limits(
        starts=config.concurrent_starts,
        background=config.concurrent_background,
        creates=config.concurrent_creates,
        # The other connections are for who is past them.
        first_steps=max(1, config.pool_size * 3 // 4),
        length=config.queue_length,
        # Fly lets an app create one machine a second: what is behind these would come too late.
        creates_length=math.ceil(config.start_budget.total_seconds()),
    )


def machine_lease(lease: timedelta) -> timedelta:
    """How long a machine's lease lasts: somewhat longer than its owner's, in whole seconds.

    Whoever takes over a session waits it out; a request that comes later is refused by it.
    """
    return timedelta(seconds=math.ceil(lease.total_seconds() * 1.5))
