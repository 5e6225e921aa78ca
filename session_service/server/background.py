"""The background loops of every replica: retention, activity (the times that lists are ordered by),
figures, sweep (the inventory pass), reconcile (due).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from session_service import loops
from session_service.domain.inventory import Caution
from session_service.domain.next_action import Timings
from session_service.reconcile import retention
from session_service.reconcile.drift import Drift
from session_service.reconcile.due import DuePass
from session_service.reconcile.inventory import InventoryPass
from session_service.reconcile.scheduled_checkpoints import ScheduledCheckpoints
from session_service.stats.rollup import HOLD, RollUp
from session_service.storage import activity
from session_service.storage.session import activity as session_activity
from session_service.storage.session import gauges, live_counts

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

    from session_service.checkpoints.retention import VolumeDeletion
    from session_service.checkpoints.vault import Vault
    from session_service.config import Config
    from session_service.dispatch.dispatcher import Dispatcher
    from session_service.metrics.sink import MetricsSink
    from session_service.observe.discard import Discarder
    from session_service.observe.probe import Probe
    from session_service.ports import Activities, Containers
    from session_service.storage.database import Database
    from session_service.storage.installation import Installation

_log = logging.getLogger(__name__)

#: How often the changes of the numbers of live sessions are added up, in s. A start that checks a
#: quota reads those of this time.
LIVE_COUNTS_EVERY = 10.0
#: How often a replica looks whether a pass over the figures is due, in s.
FIGURES_EVERY = 15.0


@dataclass(frozen=True, slots=True)
class Background:
    """The passes. The loops repeat them; the sweep command and tests run single ones."""

    due_pass: DuePass
    inventory_pass: InventoryPass
    discarder: Discarder
    volume_deletion: VolumeDeletion


def timings(config: Config) -> Timings:
    """The times by which the next action of a session is decided."""
    return Timings(config.idle_warning, config.abandoned_after, config.session_retention)


def caution(config: Config) -> Caution:
    """The guards of an orphan that have a setting."""
    return Caution(
        config.sweep_min_age, config.sweep_passes, config.sweep_limit, config.sweep_breaker
    )


def build(
    config: Config,
    database: Database,
    containers: Containers,
    activities: Activities,
    probe: Probe,
    discarder: Discarder,
    work: Dispatcher,
    installation: Installation,
    vault: Vault,
) -> Background:
    """The passes with their parts."""
    scheduled = ScheduledCheckpoints(database, vault, config.start_budget)
    return Background(
        DuePass(database, work, activities, scheduled, timings(config), config.reconcile_slots),
        InventoryPass(
            database,
            containers,
            Drift(database, probe, work),
            installation,
            caution(config),
            config.lag_window,
            config.machine_lease,
        ),
        discarder,
        vault.volume_deletion,
    )


async def run(
    stack: AsyncExitStack,
    config: Config,
    background: Background,
    database: Database,
    installation: Installation,
    sink: MetricsSink,
) -> None:
    """Run the loops while the stack is open, and report their passes to `sink`.

    The rows of a copied database name machines that belong to the original's installation. A
    replica on a copy therefore runs only what changes rows alone, and sweeps that report: it
    pauses, ends and destroys nothing by itself.
    """
    running = partial(loops.running, late=sink.late, quiet=config.quiet.total_seconds())

    async def run_retention() -> None:
        await retention.run_pass(database, config.event_retention, config.decision_retention)
        await retention.log_gauges(database)

    every = config.retention_interval.total_seconds()
    await stack.enter_async_context(
        running("retention", run_retention, every=every, after=loops.AFTER_START)
    )

    await stack.enter_async_context(
        running(
            "activity",
            lambda: activity.walk_if_due(database, session_activity.SUBJECT, session_activity.WALK),
            every=activity.LOOK,
            after=loops.AFTER_START,
            late_after=activity.PERIOD.total_seconds(),
        )
    )
    await stack.enter_async_context(
        running(
            "live-counts",
            lambda: live_counts.run_pass(database),
            every=LIVE_COUNTS_EVERY,
            after=loops.AFTER_START,
        )
    )
    roll_up = RollUp(database, config.decision_retention)

    async def figures() -> None:
        await gauges.refresh(database)
        await roll_up.shot()

    await stack.enter_async_context(
        running(
            "figures",
            figures,
            every=FIGURES_EVERY,
            after=loops.AFTER_START,
            late_after=HOLD.total_seconds(),
        )
    )

    async def sweep() -> None:
        swept = await background.inventory_pass.shot(
            config.app,
            config.sweep_interval,
            act=config.sweep == "act",
            report=config.sweep != "off",
        )
        sink.swept(swept)
        if installation.original:
            await background.discarder.shot()
        if config.sweep == "act":
            sink.volumes_deleted(await background.volume_deletion.shot())

    await stack.enter_async_context(
        running(
            "sweep",
            sweep,
            every=config.sweep_interval.total_seconds() / 2,
            after=loops.AFTER_START,
            late_after=config.sweep_interval.total_seconds(),
        )
    )
    if not installation.original:
        _log.error(
            "this database is a copy: this replica pauses, ends and destroys nothing by itself. If "
            "the database was moved on purpose, run `python -m session_service claim-installation`",
            extra={"action": "installation"},
        )
        return

    async def reconcile() -> None:
        sink.reconciled(await background.due_pass.shot())

    await stack.enter_async_context(
        running(
            "reconcile",
            reconcile,
            every=config.reconcile_interval.total_seconds(),
        )
    )
    stack.push_async_callback(background.due_pass.close)
