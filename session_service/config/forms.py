"""How the text of an environment variable is parsed and checked."""

from __future__ import annotations

import logging
import re
import string
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psycopg
from psycopg.conninfo import conninfo_to_dict

from session_service.clients.bucket import parse_address

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class Form:
    """A parser of texts, and the rule that it checks. Any: values of different types."""

    parse: Callable[[str], Any]
    """Returns the value. Raises ValueError for a text that breaks the rule."""

    rule: str
    """The rule in words that follow "is not": "a whole number from 1 to 9"."""


def words(*known: str) -> Form:
    """One of the known words, in upper or lower case; the value is in lower case."""

    def parse(text: str) -> str:
        if text.lower() not in known:
            raise ValueError(text)
        return text.lower()

    return Form(parse, f"{', '.join(known[:-1])} or {known[-1]}")


def whole(low: int, high: int) -> Form:
    """A whole number from `low` to `high`, both included."""

    def parse(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise ValueError(text)
        return value

    return Form(parse, f"a whole number from {low} to {high}")


def seconds(low: float, high: float) -> Form:
    """Seconds from `low` to `high`, both included; the value is a float."""
    return Form(_number(low, high), _seconds_rule(low, high))


def span(low: float, high: float) -> Form:
    """Seconds from `low` to `high`, both included; the value is a timedelta."""
    number = _number(low, high)
    return Form(lambda text: timedelta(seconds=number(text)), _seconds_rule(low, high))


def span_or_never(low: float, high: float) -> Form:
    """As `span`, or 0, which means never."""
    within = span(low, high)

    def parse(text: str) -> timedelta:
        value: timedelta = timedelta(0) if float(text) == 0 else within.parse(text)
        return value

    return Form(parse, f"{within.rule}, or 0 for never")


def _number(low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = float(text)
        if not low <= value <= high:  # also rejects nan
            raise ValueError(text)
        return value

    return parse


def _seconds_rule(low: float, high: float) -> str:
    return f"a number of seconds from {low} to {high}"


def _database(text: str) -> str:
    try:
        given = conninfo_to_dict(text)
    except psycopg.ProgrammingError:
        # Its text may quote the password.
        raise ValueError from None
    ports = str(given.get("port") or "").split(",")
    hosts = str(given.get("hostaddr") or given.get("host") or "").split(",")
    if len(ports) not in (1, len(hosts)):
        raise ValueError
    for port in filter(None, ports):
        if not port.isascii() or not port.isdigit() or not 0 < int(port) <= 65_535:
            raise ValueError
    return text


def _address(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise ValueError(text)
    # gRPC reads an IPv6 address without brackets as another one, and takes port 443.
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise ValueError(text)
    return text


def _app(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,62}", text):
        raise ValueError(text)
    return text


#: The names that a URL template may contain.
NAMES = frozenset({"container_id", "app"})


def _template(text: str) -> str:
    names = {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}
    known = "container_id" in names and names <= NAMES
    parts = urlsplit(text.format(container_id="id", app="app")) if known else None
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(text)
    return text


def _image(text: str) -> str:
    if len(text) > 512 or not text.isprintable():
        raise ValueError(text)
    return text


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
        raise ValueError(text)
    return text.lower() in ("true", "1", "yes")


#: The text search configurations that PostgreSQL ships since version 15.
LANGUAGES = frozenset(
    {
        *("simple", "arabic", "armenian", "basque", "catalan", "danish", "dutch", "english"),
        *("finnish", "french", "german", "greek", "hindi", "hungarian", "indonesian", "irish"),
        *("italian", "lithuanian", "nepali", "norwegian", "portuguese", "romanian", "russian"),
        *("serbian", "spanish", "swedish", "tamil", "turkish", "yiddish"),
    }
)


def _language(text: str) -> str:
    if text.lower() not in LANGUAGES:
        raise ValueError(text)
    return text.lower()


def _level(text: str) -> str:
    if text.upper() not in logging.getLevelNamesMapping():
        raise ValueError(text)
    return text.upper()


DATABASE = Form(
    _database,
    "an address of PostgreSQL: postgresql://user:password@host[:port][,host[:port]…]/name?option=…"
    ", or libpq's key=value pairs",
)
ADDRESS = Form(_address, "host:port")
PATH = Form(str, "a path")
APP = Form(_app, "an app's name")
TEMPLATE = Form(
    _template,
    "an http or https URL that names {container_id}, and {app} if need be, and nothing else",
)
IMAGE = Form(_image, "an image's name")
BOOLEAN = Form(_boolean, "true or false")
LANGUAGE = Form(
    _language, "a language that PostgreSQL has a text search configuration for, or simple"
)
LEVEL = Form(_level, "a level: DEBUG, INFO, WARNING or ERROR")
BUCKET = Form(
    parse_address,
    "s3://key:secret@host[:port]/bucket?region=…, or s3://host[:port]/bucket?region=…"
    "&credentials=environment; further options: session_token, addressing=virtual, tls=false",
)
