"""The configuration, read once from the environment."""

from __future__ import annotations

import logging
import re
import string
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from grpc_edge import exposure
from grpc_edge.certificates import server_files
from grpc_edge.environment import UnknownName, unknown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from grpc_edge.certificates import Files


class ConfigError(Exception):
    """A variable is missing or invalid. The message is one line that names it."""


@dataclass(frozen=True, slots=True)
class Config:
    """The settings. `VARIABLES` below maps environment variables to them."""

    fly_token: str = field(repr=False)
    """Fly's API token. Secret, so it is not in the repr."""

    listen: str = "127.0.0.1:50052"
    """The address to serve on, host:port; port 0 takes a free port."""

    health_listen: str = ""
    """The address that serves the health service alone, in plain text; empty: none."""

    tls_cert: str = ""
    """The file of the server's certificate; empty: plain text."""

    tls_key: str = ""
    """The file of the certificate's private key."""

    tls_client_ca: str = ""
    """The file of the authorities that sign clients' certificates; empty: clients need none."""

    insecure: bool = False
    """Whether to serve in plain text, or clients without certificates, beyond loopback."""

    fly_base_url: str = "https://api.machines.dev"
    """The URL of the Machines API."""

    fly_app: str = ""
    """The app for calls that name none; if empty, every call must name one."""

    url_template: str = ""
    """The URL of containers' HTTP services, with {container_id} and {app} as placeholders."""

    state_limit: int = 256 * 1024 * 1024
    """The largest size of the state in one capture or restore, in bytes."""

    lag_window: float = 5.0
    """Seconds by which the provider's reads may lag behind its writes."""

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
    """The lowest level that is logged."""

    fly_rate_share: float = 1.0
    """The fraction of Fly's rate limits that this process may use, above 0 and up to 1."""

    fly_retry_ratio: float = 0.1
    """The most retries, as a fraction of answered calls."""

    fly_breaker_failures: int = 5
    """An app's circuit opens after this many different machines in a row gave no answer."""

    fly_breaker_longest: float = 10.0
    """Longest time between two probes of an app whose circuit is open, in seconds."""

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Config:
        """Read the variables. Raises ConfigError at the first one that is missing or invalid, or
        whose name is near to a known one.
        """
        check_names(env)
        values: dict[str, Any] = {}
        for variable in VARIABLES:
            text = env.get(variable.name, "").strip()
            if text:
                values[variable.field] = variable.read(text)
            elif variable.required:
                raise ConfigError(f"{variable.name} is not set: {variable.meaning}")
        config = cls(**values)
        if wrong := config.wrong_transport():
            raise ConfigError(wrong)
        return config

    @property
    def tls(self) -> Files | None:
        """The files of the server's certificate; None: it serves in plain text."""
        files = server_files(self.tls_cert, self.tls_key, self.tls_client_ca)
        return files if files.certificate else None

    @property
    def exposed(self) -> str:
        """Why the service must not be served without `insecure`: one line, or an empty text."""
        return exposure.refused_server(
            "ROOST_CONTAINER_LISTEN",
            self.listen,
            certificate=self.tls_cert,
            authorities=self.tls_client_ca,
        )

    def wrong_transport(self) -> str:
        """What is wrong with the settings of TLS together: one line, or an empty text."""
        files = server_files(self.tls_cert, self.tls_key, self.tls_client_ca)
        return files.lacking() or files.unused("authorities", "certificate")


def check_names(environment: Mapping[str, str]) -> list[str]:
    """The variables that no service knows. Raises ConfigError for one near to a known one."""
    try:
        return unknown(environment)
    except UnknownName as error:
        raise ConfigError(str(error)) from None


@dataclass(frozen=True, slots=True)
class Variable:
    """One environment variable."""

    name: str
    field: str
    parse: Callable[[str], Any]
    """Raises ValueError for a text that breaks the rule."""

    rule: str
    """What the value must be, for the error message."""

    meaning: str
    required: bool = False

    def read(self, text: str) -> Any:
        """The value of the text. Raises ConfigError; its message never contains a secret."""
        try:
            return self.parse(text)
        except ValueError:
            secret = self.field == "fly_token" or "@" in text
            shown = "its value" if secret else repr(text)
            raise ConfigError(f"{self.name}: {shown} is not {self.rule}") from None


def _address(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise ValueError(text)
    # gRPC reads an IPv6 address without brackets as another one, and takes port 443.
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise ValueError(text)
    return text


def _url(text: str) -> str:
    parts = urlsplit(text)
    _ = parts.port  # raises ValueError if it is not a port
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(text)
    if parts.query or parts.fragment or parts.username or parts.password:
        raise ValueError(text)
    return text.rstrip("/")


def _token(text: str) -> str:
    if not text.isascii() or not text.isprintable():
        raise ValueError
    return text


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
        raise ValueError(text)
    return text.lower() in ("true", "1", "yes")


def _app(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,62}", text):
        raise ValueError(text)
    return text


def _template(text: str) -> str:
    names = {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}
    if not names <= {"container_id", "app"}:
        raise ValueError(text)
    _url(text.format(container_id="id", app="app"))
    return text.rstrip("/")


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise ValueError(text)
        return value

    return parse


def _level(text: str) -> str:
    if text.upper() not in logging.getLevelNamesMapping():
        raise ValueError(text)
    return text.upper()


def _between(low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = float(text)
        if not low <= value <= high:  # false for nan
            raise ValueError(text)
        return value

    return parse


VARIABLES = (
    Variable(
        "FLY_API_TOKEN", "fly_token", _token, "a token: printable ASCII",
        "Fly's API token, as `fly tokens create` prints it", required=True,
    ),
    Variable(
        "FLY_FLAPS_BASE_URL", "fly_base_url", _url, "an http or https URL",
        "URL of the Machines API",
    ),
    Variable(
        "ROOST_CONTAINER_LISTEN", "listen", _address, "host:port",
        "address to serve on; port 0 takes a free port",
    ),
    Variable(
        "ROOST_HEALTH_LISTEN", "health_listen", _address, "host:port",
        "address that serves the health service alone, in plain text, for probes; not set: none",
    ),
    Variable(
        "ROOST_TLS_CERT", "tls_cert", str, "a path",
        "file of the server's certificate, with its intermediate ones; not set: plain text",
    ),
    Variable("ROOST_TLS_KEY", "tls_key", str, "a path", "file of the certificate's private key"),
    Variable(
        "ROOST_TLS_CLIENT_CA", "tls_client_ca", str, "a path",
        "file of the authorities that sign clients' certificates; each client must then have one",
    ),
    Variable(
        "ROOST_INSECURE", "insecure", _boolean, "true or false",
        "whether to serve beyond loopback without certificates of server and clients",
    ),
    Variable(
        "ROOST_FLY_APP", "fly_app", _app, "the name of an app",
        "app for calls that name none",
    ),
    Variable(
        "ROOST_URL_TEMPLATE", "url_template", _template,
        "an http or https URL with no placeholders but {container_id} and {app}",
        "URL of containers' HTTP services, for state hooks of kind http_path",
    ),
    Variable(
        "ROOST_STATE_LIMIT", "state_limit", _whole(1, 2**40), "a whole number from 1 to 2^40",
        "most bytes of state in one capture or restore",
    ),
    Variable(
        "ROOST_LAG_WINDOW", "lag_window", _between(0, 60), "a number of seconds from 0 to 60",
        "seconds by which the provider's reads may lag behind its writes",
    ),
    Variable(
        "ROOST_CONNECTION_AGE", "connection_age", _between(0, 604_800),
        "a number of seconds from 0 to 604800",
        "seconds after which a connection takes no new calls; 0: never",
    ),
    Variable(
        "ROOST_READER_PATIENCE", "reader_patience", _between(0, 86_400),
        "a number of seconds from 0 to 86400",
        "seconds after which a stream ends whose reader takes nothing of it; 0: never",
    ),
    Variable(
        "ROOST_LAME_DUCK", "lame_duck", _between(0, 3600), "a number of seconds from 0 to 3600",
        "seconds after a stop signal for which calls are served as before, health NOT_SERVING",
    ),
    Variable(
        "ROOST_GRACE", "grace", _between(0, 3600), "a number of seconds from 0 to 3600",
        "seconds after that for calls in flight to finish",
    ),
    Variable(
        "ROOST_LOG_LEVEL", "log_level", _level, "a level: DEBUG, INFO, WARNING or ERROR",
        "lowest level that is logged",
    ),
    Variable(
        "ROOST_FLY_RATE_SHARE", "fly_rate_share", _between(0.01, 1), "a number from 0.01 to 1",
        "fraction of Fly's rate limits that this process may use",
    ),
    Variable(
        "ROOST_FLY_RETRY_RATIO", "fly_retry_ratio", _between(0, 1), "a number from 0 to 1",
        "most retries, as a fraction of answered calls",
    ),
    Variable(
        "ROOST_FLY_BREAKER_FAILURES", "fly_breaker_failures", _whole(2, 10_000),
        "a whole number from 2 to 10000",
        "machines in a row without an answer after which an app's calls are not sent",
    ),
    Variable(
        "ROOST_FLY_BREAKER_LONGEST", "fly_breaker_longest", _between(1, 600),
        "a number of seconds from 1 to 600",
        "longest time between two probes of an app that does not answer, in seconds",
    ),
)  # fmt: skip


def describe() -> str:
    """The variables, their meanings and defaults, for `--help`."""
    defaults = Config(fly_token="")
    rows = []
    for variable in VARIABLES:
        default = getattr(defaults, variable.field)
        note = "required" if variable.required else f"default {default}" if default != "" else ""
        rows.append(f"  {variable.name:<28}{variable.meaning}{f' ({note})' if note else ''}")
    return "environment variables:\n" + "\n".join(rows)
