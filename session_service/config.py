"""Configuration: read once from the environment, as one frozen value."""

from __future__ import annotations

import logging
import re
import string
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from session_service.clients.bucket import BucketAddress, parse_address

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class ConfigError(Exception):
    """A variable is missing or wrong; the message is one line that names it."""


@dataclass(frozen=True, slots=True)
class Config:
    """How the service runs. `VARIABLES` below says which variable sets what."""

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
    """The most live sessions of a tenant, paused ones included; 0 is no bound."""

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


@dataclass(frozen=True, slots=True)
class Variable:
    """One environment variable. Any: it parses into a field of whichever type."""

    name: str
    field: str
    parse: Callable[[str], Any]
    rule: str
    sentence: str
    required: bool = False
    secret: bool = False

    def read(self, text: str) -> Any:
        """The value that the text means. Raises ConfigError, without the text if it is a secret."""
        try:
            return self.parse(text)
        except ValueError:
            shown = "its value" if self.secret else repr(text)
            raise ConfigError(f"{self.name}: {shown} is not {self.rule}") from None


def _database(text: str) -> str:
    parts = urlsplit(text)
    _ = parts.port  # raises ValueError where it is none
    if parts.scheme not in ("postgresql", "postgres"):
        raise ValueError
    return text


def _address(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise ValueError(text)
    return text


def _app(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,62}", text):
        raise ValueError(text)
    return text


def _template(text: str) -> str:
    names = {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}
    known = "container_id" in names and names <= NAMES
    parts = urlsplit(text.format(container_id="id", app="app")) if known else None
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(text)
    return text


NAMES = frozenset({"container_id", "app"})


def _image(text: str) -> str:
    if len(text) > 512 or not text.isprintable():
        raise ValueError(text)
    return text


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
        raise ValueError(text)
    return text.lower() in ("true", "1", "yes")


def _language(text: str) -> str:
    if text.lower() not in LANGUAGES:
        raise ValueError(text)
    return text.lower()


#: The text search configurations that PostgreSQL 15 and newer come with.
LANGUAGES = frozenset(
    {
        *("simple", "arabic", "armenian", "basque", "catalan", "danish", "dutch", "english"),
        *("finnish", "french", "german", "greek", "hindi", "hungarian", "indonesian", "irish"),
        *("italian", "lithuanian", "nepali", "norwegian", "portuguese", "romanian", "russian"),
        *("serbian", "spanish", "swedish", "tamil", "turkish", "yiddish"),
    }
)


def _level(text: str) -> str:
    if text.upper() not in logging.getLevelNamesMapping():
        raise ValueError(text)
    return text.upper()


def _word(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() not in words:
            raise ValueError(text)
        return text.lower()

    return parse


def _number(low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = float(text)
        if not low <= value <= high:  # also refuses nan
            raise ValueError(text)
        return value

    return parse


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise ValueError(text)
        return value

    return parse


def _span(low: float, high: float) -> Callable[[str], timedelta]:
    number = _number(low, high)
    return lambda text: timedelta(seconds=number(text))


VARIABLES = (
    Variable(
        "ROOST_DATABASE_URL", "database_url", _database, "a postgresql:// address",
        "PostgreSQL's address, 15 or newer", required=True, secret=True,
    ),
    Variable(
        "ROOST_SESSION_LISTEN", "listen", _address, "host:port",
        "address to serve on; port 0 takes a free one",
    ),
    Variable(
        "ROOST_METRICS_LISTEN", "metrics_listen", _address, "host:port",
        "address to serve metrics on, as /metrics, to Prometheus; where not set, nowhere",
    ),
    Variable(
        "ROOST_CONTAINER_TARGET", "container_target", _address, "host:port",
        "where container_service answers",
    ),
    Variable(
        "ROOST_FLY_APP", "app", _app, "an app's name",
        "the app that containers are created in; container_service's own where not set",
    ),
    Variable(
        "ROOST_URL_TEMPLATE", "url_template", _template,
        "an http or https URL that names {container_id}, and {app} if need be, and nothing else",
        "where previews answer, naming {container_id} and {app}; none is asked where not set",
    ),
    Variable(
        "ROOST_DEFAULT_IMAGE", "default_image", _image, "an image's name",
        "the image of starts that give no spec",
    ),
    Variable(
        "ROOST_MIGRATE", "migrate", _truth, "true or false",
        "whether to bring the database up to date at start",
    ),
    Variable(
        "ROOST_POOL_SIZE", "pool_size", _whole(2, 500), "a whole number from 2 to 500",
        "most connections to PostgreSQL at once",
    ),
    Variable(
        "ROOST_LAG_WINDOW", "lag_window", _span(0, 60), "a number of seconds from 0 to 60",
        "seconds that the provider's reads may lag behind its writes",
    ),
    Variable(
        "ROOST_FRESHNESS_WINDOW", "freshness_window", _span(0, 86_400),
        "a number of seconds from 0 to 86400",
        "seconds that a look at a running container counts",
    ),
    Variable(
        "ROOST_LEASE", "lease", _span(1, 300), "a number of seconds from 1 to 300",
        "seconds that a transition's owner may be silent before another takes over",
    ),
    Variable(
        "ROOST_START_BUDGET", "start_budget", _span(1, 3600), "a number of seconds from 1 to 3600",
        "seconds that a transition may take",
    ),
    Variable(
        "ROOST_CONCURRENT_STARTS", "concurrent_starts", _whole(1, 10_000),
        "a whole number from 1 to 10000",
        "how many transitions that somebody waits for a replica works on at once",
    ),
    Variable(
        "ROOST_CONCURRENT_BACKGROUND", "concurrent_background", _whole(1, 10_000),
        "a whole number from 1 to 10000",
        "how many beside those that nobody waits for",
    ),
    Variable(
        "ROOST_CONCURRENT_CREATES", "concurrent_creates", _whole(1, 1000),
        "a whole number from 1 to 1000",
        "how many create calls a replica has under way in each app",
    ),
    Variable(
        "ROOST_QUEUE_LENGTH", "queue_length", _whole(1, 1_000_000),
        "a whole number from 1 to 1000000",
        "how many transitions may wait for their turn in a replica",
    ),
    Variable(
        "ROOST_LIVE_SESSIONS_PER_TENANT", "live_sessions_per_tenant", _whole(0, 1_000_000),
        "a whole number from 0 to 1000000",
        "most live sessions of a tenant, paused ones included; 0 is no bound",
    ),
    Variable(
        "ROOST_PERSISTENCE", "persistence",
        _word("ephemeral", "reuse", "hibernate", "checkpoint", "ask"),
        "ephemeral, reuse, hibernate, checkpoint or ask",
        "what sessions are kept by where their project has not set it",
    ),
    Variable(
        "ROOST_ON_FINGERPRINT_CHANGE", "on_fingerprint_change",
        _word("refuse", "recreate_keeping_files", "allow"),
        "refuse, recreate_keeping_files or allow",
        "what to do when a spec changes, where the project has not set it",
    ),
    Variable(
        "ROOST_TIER", "tier", _word("free", "paid"), "free or paid",
        "the tier of tenants that were given none; paid caps nothing",
    ),
    Variable(
        "ROOST_CHOICE_EXPIRY", "choice_expiry", _span(0.1, 86_400),
        "a number of seconds from 0.1 to 86400",
        "seconds that a user who is asked may take to choose",
    ),
    Variable(
        "ROOST_GRACE_PERIOD", "grace_period", _span(0, 2_592_000),
        "a number of seconds from 0 to 2592000",
        "seconds that an ended session can be brought back",
    ),
    Variable(
        "ROOST_IDLE_TIMEOUT", "idle_timeout", _span(0.1, 31_622_400),
        "a number of seconds from 0.1 to 31622400",
        "seconds that a session may be without anybody there before it is paused",
    ),
    Variable(
        "ROOST_IDLE_WARNING", "idle_warning", _span(0, 86_400),
        "a number of seconds from 0 to 86400",
        "seconds before the pause that who watches is warned",
    ),
    Variable(
        "ROOST_DEEPEN_AFTER", "deepen_after", _span(0.1, 31_622_400),
        "a number of seconds from 0.1 to 31622400",
        "seconds that a session rests suspended before it is stopped",
    ),
    Variable(
        "ROOST_EXPIRE_AFTER", "expire_after", _span(0.1, 316_224_000),
        "a number of seconds from 0.1 to 316224000",
        "seconds that a session rests stopped before it is ended",
    ),
    Variable(
        "ROOST_ABANDONED_AFTER", "abandoned_after", _span(0, 86_400),
        "a number of seconds from 0 to 86400",
        "seconds that a first start that failed waits for somebody to try again",
    ),
    Variable(
        "ROOST_SESSION_RETENTION", "session_retention", _span(0, 316_224_000),
        "a number of seconds from 0 to 316224000",
        "seconds that the rows of a purged session are kept",
    ),
    Variable(
        "ROOST_DECISION_RETENTION", "decision_retention", _span(86_400, 316_224_000),
        "a number of seconds from 86400 to 316224000",
        "seconds that decisions are kept",
    ),
    Variable(
        "ROOST_EVENT_RETENTION", "event_retention", _span(1, 316_224_000),
        "a number of seconds from 1 to 316224000",
        "seconds that events can be watched from",
    ),
    Variable(
        "ROOST_KEEPER_INTERVAL", "keeper_interval", _span(0.05, 3600),
        "a number of seconds from 0.05 to 3600",
        "seconds between two looks at what is due",
    ),
    Variable(
        "ROOST_KEEPER_SLOTS", "keeper_slots", _whole(1, 500), "a whole number from 1 to 500",
        "how many sessions a replica's keeper works on at once",
    ),
    Variable(
        "ROOST_SWEEP", "sweep", _word("act", "report", "off"), "act, report or off",
        "what is done about containers that no session has",
    ),
    Variable(
        "ROOST_SWEEP_INTERVAL", "sweep_interval", _span(0.1, 86_400),
        "a number of seconds from 0.1 to 86400",
        "seconds between two comparisons of the provider's listing with the rows",
    ),
    Variable(
        "ROOST_SWEEP_MIN_AGE", "sweep_min_age", _span(0, 2_592_000),
        "a number of seconds from 0 to 2592000",
        "seconds that a container must be old to be taken for an orphan",
    ),
    Variable(
        "ROOST_SWEEP_PASSES", "sweep_passes", _whole(1, 1000), "a whole number from 1 to 1000",
        "in how many passes running an orphan must be seen as one",
    ),
    Variable(
        "ROOST_SWEEP_LIMIT", "sweep_limit", _whole(0, 1000), "a whole number from 0 to 1000",
        "how many orphans a pass destroys at most",
    ),
    Variable(
        "ROOST_SWEEP_BREAKER", "sweep_breaker", _whole(0, 100_000),
        "a whole number from 0 to 100000",
        "more orphans than this at once, and none is destroyed",
    ),
    Variable(
        "ROOST_CHECKPOINT_DATABASE_LIMIT", "checkpoint_database_limit", _whole(0, 1_073_741_824),
        "a whole number from 0 to 1073741824",
        "most bytes of a checkpoint, compressed, that go to PostgreSQL",
    ),
    Variable(
        "ROOST_CHECKPOINT_BUCKET_URL", "checkpoint_bucket", parse_address,
        "s3://key:secret@host[:port]/bucket?region=…, with &tls=false for plain HTTP",
        "S3-compatible bucket that larger checkpoints go to; they are refused where not set",
        secret=True,
    ),
    Variable(
        "ROOST_AGENT_IDLE_TIMEOUT", "agent_idle_timeout", _span(1, 316_224_000),
        "a number of seconds from 1 to 316224000",
        "seconds that an agent session may be without a turn, where it asks for nothing else",
    ),
    Variable(
        "ROOST_AGENT_RETENTION", "agent_retention", _span(0, 3_162_240_000),
        "a number of seconds from 0 to 3162240000",
        "seconds that an expired or ended agent session can be brought back",
    ),
    Variable(
        "ROOST_JANITOR_INTERVAL", "janitor_interval", _span(1, 86_400),
        "a number of seconds from 1 to 86400",
        "seconds between two passes that expire and purge",
    ),
    Variable(
        "ROOST_SEARCH_LANGUAGE", "search_language", _language,
        "a language that PostgreSQL has a text search configuration for, or simple",
        "the language that agents' turns are searched in; all replicas' must be the same",
    ),
    Variable(
        "ROOST_GRACE", "grace", _number(0, 3600), "a number of seconds from 0 to 3600",
        "seconds that calls in flight have to finish after a stop signal",
    ),
    Variable(
        "ROOST_LOG_LEVEL", "log_level", _level, "a level: DEBUG, INFO, WARNING or ERROR",
        "the least level that is logged",
    ),
)  # fmt: skip


def describe() -> str:
    """The variables, their defaults and what they mean, for `--help`."""
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
        shown = default not in ("", None)
        told = "required" if variable.required else f"default {default}" if shown else ""
        rows.append(f"  {variable.name:<29}{variable.sentence}{f' ({told})' if told else ''}")
    return "environment variables:\n" + "\n".join(rows)
