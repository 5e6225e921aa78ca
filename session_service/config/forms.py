"""The forms that the text of a variable can have."""

from __future__ import annotations

import logging
import re
import string
from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from session_service.clients.bucket import parse_address
from session_service.config.reading import Form

if TYPE_CHECKING:
    from collections.abc import Callable


def words(*known: str) -> Form:
    """One of some words, in whichever case; read as lower case."""

    def parse(text: str) -> str:
        if text.lower() not in known:
            raise ValueError(text)
        return text.lower()

    return Form(parse, f"{', '.join(known[:-1])} or {known[-1]}")


def whole(low: int, high: int) -> Form:
    """A whole number between two, both included."""

    def parse(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise ValueError(text)
        return value

    return Form(parse, f"a whole number from {low} to {high}")


def seconds(low: float, high: float) -> Form:
    """A number of seconds between two, both included, that stays a number."""
    return Form(_number(low, high), _seconds_rule(low, high))


def span(low: float, high: float) -> Form:
    """A number of seconds between two, both included, read as a timedelta."""
    number = _number(low, high)
    return Form(lambda text: timedelta(seconds=number(text)), _seconds_rule(low, high))


def span_or_never(low: float, high: float) -> Form:
    """The same, or 0, which means never."""
    within = span(low, high)

    def parse(text: str) -> timedelta:
        value: timedelta = timedelta(0) if float(text) == 0 else within.parse(text)
        return value

    return Form(parse, f"{within.rule}, or 0 for never")


def _number(low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = float(text)
        if not low <= value <= high:  # also refuses nan
            raise ValueError(text)
        return value

    return parse


def _seconds_rule(low: float, high: float) -> str:
    return f"a number of seconds from {low} to {high}"


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


#: What a template may name.
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


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
        raise ValueError(text)
    return text.lower() in ("true", "1", "yes")


#: The text search configurations that PostgreSQL 15 and newer come with.
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


DATABASE = Form(_database, "a postgresql:// address")
ADDRESS = Form(_address, "host:port")
APP = Form(_app, "an app's name")
TEMPLATE = Form(
    _template,
    "an http or https URL that names {container_id}, and {app} if need be, and nothing else",
)
IMAGE = Form(_image, "an image's name")
TRUTH = Form(_truth, "true or false")
LANGUAGE = Form(
    _language, "a language that PostgreSQL has a text search configuration for, or simple"
)
LEVEL = Form(_level, "a level: DEBUG, INFO, WARNING or ERROR")
BUCKET = Form(
    parse_address, "s3://key:secret@host[:port]/bucket?region=…, with &tls=false for plain HTTP"
)
