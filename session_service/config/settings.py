"""What can be set, and what it is where nothing is: read once, as one frozen value."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from session_service.config.reading import ConfigError
from session_service.config.variables import VARIABLES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from session_service.clients.bucket import BucketAddress


@dataclass(frozen=True, slots=True)
class Config:
    """How the service runs. `variables.VARIABLES` says which variable sets what."""

    database_url: str = field(repr=False)
    """PostgreSQL's address; it may hold a password, and is in no repr."""

    listen: str = "127.0.0.1:50051"
    """Address to serve on, host:port; port 0 takes a free one."""

    container_target: str = "127.0.0.1:50052"
    """Where container_service answers."""

    app: str = ""
    """The provider's application that containers are created in; empty: container_service's own."""

    url_template: str = ""
    """Where previews answer, naming {container_id} and {app}; empty: nowhere, and none is asked."""

    default_image: str = ""
    """The image of starts that give no spec; empty: they must give one to create a container."""

    metrics_listen: str = ""
    """Address to serve metrics on, host:port; empty: nowhere."""

    migrate: bool = True
    """Whether to bring the database up to date at start."""

    pool_size: int = 16
    """Most connections to PostgreSQL at once."""

    lag_window: timedelta = timedelta(seconds=5)
    """How long the provider's reads may lag behind its writes."""

    freshness_window: timedelta = timedelta(seconds=10)
    """How long a look at a running container counts; within it a start makes no provider call."""

    lease: timedelta = timedelta(seconds=10)
    """How long the owner of a transition may be silent before another takes over."""

    start_budget: timedelta = timedelta(seconds=120)
    """How long a transition may take."""

    concurrent_starts: int = 64
    """How many transitions that somebody waits for a replica works on at once."""

    concurrent_background: int = 16
    """How many beside those that nobody waits for, such as idle pauses."""

    concurrent_creates: int = 4
    """How many create calls a replica has under way in each app."""

    queue_length: int = 1024
    """How many transitions may wait for their turn, in a replica."""

    live_sessions_per_tenant: int = 0
    """The most live sessions of any tenant, paused ones included; 0: as many as its tier allows."""

    persistence: str = "hibernate"
    """What sessions are kept by where their project has not set it."""

    on_fingerprint_change: str = "allow"
    """What to do when a spec changes, where the project has not set it."""

    tier: str = "paid"
    """The tier of tenants that were given none: paid caps nothing."""

    choice_expiry: timedelta = timedelta(minutes=10)
    """How long a user who is asked may take to choose."""

    grace_period: timedelta = timedelta(minutes=10)
    """How long an ended session can be brought back."""

    idle_timeout: timedelta = timedelta(minutes=30)
    """How long a session may be without anybody there before it is paused."""

    idle_warning: timedelta = timedelta(minutes=1)
    """How long before that who watches is warned."""

    deepen_after: timedelta = timedelta(hours=24)
    """How long a session rests suspended before it is stopped."""

    expire_after: timedelta = timedelta(days=30)
    """How long a session rests stopped before it is ended."""

    checkpoint_after: timedelta = timedelta(0)
    """How long a session rests with a container before its state is saved and that destroyed, where
    the application hands its state out; 0: never."""

    checkpoint_every: timedelta = timedelta(0)
    """How long after it was last saved the state of a running session is saved again; 0: never."""

    abandoned_after: timedelta = timedelta(minutes=2)
    """How long a first start that failed waits for somebody to try again."""

    session_retention: timedelta = timedelta(days=30)
    """How long the rows of a purged session are kept."""

    decision_retention: timedelta = timedelta(days=90)
    """How long decisions are kept; statistics reach no further back."""

    event_retention: timedelta = timedelta(days=7)
    """How long events can be watched from."""

    keeper_interval: timedelta = timedelta(seconds=2)
    """Between two looks at what is due."""

    keeper_slots: int = 16
    """How many sessions a replica's keeper works on at once."""

    sweep: str = "act"
    """What is done about containers that no session has: act, report, or off."""

    sweep_interval: timedelta = timedelta(seconds=30)
    """Between two comparisons of the provider's listing with the rows, by all replicas together."""

    sweep_min_age: timedelta = timedelta(minutes=10)
    """How old a container must be to be taken for an orphan."""

    sweep_passes: int = 3
    """In how many passes running it must be seen as one."""

    sweep_limit: int = 5
    """How many orphans a pass destroys at most; 0 destroys none."""

    sweep_breaker: int = 20
    """More orphans than this at once are a mistake somewhere: nothing is destroyed."""

    checkpoint_database_limit: int = 16 * 1024 * 1024
    """The most stored bytes of one checkpoint that PostgreSQL takes; more goes to the bucket."""

    checkpoint_bucket: BucketAddress | None = None
    """Where larger checkpoints go; None: nowhere, and they are refused."""

    agent_idle_timeout: timedelta = timedelta(hours=1)
    """How long an agent session that asks for nothing else may be without a turn."""

    agent_retention: timedelta = timedelta(days=30)
    """How long an expired or ended agent session can be brought back; then it is purged."""

    janitor_interval: timedelta = timedelta(minutes=15)
    """Between two passes that expire and purge."""

    search_language: str = "english"
    """PostgreSQL's text search configuration; another one indexes everything anew."""

    grace: float = 10.0
    """Seconds that calls in flight have to finish after a stop signal."""

    log_level: str = "INFO"
    """The least level that is logged."""

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Config:
        """Read the variables. Raises ConfigError at the first that is missing or wrong."""
        # Any: fields of every type.
        values: dict[str, Any] = {}
        for variable in VARIABLES:
            text = env.get(variable.name, "").strip()
            if text:
                values[variable.field] = variable.read(text)
            elif variable.required:
                raise ConfigError(f"{variable.name} is not set: {variable.sentence}")
        return cls(**values)
