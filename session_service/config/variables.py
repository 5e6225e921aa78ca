"""The environment variables: which setting each one sets, and what it may be."""

from __future__ import annotations

from session_service.config.forms import (
    ADDRESS,
    APP,
    BUCKET,
    DATABASE,
    IMAGE,
    LANGUAGE,
    LEVEL,
    TEMPLATE,
    TRUTH,
    seconds,
    span,
    span_or_never,
    whole,
    words,
)
from session_service.config.reading import Variable

#: In the order in which `--help` lists them.
VARIABLES = (
    Variable(
        "ROOST_DATABASE_URL", "database_url", DATABASE,
        "PostgreSQL's address, 15 or newer", required=True, secret=True,
    ),
    Variable(
        "ROOST_SESSION_LISTEN", "listen", ADDRESS, "address to serve on; port 0 takes a free one",
    ),
    Variable(
        "ROOST_METRICS_LISTEN", "metrics_listen", ADDRESS,
        "address to serve metrics on, as /metrics, to Prometheus; where not set, nowhere",
    ),
    Variable(
        "ROOST_CONTAINER_TARGET", "container_target", ADDRESS, "where container_service answers",
    ),
    Variable(
        "ROOST_FLY_APP", "app", APP,
        "the app that containers are created in; container_service's own where not set",
    ),
    Variable(
        "ROOST_URL_TEMPLATE", "url_template", TEMPLATE,
        "where previews answer, naming {container_id} and {app}; none is asked where not set",
    ),
    Variable(
        "ROOST_DEFAULT_IMAGE", "default_image", IMAGE, "the image of starts that give no spec",
    ),
    Variable(
        "ROOST_MIGRATE", "migrate", TRUTH, "whether to bring the database up to date at start",
    ),
    Variable(
        "ROOST_POOL_SIZE", "pool_size", whole(2, 500), "most connections to PostgreSQL at once",
    ),
    Variable(
        "ROOST_LAG_WINDOW", "lag_window", span(0, 60),
        "seconds that the provider's reads may lag behind its writes",
    ),
    Variable(
        "ROOST_FRESHNESS_WINDOW", "freshness_window", span(0, 86_400),
        "seconds that a look at a running container counts",
    ),
    Variable(
        "ROOST_LEASE", "lease", span(1, 300),
        "seconds that a transition's owner may be silent before another takes over",
    ),
    Variable(
        "ROOST_START_BUDGET", "start_budget", span(1, 3600), "seconds that a transition may take",
    ),
    Variable(
        "ROOST_CONCURRENT_STARTS", "concurrent_starts", whole(1, 10_000),
        "how many transitions that somebody waits for a replica works on at once",
    ),
    Variable(
        "ROOST_CONCURRENT_BACKGROUND", "concurrent_background", whole(1, 10_000),
        "how many beside those that nobody waits for",
    ),
    Variable(
        "ROOST_CONCURRENT_CREATES", "concurrent_creates", whole(1, 1000),
        "how many create calls a replica has under way in each app",
    ),
    Variable(
        "ROOST_QUEUE_LENGTH", "queue_length", whole(1, 1_000_000),
        "how many transitions may wait for their turn in a replica",
    ),
    Variable(
        "ROOST_LIVE_SESSIONS_PER_TENANT", "live_sessions_per_tenant", whole(0, 1_000_000),
        "most live sessions of a tenant, paused ones included; 0: as its tier allows",
    ),
    Variable(
        "ROOST_PERSISTENCE", "persistence",
        words("ephemeral", "reuse", "hibernate", "checkpoint", "ask"),
        "what sessions are kept by where their project has not set it",
    ),
    Variable(
        "ROOST_ON_FINGERPRINT_CHANGE", "on_fingerprint_change",
        words("refuse", "recreate_keeping_files", "allow"),
        "what to do when a spec changes, where the project has not set it",
    ),
    Variable(
        "ROOST_TIER", "tier", words("free", "paid"),
        "the tier of tenants that were given none; paid caps nothing",
    ),
    Variable(
        "ROOST_CHOICE_EXPIRY", "choice_expiry", span(0.1, 86_400),
        "seconds that a user who is asked may take to choose",
    ),
    Variable(
        "ROOST_GRACE_PERIOD", "grace_period", span(0, 2_592_000),
        "seconds that an ended session can be brought back",
    ),
    Variable(
        "ROOST_IDLE_TIMEOUT", "idle_timeout", span(0.1, 31_622_400),
        "seconds that a session may be without anybody there before it is paused",
    ),
    Variable(
        "ROOST_IDLE_WARNING", "idle_warning", span(0, 86_400),
        "seconds before the pause that who watches is warned",
    ),
    Variable(
        "ROOST_DEEPEN_AFTER", "deepen_after", span(0.1, 31_622_400),
        "seconds that a session rests suspended before it is stopped",
    ),
    Variable(
        "ROOST_EXPIRE_AFTER", "expire_after", span(0.1, 316_224_000),
        "seconds that a session rests stopped before it is ended",
    ),
    Variable(
        "ROOST_CHECKPOINT_AFTER", "checkpoint_after", span_or_never(0.1, 316_224_000),
        "seconds that a session rests before it is saved and its container destroyed; 0: never",
    ),
    Variable(
        "ROOST_CHECKPOINT_EVERY", "checkpoint_every", span_or_never(1, 316_224_000),
        "seconds after which the state of a running session is saved again; 0 is never",
    ),
    Variable(
        "ROOST_ABANDONED_AFTER", "abandoned_after", span(0, 86_400),
        "seconds that a first start that failed waits for somebody to try again",
    ),
    Variable(
        "ROOST_SESSION_RETENTION", "session_retention", span(0, 316_224_000),
        "seconds that the rows of a purged session are kept",
    ),
    Variable(
        "ROOST_DECISION_RETENTION", "decision_retention", span(86_400, 316_224_000),
        "seconds that decisions are kept",
    ),
    Variable(
        "ROOST_EVENT_RETENTION", "event_retention", span(1, 316_224_000),
        "seconds that events can be watched from",
    ),
    Variable(
        "ROOST_KEEPER_INTERVAL", "keeper_interval", span(0.05, 3600),
        "seconds between two looks at what is due",
    ),
    Variable(
        "ROOST_KEEPER_SLOTS", "keeper_slots", whole(1, 500),
        "how many sessions a replica's keeper works on at once",
    ),
    Variable(
        "ROOST_SWEEP", "sweep", words("act", "report", "off"),
        "what is done about containers that no session has",
    ),
    Variable(
        "ROOST_SWEEP_INTERVAL", "sweep_interval", span(0.1, 86_400),
        "seconds between two comparisons of the provider's listing with the rows",
    ),
    Variable(
        "ROOST_SWEEP_MIN_AGE", "sweep_min_age", span(0, 2_592_000),
        "seconds that a container must be old to be taken for an orphan",
    ),
    Variable(
        "ROOST_SWEEP_PASSES", "sweep_passes", whole(1, 1000),
        "in how many passes running an orphan must be seen as one",
    ),
    Variable(
        "ROOST_SWEEP_LIMIT", "sweep_limit", whole(0, 1000),
        "how many orphans a pass destroys at most",
    ),
    Variable(
        "ROOST_SWEEP_BREAKER", "sweep_breaker", whole(0, 100_000),
        "more orphans than this at once, and none is destroyed",
    ),
    Variable(
        "ROOST_CHECKPOINT_DATABASE_LIMIT", "checkpoint_database_limit", whole(0, 1_073_741_824),
        "most bytes of a checkpoint, compressed, that go to PostgreSQL",
    ),
    Variable(
        "ROOST_CHECKPOINT_BUCKET_URL", "checkpoint_bucket", BUCKET,
        "S3-compatible bucket that larger checkpoints go to; they are refused where not set",
        secret=True,
    ),
    Variable(
        "ROOST_AGENT_IDLE_TIMEOUT", "agent_idle_timeout", span(1, 316_224_000),
        "seconds that an agent session may be without a turn, where it asks for nothing else",
    ),
    Variable(
        "ROOST_AGENT_RETENTION", "agent_retention", span(0, 3_162_240_000),
        "seconds that an expired or ended agent session can be brought back",
    ),
    Variable(
        "ROOST_JANITOR_INTERVAL", "janitor_interval", span(1, 86_400),
        "seconds between two passes that expire and purge",
    ),
    Variable(
        "ROOST_SEARCH_LANGUAGE", "search_language", LANGUAGE,
        "the language that agents' turns are searched in; all replicas' must be the same",
    ),
    Variable(
        "ROOST_GRACE", "grace", seconds(0, 3600),
        "seconds that calls in flight have to finish after a stop signal",
    ),
    Variable(
        "ROOST_LOG_LEVEL", "log_level", LEVEL, "the least level that is logged",
    ),
)  # fmt: skip
