"""What a replica counts of itself, and how things stand, as Prometheus reads it.

No label has values without bound: outcomes, rungs, reasons, methods, states. Counters are this
replica's own, and are summed over replicas; gauges of the database's rows are the installation's,
the same at every replica: take their maximum.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, Summary
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from session_service.domain.decision import load_attempts
from session_service.domain.keeping import Action
from session_service.domain.session import AttemptResult, Outcome, Rung
from session_service.domain.survey import Verdict
from session_service.errors import StorageUnavailable
from session_service.meters import Meter
from session_service.storage import ages

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from prometheus_client.metrics_core import Metric

    from session_service.domain.states import State
    from session_service.lifecycle.joining import Answer
    from session_service.lifecycle.keeper import Kept
    from session_service.lifecycle.sweeper import Swept
    from session_service.lifecycle.turns import Turns
    from session_service.storage.ages import Ages
    from session_service.storage.database import Database
    from session_service.vault.clearing import Cleared

_log = logging.getLogger(__name__)

#: Of a start's seconds: a reuse takes some ms, a resume less than a second, a create some.
BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
#: How a start came to its answer.
OWN, JOINED, REPLAYED = "own", "joined", "replayed"
#: The rows are looked at once in so many s at most, however often somebody asks.
LOOK_EVERY = 15.0
#: A scraper waits for 10 s: without the rows it is to have the rest in time.
LOOK_SECONDS = 5.0
PREFIX = "roost"


class Metrics(Meter):
    """Counts, and renders what it counted."""

    def __init__(self) -> None:
        self._standing: Standing | None = None
        self._registry = registry = CollectorRegistry()
        durations = Histogram(
            "start_duration_seconds",
            "Starts that were answered with an outcome, by how long their callers waited.",
            ("outcome", "how"),
            namespace=PREFIX,
            buckets=BUCKETS,
            registry=registry,
        )
        # Looked up once: by name, each time, would cost more than counting does.
        self._durations = {
            (outcome, how): durations.labels(outcome, how)
            for outcome in Outcome
            for how in (OWN, JOINED, REPLAYED)
        }
        attempts = Counter(
            "start_attempts",
            "Rungs of the ladder that starts tried, by how that went.",
            ("rung", "result"),
            namespace=PREFIX,
            registry=registry,
        )
        self._attempts = {
            (rung, result): attempts.labels(rung, result)
            for rung in Rung
            for result in AttemptResult
        }
        self._refusals = Counter(
            "refusals",
            "Calls that were answered with an error, by its reason; INTERNAL was not foreseen.",
            ("method", "reason"),
            namespace=PREFIX,
            registry=registry,
        )
        self._background(registry)
        ProcessCollector(registry=registry)

    def tell(self, standing: Standing) -> None:
        """Tell of that as well, from now on."""
        self._standing = standing
        self._registry.register(standing)

    def _background(self, registry: CollectorRegistry) -> None:
        actions = Counter(
            "keeper_actions",
            "What the keeper did for sessions that were due.",
            ("action",),
            namespace=PREFIX,
            registry=registry,
        )
        self._actions = {action: actions.labels(action) for action in Action}
        self._passes = Summary(
            "keeper_pass_seconds",
            "The keeper's passes, and how long they took.",
            namespace=PREFIX,
            registry=registry,
        )
        verdicts = Counter(
            "sweeper_verdicts",
            "What the provider's listings said of our containers.",
            ("verdict",),
            namespace=PREFIX,
            registry=registry,
        )
        self._verdicts = {verdict: verdicts.labels(verdict) for verdict in Verdict}
        self._sweeps, self._listed, self._destroyed, self._stopped, self._volumes = (
            Counter(name, text, namespace=PREFIX, registry=registry)
            for name, text in (
                ("sweeper_passes", "Passes of the sweeper over an app."),
                ("sweeper_listed_containers", "Containers in the listings of those passes."),
                ("sweeper_destroyed_containers", "Orphans that the sweeper destroyed."),
                ("sweeper_stopped_passes", "Passes with orphans that a guard let none destroy."),
                ("deleted_volumes", "Volumes that restores made, deleted since nobody needs them."),
            )
        )

    def started(self, answer: Answer, seconds: float) -> None:
        """A start was answered, so long after it came."""
        decision = answer.decision
        if decision.outcome is None:
            return
        how = REPLAYED if answer.replayed else JOINED if decision.joined else OWN
        self._durations[decision.outcome, how].observe(seconds)
        if how is OWN and decision.attempts != "[]":
            for attempt in load_attempts(decision.attempts):
                self._attempts[attempt.rung, attempt.result].inc()

    def refused(self, method: str, reason: str) -> None:
        """A call of the method, by its last name, was answered with an error."""
        self._refusals.labels(method, reason).inc()

    def kept(self, kept: Kept) -> None:
        """The keeper made a pass."""
        self._passes.observe(kept.seconds)
        for action, count in kept.actions.items():
            self._actions[action].inc(count)

    def cleared(self, cleared: Cleared) -> None:
        """Volumes that nobody needs were looked for."""
        self._volumes.inc(len(cleared.deleted))

    def swept(self, swept: list[Swept]) -> None:
        """The sweeper passed over apps."""
        for each in swept:
            self._sweeps.inc()
            self._listed.inc(each.listed)
            self._destroyed.inc(len(each.destroyed))
            self._stopped.inc(bool(each.stopped_because))
            for verdict, count in each.followed.items():
                self._verdicts[verdict].inc(count)

    async def render(self, accept: str) -> tuple[bytes, str]:
        """All of it, in the best form that `accept` names; and that form's content type."""
        if self._standing is not None:
            await self._standing.look()
        encode, content_type = choose_encoder(accept)
        # Some ms of work, which no call should wait for; and /proc is a file to asyncio.
        return await asyncio.to_thread(encode, self._registry), content_type


@dataclass(frozen=True, slots=True)
class _Seen:
    """What was seen when somebody asked; the rows' figures None where the database was away."""

    places: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    pool: Mapping[str, int] = field(default_factory=dict)
    ages: Ages | None = None
    live: Mapping[State, int] = field(default_factory=dict)


class Standing(Collector):
    """How things stand: looked at when somebody asks, on the event loop; then only told."""

    def __init__(self, database: Database, turns: Turns) -> None:
        self._database = database
        self._turns = turns
        self._seen = _Seen()
        self._looked = -LOOK_EVERY
        self._looking = asyncio.Lock()

    async def look(self) -> None:
        """Look, at the rows not more often than once in `LOOK_EVERY`."""
        async with self._looking:
            now = monotonic()
            seen, live = self._seen.ages, self._seen.live
            if now - self._looked >= LOOK_EVERY:
                try:
                    async with asyncio.timeout(LOOK_SECONDS):
                        seen = await ages.look(self._database)
                        live = await ages.live_by_state(self._database)
                except (StorageUnavailable, TimeoutError) as error:
                    _log.warning("metrics without rows: %s", error, extra={"action": "metrics"})
                    seen, live = None, {}
                self._looked = now
            self._seen = _Seen(self._places(), self._database.pool.get_stats(), seen, live)

    def _places(self) -> dict[str, tuple[int, int]]:
        """At work and waiting, creates of all apps together."""
        places = {"starts": (0, 0), "background": (0, 0), "creates": (0, 0)}
        for name, (at_work, waiting) in self._turns.figures.items():
            kind = name if name in places else "creates"
            places[kind] = (places[kind][0] + at_work, places[kind][1] + waiting)
        return places

    def collect(self) -> Iterable[Metric]:
        """What was seen last."""
        seen = self._seen
        for position, name, text in (
            (0, "transitions_at_work", "Transitions that have their turn at the provider."),
            (1, "transitions_waiting", "Transitions that wait for their turn at the provider."),
        ):
            places = {kind: figures[position] for kind, figures in seen.places.items()}
            yield _gauge(name, text, "place", places)
        idle = seen.pool.get("pool_available", 0)
        used = seen.pool.get("pool_size", 0) - idle
        connections = {"used": used, "idle": idle}
        yield _gauge("database_connections", "Connections to PostgreSQL.", "state", connections)
        waiting = seen.pool.get("requests_waiting", 0)
        yield _plain("database_waiting", "Who waits for a connection to PostgreSQL.", waiting)
        yield _plain(
            "database_up", "Whether PostgreSQL answered the last look.", seen.ages is not None
        )
        if seen.ages is not None:
            yield from _rows(seen.ages, seen.live)


def _rows(seen: Ages, live: Mapping[State, int]) -> Iterable[Metric]:
    by_state = {str(state): count for state, count in live.items()}
    yield _gauge("live_sessions", "Live sessions.", "state", by_state)
    if seen.oldest is not None:
        yield _plain(
            "oldest_live_session_age_seconds",
            "The age of the oldest live session.",
            seen.oldest.total_seconds(),
        )
    for name, text, value in (
        ("overaged_sessions", "Of the 10,000 oldest, those past max_lifetime.", seen.overaged),
        ("due_sessions", "Sessions that are due to be kept, up to 10,000.", seen.due),
        ("orphan_containers", "Containers without a session, up to 10,000.", seen.orphans),
    ):
        yield _plain(name, text, value)


def _plain(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"{PREFIX}_{name}", text, value=value)


def _gauge(name: str, text: str, label: str, values: Mapping[str, int]) -> Metric:
    family = GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=[label])
    for word, value in values.items():
        family.add_metric([word], value)
    return family
