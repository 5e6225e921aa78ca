"""What runs behind the calls, in every replica: keeper, sweeper, janitor, each a loop."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from session_service import janitor, loops
from session_service.domain.keeping import Habits
from session_service.domain.survey import Caution
from session_service.lifecycle.discarding import Discarder
from session_service.lifecycle.following import Follower
from session_service.lifecycle.keeper import Keeper
from session_service.lifecycle.scheduling import Scheduling
from session_service.lifecycle.sweeper import Sweeper

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

    from session_service.config import Config
    from session_service.lifecycle.evidence import Looker
    from session_service.lifecycle.takeover import Work
    from session_service.meters import Meter
    from session_service.ports import Activities, Containers
    from session_service.storage.database import Database
    from session_service.storage.installation import Installation
    from session_service.vault.clearing import Clearing
    from session_service.vault.vault import Vault

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Background:
    """The single shots, for whoever drives them."""

    keeper: Keeper
    sweeper: Sweeper
    discarder: Discarder
    clearing: Clearing


def habits(config: Config) -> Habits:
    """How the keeper goes about it."""
    return Habits(config.idle_warning, config.abandoned_after, config.session_retention)


def caution(config: Config) -> Caution:
    """How sure the sweeper must be, and how much it may do."""
    return Caution(
        config.sweep_min_age, config.sweep_passes, config.sweep_limit, config.sweep_breaker
    )


def build(
    config: Config,
    database: Database,
    containers: Containers,
    activities: Activities,
    looker: Looker,
    work: Work,
    installation: Installation,
    vault: Vault,
) -> Background:
    """The single shots, wired."""
    scheduling = Scheduling(database, vault, config.start_budget)
    return Background(
        Keeper(database, work, activities, scheduling, habits(config), config.keeper_slots),
        Sweeper(
            database,
            containers,
            Follower(database, looker, work),
            installation,
            caution(config),
            config.lag_window,
        ),
        Discarder(database, containers, looker),
        vault.clearing,
    )


async def run(
    stack: AsyncExitStack,
    config: Config,
    background: Background,
    database: Database,
    installation: Installation,
    meter: Meter,
) -> None:
    """Run the loops for as long as the stack is open; `meter` hears of their passes.

    A copy of the database knows machines that are another's: it looks after its rows alone.
    """

    async def tidy() -> None:
        await janitor.tidy(database, config.event_retention, config.decision_retention)
        await janitor.watch(database)

    tidying = loops.running("janitor", tidy, every=config.janitor_interval.total_seconds())
    await stack.enter_async_context(tidying)

    async def sweep() -> None:
        swept = await background.sweeper.shot(
            config.app,
            config.sweep_interval,
            act=config.sweep == "act",
            look=config.sweep != "off",
        )
        meter.swept(swept)
        if installation.original:
            await background.discarder.shot()
        if config.sweep == "act":
            meter.cleared(await background.clearing.shot())

    await stack.enter_async_context(
        loops.running("sweeper", sweep, every=config.sweep_interval.total_seconds() / 2)
    )
    if not installation.original:
        _log.error(
            "this database is a copy: nothing is paused, ended or destroyed by itself here. If the "
            "machines are this one's now, run `python -m session_service claim-installation`",
            extra={"action": "installation"},
        )
        return

    async def keep() -> None:
        meter.kept(await background.keeper.shot())

    await stack.enter_async_context(
        loops.running("keeper", keep, every=config.keeper_interval.total_seconds())
    )
    stack.push_async_callback(background.keeper.close)
