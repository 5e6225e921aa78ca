"""The settings and their defaults, as one frozen value."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from grpc_edge import exposure
from grpc_edge.certificates import Files, server_files
from session_service.config.variables import (
    CONTAINER_TLS_VARIABLES,
    VARIABLES,
    ConfigError,
    check_names,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from session_service.clients.bucket import BucketAddress


@dataclass(frozen=True, slots=True)
class Config:
    """How the service runs. `variables.VARIABLES` names the variable that sets a field."""

    database_url: str = field(repr=False)
    """PostgreSQL's address; not in the repr, because it may hold a password."""

    database_direct_url: str = field(default="", repr=False)
    """PostgreSQL's own address, if `database_url` is that of a pooler that pools transactions."""

    listen: str = "127.0.0.1:50051"
    """Address to serve on, host:port; port 0 takes a free one."""

    container_target: str = "127.0.0.1:50052"
    """Address of container_service."""

    health_listen: str = ""
    """The address that serves the health service alone, in plain text; empty: none."""

    tls_cert: str = ""
    """The file of the server's certificate; empty: plain text."""

    tls_key: str = ""
    """The file of the certificate's private key."""

    tls_client_ca: str = ""
    """The file of the authorities that sign clients' certificates; empty: clients need none."""

    container_tls_ca: str = ""
    """The file of the authorities that sign container_service's certificate; empty: it is called in
    plain text."""

    container_tls_cert: str = ""
    """The file of the certificate that container_service is shown."""

    container_tls_key: str = ""
    """The file of that certificate's private key."""

    insecure: bool = False
    """Whether to serve, and to call container_service, beyond loopback without certificates."""

    app: str = ""
    """The provider's app that containers are created in; empty: container_service's own."""

    url_template: str = ""
    """URL of a container's preview, with {container_id} and {app}; empty: not probed."""

    default_image: str = ""
    """The image of starts that give no spec. If it is empty, a start that has to create a container
    must give a spec."""

    metrics_listen: str = ""
    """Address that serves /metrics, host:port; empty: metrics are off."""

    migrate: bool = True
    """Whether to bring the database up to date at start."""

    pool_size: int = 16
    """The largest number of connections to PostgreSQL at once."""

    lag_window: timedelta = timedelta(seconds=5)
    """How long the provider's reads may lag behind its writes."""

    freshness_window: timedelta = timedelta(seconds=10)
    """How long a probe of a running container stays valid; within it a start makes no provider
    call."""

    lease: timedelta = timedelta(seconds=10)
    """How long the owner of a transition may be silent before another replica takes over."""

    start_budget: timedelta = timedelta(seconds=120)
    """How long a transition may take."""

    concurrent_starts: int = 64
    """Transitions with a waiting caller that a replica runs at once."""

    concurrent_background: int = 16
    """Background transitions, such as idle pauses, that a replica runs at once, in addition."""

    concurrent_creates: int = 4
    """Create calls that a replica has under way at once in each app."""

    queue_length: int = 1024
    """Transitions that may queue in a replica."""

    live_sessions_per_tenant: int = 0
    """The largest number of live sessions of a tenant, paused ones included; 0: only the tier's
    limit."""

    persistence: str = "hibernate"
    """Persistence of projects that set none."""

    on_fingerprint_change: str = "allow"
    """Effect of a changed spec in projects that set none."""

    tier: str = "paid"
    """Tier of tenants that were given none; paid has no caps."""

    choice_expiry: timedelta = timedelta(minutes=10)
    """How long a choice that was offered to a user (persistence `ask`) stays valid."""

    grace_period: timedelta = timedelta(minutes=10)
    """How long an ended session can be undeleted."""

    idle_timeout: timedelta = timedelta(minutes=30)
    """How long a session may be without activity before it is paused."""

    idle_warning: timedelta = timedelta(minutes=1)
    """How long before an idle pause the watchers of the session are warned."""

    deepen_after: timedelta = timedelta(hours=24)
    """How long a paused session stays suspended before its container is stopped."""

    expire_after: timedelta = timedelta(days=30)
    """How long a paused session stays stopped before it is ended."""

    checkpoint_after: timedelta = timedelta(0)
    """How long a paused session keeps its container; then its state is saved and the container
    destroyed, if the application hands its state out. 0: never."""

    checkpoint_every: timedelta = timedelta(0)
    """How long between two scheduled checkpoints of a running session; 0: never."""

    abandoned_after: timedelta = timedelta(minutes=2)
    """How long a failed first start may be retried before its session is removed."""

    session_retention: timedelta = timedelta(days=30)
    """How long the rows of a purged session are kept."""

    decision_retention: timedelta = timedelta(days=90)
    """How long decisions are kept; statistics reach no further back."""

    event_retention: timedelta = timedelta(days=7)
    """How long events are kept for WatchSession."""

    reconcile_interval: timedelta = timedelta(seconds=2)
    """The time between two passes over sessions with a due action."""

    reconcile_slots: int = 16
    """Due sessions that a replica works on at once."""

    sweep: str = "act"
    """What to do with containers that no session has: act, report, or off."""

    sweep_interval: timedelta = timedelta(seconds=30)
    """The time between two comparisons of the provider's listing with the rows. All replicas
    together make one comparison in this time."""

    sweep_min_age: timedelta = timedelta(minutes=10)
    """How old an orphaned container, or a volume that no session needs, must be before it is
    destroyed."""

    sweep_passes: int = 3
    """Passes in a row that must see an orphan before it is destroyed."""

    sweep_limit: int = 5
    """The largest number of orphans that one pass destroys; 0: none."""

    sweep_breaker: int = 20
    """If there are more orphans than this at once, something is probably wrong, and the pass
    destroys none of them."""

    checkpoint_database_limit: int = 16 * 1024 * 1024
    """The largest checkpoint that PostgreSQL stores, in bytes, compressed; larger ones go to the
    bucket."""

    checkpoint_bucket: BucketAddress | None = None
    """The bucket of larger checkpoints; None: they are refused."""

    agent_idle_timeout: timedelta = timedelta(hours=1)
    """How long an agent session may be without a turn, unless it sets its own."""

    agent_retention: timedelta = timedelta(days=30)
    """How long an expired or ended agent session can be revived; after that it is purged."""

    retention_interval: timedelta = timedelta(minutes=15)
    """The time between two passes that delete rows past their retention."""

    search_language: str = "english"
    """PostgreSQL's text search configuration. Changing it indexes all turns again."""

    connection_age: float = 1800.0
    """Seconds after which a connection takes no new calls; 0: never."""

    reader_patience: float = 300.0
    """Seconds after which a stream ends whose reader takes nothing of it; 0: never."""

    lame_duck: float = 5.0
    """Seconds after a stop signal for which calls are served as before, while health says
    NOT_SERVING."""

    grace: float = 10.0
    """Seconds after that for calls in flight to finish."""

    log_level: str = "INFO"
    """Lowest level that is logged."""

    # No variable sets these; tests do.

    activity_timeout: timedelta = timedelta(seconds=5)
    """The longest time that one answer of an activity source may take."""

    health_interval: timedelta = timedelta(seconds=2)
    """The time between two checks of the database by the health service."""

    gauges_interval: timedelta = timedelta(seconds=15)
    """The shortest time between two reads of the metrics' gauges from the database."""

    quiet: timedelta = timedelta(0)
    """How long after its start a replica runs none of its passes by itself."""

    @property
    def direct_url(self) -> str:
        """The address for what needs a server connection of its own: LISTEN, migrations, temporary
        tables, commands.
        """
        return self.database_direct_url or self.database_url

    @property
    def direct_variable(self) -> str:
        """The variable of `direct_url`."""
        return "ROOST_DATABASE_DIRECT_URL" if self.pooled else "ROOST_DATABASE_URL"

    @property
    def pooled(self) -> bool:
        """Whether `database_url` is that of a pooler that pools transactions."""
        return bool(self.database_direct_url)

    @property
    def machine_lease(self) -> timedelta:
        """The duration of each lease that session_service acquires on a machine at the provider:
        1.5 times `lease`, rounded up to whole seconds, because Fly accepts only those.

        The machine's lease therefore still holds when another replica may claim the transition.
        That replica first waits until it gets the machine's lease. From then on the provider
        refuses late requests of the old owner.
        """
        return timedelta(seconds=math.ceil(self.lease.total_seconds() * 1.5))

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Config:
        """Read the variables. Raises ConfigError for one that is missing, wrong or renamed."""
        check_names(env)
        # Any: fields of every type.
        values: dict[str, Any] = {}
        for variable in VARIABLES:
            text = env.get(variable.name, "").strip()
            if text:
                values[variable.field] = variable.read(text)
            elif variable.required:
                raise ConfigError(f"{variable.name} is not set: {variable.sentence}")
        config = cls(**values)
        if wrong := config.wrong_transport():
            raise ConfigError(wrong)
        return config

    @property
    def tls(self) -> Files | None:
        """The files of the server's certificate; None: it serves in plain text."""
        return self._server_files() if self.tls_cert else None

    @property
    def container_tls(self) -> Files | None:
        """The files for calls to container_service; None: they go in plain text."""
        return self._container_files() if self.container_tls_ca else None

    @property
    def exposed(self) -> str:
        """Why the service must not be served without `insecure`: one line, or an empty text."""
        return exposure.refused_server(
            "ROOST_SESSION_LISTEN",
            self.listen,
            certificate=self.tls_cert,
            authorities=self.tls_client_ca,
        ) or exposure.refused_target(
            "ROOST_CONTAINER_TARGET", self.container_target, authorities=self.container_tls_ca
        )

    def wrong_transport(self) -> str:
        """What is wrong with the settings of TLS together: one line, or an empty text."""
        server, container = self._server_files(), self._container_files()
        return (
            server.lacking()
            or server.unused("authorities", "certificate")
            or container.lacking()
            or container.unused("certificate", "authorities")
        )

    def check_target(self) -> None:
        """Raises ConfigError if container_service must not be called at its address."""
        wrong = exposure.refused_target(
            "ROOST_CONTAINER_TARGET", self.container_target, authorities=self.container_tls_ca
        )
        if wrong and not self.insecure:
            raise ConfigError(wrong)

    def _server_files(self) -> Files:
        return server_files(self.tls_cert, self.tls_key, self.tls_client_ca)

    def _container_files(self) -> Files:
        return Files(
            self.container_tls_cert,
            self.container_tls_key,
            self.container_tls_ca,
            CONTAINER_TLS_VARIABLES,
        )


def describe() -> str:
    """The variables with their meanings and defaults, for `--help`."""
    defaults = Config(database_url="")
    rows = []
    for variable in VARIABLES:
        default = getattr(defaults, variable.field)
        if isinstance(default, timedelta):
            default = default.total_seconds()
        if isinstance(default, bool):
            default = str(default).lower()
        elif isinstance(default, float):
            default = f"{default:.10g}"
        has_default = default not in ("", None)
        note = "required" if variable.required else f"default {default}" if has_default else ""
        rows.append(f"  {variable.name:<33}{variable.sentence}{f' ({note})' if note else ''}")
    return "environment variables:\n" + "\n".join(rows)
