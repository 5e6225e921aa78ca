"""The metrics sink that counts, and the gauges, in the forms that Prometheus reads.

Every label has a small set of values: outcomes, rungs, reasons, methods, states. Counters belong to
this replica: sum them over replicas. Gauges of the database's rows describe the whole installation,
and every replica serves the same ones: take their maximum.
"""

from __future__ import annotations

import asyncio
import logging
import math
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    Summary,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from session_service.domain.decision import load_attempts
from session_service.domain.inventory import Verdict
from session_service.domain.next_action import Action
from session_service.domain.plans import Choice
from session_service.domain.session import AttemptResult, EndReason, Outcome, Rung
from session_service.errors import StorageUnavailable
from session_service.metrics.sink import MetricsSink
from session_service.storage.session import gauges as session_gauges
from session_service.storage.session.change import Change, Now

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from prometheus_client.metrics_core import Metric

    from session_service.admission.limiter import Limiter
    from session_service.checkpoints.retention import DeletedVolumes
    from session_service.domain.session import Session
    from session_service.reconcile.due import DueCounts
    from session_service.reconcile.inventory import InventoryCounts
    from session_service.storage.database import Database
    from session_service.storage.session.commit import Commit, Committed
    from session_service.storage.session.gauges import Gauges
    from session_service.transition.decision_record import Answer

_log = logging.getLogger(__name__)

#: In s. A reuse takes a few ms, a resume less than a second, a create a few seconds.
BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
#: How a start came to its answer.
OWN, JOINED, REPLAYED = "own", "joined", "replayed"
#: Who made a choice.
USER, PREFERENCE = "user", "preference"
#: How long a scrape waits for the rows, in s. Prometheus gives up after 10 s: a database that hangs
#: must not cost it the replica's own counters.
ROWS_TIMEOUT = 5.0
PREFIX = "roost"
#: The background loops that report late passes.
LOOPS = (
    *("activity", "checkpoints", "figures", "live-counts", "policies", "reconcile", "retention"),
    *("sweep", "agent-activity", "agent-figures", "agent-index", "agent-retention", "agent-roles"),
)


class Metrics(MetricsSink):
    """Counts what is reported, and renders the counters and gauges."""

    def __init__(self, *, insecure: bool = False) -> None:
        """`insecure`: whether the service is open beyond loopback because a setting allows it."""
        self._gauges: GaugeCollector | None = None
        self._registry = registry = CollectorRegistry()
        Gauge(
            "insecure",
            "1 if ROOST_INSECURE lets this replica serve or call beyond loopback without"
            " certificates, else 0.",
            namespace=PREFIX,
            registry=registry,
        ).set(insecure)
        durations = Histogram(
            "start_duration_seconds",
            "Time that callers waited for starts that were answered with an outcome.",
            ("outcome", "how"),
            namespace=PREFIX,
            buckets=BUCKETS,
            registry=registry,
        )
        # The children are looked up once: a look-up by label for each call would cost more than
        # the counting itself.
        self._durations = {
            (outcome, how): durations.labels(outcome, how)
            for outcome in Outcome
            for how in (OWN, JOINED, REPLAYED)
        }
        self._outcomes(registry)
        self._refusals = Counter(
            "refusals",
            "Calls that were answered with an error, by reason; INTERNAL is a fault in Roost.",
            ("method", "reason"),
            namespace=PREFIX,
            registry=registry,
        )
        self._background(registry)
        ProcessCollector(registry=registry)

    def add_gauges(self, database: Database, limiter: Limiter, rows_every: float) -> None:
        """Serve the gauges beside the counters. `rows_every` is the least time between two reads of
        the rows, in s.
        """
        self._gauges = GaugeCollector(database, limiter, rows_every)
        self._registry.register(self._gauges)

    def _outcomes(self, registry: CollectorRegistry) -> None:
        attempts = Counter(
            "start_attempts",
            "Rungs of the ladder that were tried to bring sessions up, by result.",
            ("rung", "result"),
            namespace=PREFIX,
            registry=registry,
        )
        self._attempts = {
            (rung, result): attempts.labels(rung, result)
            for rung in Rung
            for result in AttemptResult
        }
        lifetimes = Summary(
            "session_lifetime_seconds",
            "Lifetimes of sessions that ended after they had come up.",
            ("reason",),
            namespace=PREFIX,
            registry=registry,
        )
        self._lifetimes = {reason: lifetimes.labels(reason) for reason in EndReason}
        choices = Counter(
            "choices",
            "What users chose, when they were asked (user) or by a saved preference.",
            ("choice", "source"),
            namespace=PREFIX,
            registry=registry,
        )
        self._choices = {
            (choice, source): choices.labels(choice, source)
            for choice in Choice
            for source in (USER, PREFERENCE)
        }

    def _background(self, registry: CollectorRegistry) -> None:
        actions = Counter(
            "reconcile_actions",
            "Due actions that the reconciler carried out.",
            ("action",),
            namespace=PREFIX,
            registry=registry,
        )
        self._actions = {action: actions.labels(action) for action in Action}
        self._passes = Summary(
            "reconcile_pass_seconds",
            "Duration of the reconciler's passes over due sessions.",
            namespace=PREFIX,
            registry=registry,
        )
        self._late = Counter(
            "late_passes",
            "Intervals at whose end the pass of a background loop that began before still ran.",
            ("loop",),
            namespace=PREFIX,
            registry=registry,
        )
        for name in LOOPS:
            # Exported as 0: an alert on its increase sees the first late pass too.
            self._late.labels(name)
        verdicts = Counter(
            "sweep_verdicts",
            "Verdicts on containers with a row, from the provider's listings.",
            ("verdict",),
            namespace=PREFIX,
            registry=registry,
        )
        self._verdicts = {verdict: verdicts.labels(verdict) for verdict in Verdict}
        self._sweeps, self._listed, self._destroyed, self._stopped, self._volumes = (
            Counter(name, text, namespace=PREFIX, registry=registry)
            for name, text in (
                ("sweep_passes", "Inventory passes over an app."),
                ("sweep_listed_containers", "Containers in the listings of those passes."),
                ("sweep_destroyed_containers", "Orphans that those passes destroyed."),
                ("sweep_stopped_passes", "Passes with orphans, none destroyed because of a guard."),
                ("deleted_volumes", "Deleted volumes that restores made and no session needs."),
            )
        )

    def started(self, answer: Answer, seconds: float) -> None:
        """A start was answered, `seconds` after the call came in."""
        decision = answer.decision
        if decision.outcome is None:
            return
        how = REPLAYED if answer.replayed else JOINED if decision.joined else OWN
        self._durations[decision.outcome, how].observe(seconds)

    def committed(self, wanted: Commit, done: Committed) -> None:
        """The intent or the outcome of a transition, or an answer, was committed."""
        if wanted.choice is not None:
            source = PREFERENCE if wanted.choice.token_hash is None else USER
            self._choices[wanted.choice.choice, source].inc()
        for write in wanted.writes:
            if not isinstance(write, Change):
                continue
            attempts = write.decision.get("attempts") if write.decision_id is not None else None
            if isinstance(attempts, str):
                for attempt in load_attempts(attempts):
                    self._attempts[attempt.rung, attempt.result].inc()
            # A session whose container was woken ends again, with the time of its first end.
            if write.end and isinstance(write.session.get("end_time"), Now):
                self._ended(done.session(write.session_id))

    def _ended(self, session: Session) -> None:
        if session.start_time is not None and session.end_time and session.end_reason:
            lifetime = session.end_time - session.create_time
            self._lifetimes[session.end_reason].observe(lifetime.total_seconds())

    def refused(self, method: str, reason: str) -> None:
        """A call was answered with an error. `method` is the last part of its name."""
        self._refusals.labels(method, reason).inc()

    def reconciled(self, counts: DueCounts) -> None:
        """The reconciler made a pass over the sessions with a due action."""
        self._passes.observe(counts.seconds)
        for action, count in counts.actions.items():
            self._actions[action].inc(count)

    def late(self, name: str) -> None:
        """A pass of this background loop still runs after another of its intervals."""
        self._late.labels(name).inc()

    def volumes_deleted(self, volumes: DeletedVolumes) -> None:
        """A pass deleted volumes that no session needs."""
        self._volumes.inc(len(volumes.deleted))

    def swept(self, swept: list[InventoryCounts]) -> None:
        """The inventory pass compared the listings of some apps with the rows."""
        for each in swept:
            self._sweeps.inc()
            self._listed.inc(each.listed)
            self._destroyed.inc(len(each.destroyed))
            self._stopped.inc(bool(each.stopped_because))
            for verdict, count in each.verdicts.items():
                self._verdicts[verdict].inc(count)

    async def render(self, accept: str) -> tuple[bytes, str]:
        """All metrics in the best form that the Accept header names, and its content type."""
        if self._gauges is not None:
            await self._gauges.refresh()
        encode, content_type = choose_encoder(accept)
        # In a thread: it takes some ms, and ProcessCollector reads files in /proc.
        return await asyncio.to_thread(encode, self._registry), content_type


@dataclass(frozen=True, slots=True)
class _Observed:
    """What the gauges show. `rows` is None while the database does not answer."""

    limits: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Running and waiting transitions, by concurrency limit."""
    pool: Mapping[str, int] = field(default_factory=dict)
    rows: Gauges | None = None


class GaugeCollector(Collector):
    """Gauges of the queue, the connection pool and the rows.

    prometheus_client calls `collect` from a thread and cannot await. So each scrape first awaits
    `refresh` on the event loop, and `collect` only shows what that observed.
    """

    def __init__(self, database: Database, turns: Limiter, rows_every: float) -> None:
        """`rows_every` is the least time between two reads of the rows, in s."""
        self._database = database
        self._turns = turns
        self._observed = _Observed()
        self._rows_every = rows_every
        self._rows_read = -math.inf
        self._refreshing = asyncio.Lock()

    async def refresh(self) -> None:
        """Observe all gauges; keep the rows' values if they are younger than `rows_every`."""
        async with self._refreshing:
            now = monotonic()
            rows = self._observed.rows
            if now - self._rows_read >= self._rows_every:
                try:
                    async with asyncio.timeout(ROWS_TIMEOUT):
                        rows = await session_gauges.read(self._database)
                except (StorageUnavailable, TimeoutError) as error:
                    _log.warning("metrics without rows: %s", error, extra={"action": "metrics"})
                    rows = None
                self._rows_read = now
            stats = self._database.pool.get_stats()
            self._observed = _Observed(self._limits(), stats, rows)

    def _limits(self) -> dict[str, tuple[int, int]]:
        """Running and waiting transitions by limit; the create limits of all apps are one sum."""
        limits = {"starts": (0, 0), "background": (0, 0), "creates": (0, 0)}
        for name, (running, waiting) in self._turns.figures.items():
            limit = name if name in limits else "creates"
            limits[limit] = (limits[limit][0] + running, limits[limit][1] + waiting)
        return limits

    def collect(self) -> Iterable[Metric]:
        """What the last `refresh` observed."""
        observed = self._observed
        for position, name, text in (
            (0, "transitions_running", "Transitions that run, by concurrency limit."),
            (1, "transitions_waiting", "Transitions that wait for a concurrency limit."),
        ):
            counts = {limit: figures[position] for limit, figures in observed.limits.items()}
            yield _gauge(name, text, "limit", counts)
        idle = observed.pool.get("pool_available", 0)
        used = observed.pool.get("pool_size", 0) - idle
        connections = {"used": used, "idle": idle}
        yield _gauge("database_connections", "Connections to PostgreSQL.", "state", connections)
        waiting = observed.pool.get("requests_waiting", 0)
        yield _plain("database_waiting", "Requests that wait for a connection.", waiting)
        up = observed.rows is not None
        yield _plain("database_up", "Whether PostgreSQL answered the last read.", up)
        if observed.rows is not None:
            yield from _rows(observed.rows)


def _rows(rows: Gauges) -> Iterable[Metric]:
    by_state = {str(state): count for state, count in rows.live.items()}
    yield _gauge("live_sessions", "Live sessions.", "state", by_state)
    yield _plain(
        "live_sessions_count_age_seconds",
        "How old the counts of live and of overaged sessions were when they were read.",
        rows.age.total_seconds(),
    )
    if rows.oldest is not None:
        yield _plain(
            "oldest_live_session_age_seconds",
            "The age of the oldest live session.",
            rows.oldest.total_seconds(),
        )
    for name, text, value in (
        (
            "overaged_sessions",
            "Sessions past max_lifetime, among the 10,000 oldest.",
            rows.overaged,
        ),
        ("due_sessions", "Sessions with a due action, up to 10,000.", rows.due),
        ("orphan_containers", "Containers without a session, up to 10,000.", rows.orphans),
    ):
        yield _plain(name, text, value)


def _plain(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"{PREFIX}_{name}", text, value=value)


def _gauge(name: str, text: str, label: str, values: Mapping[str, int]) -> Metric:
    family = GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=[label])
    for word, value in values.items():
        family.add_metric([word], value)
    return family
