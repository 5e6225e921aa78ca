"""The environment variables: the setting that each one sets, and the values it accepts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from grpc_edge.environment import UnknownName, unknown
from session_service.config.forms import (
    ADDRESS,
    APP,
    BOOLEAN,
    BUCKET,
    DATABASE,
    IMAGE,
    LANGUAGE,
    LEVEL,
    PATH,
    TEMPLATE,
    seconds,
    span,
    span_or_never,
    whole,
    words,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from session_service.config.forms import Form


class ConfigError(Exception):
    """A variable is missing, wrong or renamed; the message is one line that names it."""


@dataclass(frozen=True, slots=True)
class Variable:
    """One environment variable, and the field of Config that it sets."""

    name: str
    field: str
    form: Form
    sentence: str
    required: bool = False
    secret: bool = False

    def read(self, text: str) -> Any:
        """The value of the text. Raises ConfigError; its message does not contain a secret."""
        try:
            return self.form.parse(text)
        except ValueError:
            shown = "its value" if self.secret else repr(text)
            raise ConfigError(f"{self.name}: {shown} is not {self.form.rule}") from None


#: The variable of each file for calls to container_service.
CONTAINER_TLS_VARIABLES = {
    "certificate": "ROOST_CONTAINER_TLS_CERT",
    "key": "ROOST_CONTAINER_TLS_KEY",
    "authorities": "ROOST_CONTAINER_TLS_CA",
}

#: Former names of variables, and the names that they have now.
RENAMED = {
    "ROOST_KEEPER_INTERVAL": "ROOST_RECONCILE_INTERVAL",
    "ROOST_KEEPER_SLOTS": "ROOST_RECONCILE_SLOTS",
    "ROOST_JANITOR_INTERVAL": "ROOST_RETENTION_INTERVAL",
}


def check_names(environment: Mapping[str, str]) -> list[str]:
    """The variables that no service knows. Raise ConfigError for one that is set under its former
    name, and for one whose name is near to a known one.

    Ignoring those would silently run the service with the default.
    """
    for former, name in RENAMED.items():
        if environment.get(former, "").strip():
            raise ConfigError(f"{former} is called {name} now")
    try:
        return unknown(environment)
    except UnknownName as error:
        raise ConfigError(str(error)) from None


#: In the order in which `--help` lists them.
VARIABLES = (
    Variable(
        "ROOST_DATABASE_URL", "database_url", DATABASE,
        "PostgreSQL's address; version 15 or newer", required=True, secret=True,
    ),
    Variable(
        "ROOST_DATABASE_DIRECT_URL", "database_direct_url", DATABASE,
        "PostgreSQL's own address, if ROOST_DATABASE_URL is that of a pooler that pools "
        "transactions", secret=True,
    ),
    Variable(
        "ROOST_SESSION_LISTEN", "listen", ADDRESS, "address to serve on; port 0 takes a free one",
    ),
    Variable(
        "ROOST_METRICS_LISTEN", "metrics_listen", ADDRESS,
        "address that serves /metrics to Prometheus; not set: metrics are off",
    ),
    Variable(
        "ROOST_CONTAINER_TARGET", "container_target", ADDRESS, "address of container_service",
    ),
    Variable(
        "ROOST_HEALTH_LISTEN", "health_listen", ADDRESS,
        "address that serves the health service alone, in plain text, for probes; not set: none",
    ),
    Variable(
        "ROOST_TLS_CERT", "tls_cert", PATH,
        "file of the server's certificate, with its intermediate ones; not set: plain text",
    ),
    Variable("ROOST_TLS_KEY", "tls_key", PATH, "file of the certificate's private key"),
    Variable(
        "ROOST_TLS_CLIENT_CA", "tls_client_ca", PATH,
        "file of the authorities that sign clients' certificates; each client must then have one",
    ),
    Variable(
        "ROOST_CONTAINER_TLS_CA", "container_tls_ca", PATH,
        "file of the authorities that sign container_service's certificate; not set: plain text",
    ),
    Variable(
        "ROOST_CONTAINER_TLS_CERT", "container_tls_cert", PATH,
        "file of the certificate that container_service is shown",
    ),
    Variable(
        "ROOST_CONTAINER_TLS_KEY", "container_tls_key", PATH,
        "file of that certificate's private key",
    ),
    Variable(
        "ROOST_INSECURE", "insecure", BOOLEAN,
        "whether to serve and call beyond loopback without certificates",
    ),
    Variable(
        "ROOST_FLY_APP", "app", APP,
        "the app that containers are created in; not set: container_service's own",
    ),
    Variable(
        "ROOST_URL_TEMPLATE", "url_template", TEMPLATE,
        "URL of a container's preview, with {container_id} and {app}; not set: previews are not "
        "probed",
    ),
    Variable(
        "ROOST_DEFAULT_IMAGE", "default_image", IMAGE, "the image of starts that give no spec",
    ),
    Variable(
        "ROOST_MIGRATE", "migrate", BOOLEAN, "whether to bring the database up to date at start",
    ),
    Variable(
        "ROOST_POOL_SIZE", "pool_size", whole(2, 500), "most connections to PostgreSQL at once",
    ),
    Variable(
        "ROOST_LAG_WINDOW", "lag_window", span(0, 60),
        "seconds by which the provider's reads may lag behind its writes",
    ),
    Variable(
        "ROOST_FRESHNESS_WINDOW", "freshness_window", span(0, 86_400),
        "seconds that a probe of a running container stays valid",
    ),
    Variable(
        "ROOST_LEASE", "lease", span(1, 300),
        "seconds after which a silent owner of a transition loses it to another replica",
    ),
    Variable(
        "ROOST_START_BUDGET", "start_budget", span(1, 3600), "seconds that a transition may take",
    ),
    Variable(
        "ROOST_CONCURRENT_STARTS", "concurrent_starts", whole(1, 10_000),
        "transitions with a waiting caller that a replica runs at once",
    ),
    Variable(
        "ROOST_CONCURRENT_BACKGROUND", "concurrent_background", whole(1, 10_000),
        "background transitions (idle pauses, clean-up) that a replica runs at once, in addition "
        "to ROOST_CONCURRENT_STARTS",
    ),
    Variable(
        "ROOST_CONCURRENT_CREATES", "concurrent_creates", whole(1, 1000),
        "create calls that a replica has under way at once in each app",
    ),
    Variable(
        "ROOST_QUEUE_LENGTH", "queue_length", whole(1, 1_000_000),
        "transitions that may queue in a replica",
    ),
    Variable(
        "ROOST_LIVE_SESSIONS_PER_TENANT", "live_sessions_per_tenant", whole(0, 1_000_000),
        "most live sessions of a tenant, paused ones included; 0: only the tier's limit",
    ),
    Variable(
        "ROOST_PERSISTENCE", "persistence",
        words("ephemeral", "reuse", "hibernate", "checkpoint", "ask"),
        "persistence of projects that set none",
    ),
    Variable(
        "ROOST_ON_FINGERPRINT_CHANGE", "on_fingerprint_change",
        words("refuse", "recreate_keeping_files", "allow"),
        "effect of a changed spec in projects that set none",
    ),
    Variable(
        "ROOST_TIER", "tier", words("free", "paid"),
        "tier of tenants that were given none; paid has no caps",
    ),
    Variable(
        "ROOST_CHOICE_EXPIRY", "choice_expiry", span(0.1, 86_400),
        "seconds that a user has to choose",
    ),
    Variable(
        "ROOST_GRACE_PERIOD", "grace_period", span(0, 2_592_000),
        "seconds that an ended session can be undeleted",
    ),
    Variable(
        "ROOST_IDLE_TIMEOUT", "idle_timeout", span(0.1, 31_622_400),
        "seconds without activity after which a session is paused",
    ),
    Variable(
        "ROOST_IDLE_WARNING", "idle_warning", span(0, 86_400),
        "seconds before an idle pause at which watchers are warned",
    ),
    Variable(
        "ROOST_DEEPEN_AFTER", "deepen_after", span(0.1, 31_622_400),
        "seconds that a paused session stays suspended before its container is stopped",
    ),
    Variable(
        "ROOST_EXPIRE_AFTER", "expire_after", span(0.1, 316_224_000),
        "seconds that a paused session stays stopped before it is ended",
    ),
    Variable(
        "ROOST_CHECKPOINT_AFTER", "checkpoint_after", span_or_never(0.1, 316_224_000),
        "seconds that a paused session keeps its container; then its state is saved and the "
        "container destroyed; 0: never",
    ),
    Variable(
        "ROOST_CHECKPOINT_EVERY", "checkpoint_every", span_or_never(1, 316_224_000),
        "seconds between two scheduled checkpoints of a running session; 0: never",
    ),
    Variable(
        "ROOST_ABANDONED_AFTER", "abandoned_after", span(0, 86_400),
        "seconds that a failed first start may be retried before its session is removed",
    ),
    Variable(
        "ROOST_SESSION_RETENTION", "session_retention", span(0, 316_224_000),
        "seconds that the rows of a purged session are kept",
    ),
    Variable(
        "ROOST_DECISION_RETENTION", "decision_retention", span(86_400, 316_224_000),
        "seconds that decisions are kept; statistics reach no further back",
    ),
    Variable(
        "ROOST_EVENT_RETENTION", "event_retention", span(1, 316_224_000),
        "seconds that events are kept for WatchSession",
    ),
    Variable(
        "ROOST_RECONCILE_INTERVAL", "reconcile_interval", span(0.05, 3600),
        "seconds between two passes over sessions with a due action",
    ),
    Variable(
        "ROOST_RECONCILE_SLOTS", "reconcile_slots", whole(1, 500),
        "due sessions that a replica works on at once",
    ),
    Variable(
        "ROOST_SWEEP", "sweep", words("act", "report", "off"),
        "what to do with containers that no session has, and with volumes that none needs",
    ),
    Variable(
        "ROOST_SWEEP_INTERVAL", "sweep_interval", span(0.1, 86_400),
        "seconds between two comparisons of the provider's listing with the rows, by all replicas "
        "together",
    ),
    Variable(
        "ROOST_SWEEP_MIN_AGE", "sweep_min_age", span(0, 2_592_000),
        "least age of an orphaned container, and of a volume that is deleted, in seconds",
    ),
    Variable(
        "ROOST_SWEEP_PASSES", "sweep_passes", whole(1, 1000),
        "passes in a row that must see an orphan before it is destroyed",
    ),
    Variable(
        "ROOST_SWEEP_LIMIT", "sweep_limit", whole(0, 1000),
        "most orphans that one pass destroys",
    ),
    Variable(
        "ROOST_SWEEP_BREAKER", "sweep_breaker", whole(0, 100_000),
        "most orphans at once; with more, a pass destroys none",
    ),
    Variable(
        "ROOST_CHECKPOINT_DATABASE_LIMIT", "checkpoint_database_limit", whole(0, 1_073_741_824),
        "most bytes of a checkpoint, compressed, that are stored in PostgreSQL",
    ),
    Variable(
        "ROOST_CHECKPOINT_BUCKET_URL", "checkpoint_bucket", BUCKET,
        "S3-compatible bucket of larger checkpoints; not set: they are refused",
        secret=True,
    ),
    Variable(
        "ROOST_AGENT_IDLE_TIMEOUT", "agent_idle_timeout", span(1, 316_224_000),
        "seconds without a turn after which an agent session expires, unless it sets its own",
    ),
    Variable(
        "ROOST_AGENT_RETENTION", "agent_retention", span(0, 3_162_240_000),
        "seconds that an expired or ended agent session can be revived",
    ),
    Variable(
        "ROOST_RETENTION_INTERVAL", "retention_interval", span(1, 86_400),
        "seconds between two passes that delete rows past their retention",
    ),
    Variable(
        "ROOST_SEARCH_LANGUAGE", "search_language", LANGUAGE,
        "language of the search in agents' turns; must be the same at all replicas",
    ),
    Variable(
        "ROOST_CONNECTION_AGE", "connection_age", seconds(0, 604_800),
        "seconds after which a connection takes no new calls, and watches end; 0: never",
    ),
    Variable(
        "ROOST_READER_PATIENCE", "reader_patience", seconds(0, 86_400),
        "seconds after which a stream ends whose reader takes nothing of it; 0: never",
    ),
    Variable(
        "ROOST_LAME_DUCK", "lame_duck", seconds(0, 3600),
        "seconds after a stop signal for which calls are served as before, health NOT_SERVING",
    ),
    Variable(
        "ROOST_GRACE", "grace", seconds(0, 3600),
        "seconds after that for calls in flight to finish",
    ),
    Variable(
        "ROOST_LOG_LEVEL", "log_level", LEVEL, "lowest level that is logged",
    ),
)  # fmt: skip
