"""Checks a message's fields and collects every fault, so that a caller hears of all at once."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING
from urllib.parse import unquote

from container_service.errors import FieldViolation, InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from google.protobuf.duration_pb2 import Duration

_APP = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_VOLUME_NAME = re.compile(r"[a-z0-9_]{1,30}")
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NONCE = re.compile(r"[!-~]{1,128}")
_LABEL_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
# What a URL's path and query are written in; no fragment, no backslash, nothing unprintable.
_HTTP_PATH = re.compile(r"/(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*")
_ENV_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,255}")

LABEL_VALUE_LIMIT = 256
LABEL_COUNT_LIMIT = 64
ENV_VALUE_LIMIT = 32_768
ENV_COUNT_LIMIT = 256
ARGUMENT_LIMIT = 32_768
ARGUMENT_COUNT_LIMIT = 256


class Fields:
    """The faults found so far in one message. Checks return a value that fits, or a stand-in."""

    def __init__(self) -> None:
        self._violations: list[FieldViolation] = []

    def wrong(self, field: str, description: str) -> None:
        """Note a fault."""
        self._violations.append(FieldViolation(field, description))

    def done(self) -> None:
        """Raise InvalidRequest if there was any fault."""
        if self._violations:
            raise InvalidRequest(*self._violations)

    def app(self, value: str, default: str) -> str:
        """The application: the message's, else the configured one."""
        if not value and not default:
            self.wrong("app", "is empty, and the service has no ROOST_FLY_APP")
        elif value and not _APP.fullmatch(value):
            self.wrong("app", "must be up to 63 lower-case letters, digits and hyphens")
        return value or default

    def container_id(self, value: str) -> str:
        """A container's id. Part of a URL's path: nothing else may pass."""
        return self._match("container_id", value, _ID, "1 to 64 letters, digits, '-' or '_'")

    def name(self, value: str) -> str:
        """A container's name."""
        rule = "1 to 63 lower-case letters, digits and hyphens, no hyphen at an end"
        return self._match("name", value, _NAME, rule)

    def volume_id(self, field: str, value: str) -> str:
        """A volume's id."""
        return self._match(field, value, _ID, "1 to 64 letters, digits, '-' or '_'")

    def volume_name(self, value: str) -> str:
        """A volume's name."""
        rule = "1 to 30 lower-case letters, digits and underscores"
        return self._match("name", value, _VOLUME_NAME, rule)

    def nonce(self, value: str, *, required: bool = False) -> str:
        """A lease's nonce. It becomes a header: no spaces, nothing but ASCII."""
        if value or required:
            self._match("lease_nonce", value, _NONCE, "1 to 128 printable ASCII characters")
        return value

    def text(self, field: str, value: str, limit: int, *, required: bool = False) -> str:
        """Text of up to `limit` characters, without control characters."""
        if required and not value:
            self.wrong(field, "must not be empty")
        elif len(value) > limit:
            self.wrong(field, f"must be at most {limit} characters")
        elif not value.isprintable():
            self.wrong(field, "must hold printable characters only")
        return value

    def http_path(self, field: str, value: str, limit: int) -> str:
        """A path at a host that is not the caller's to choose: absolute, and never above itself."""
        path = unquote(value.partition("?")[0])
        if not value or len(value) > limit:
            self.wrong(field, f"must be 1 to {limit} characters")
        elif not _HTTP_PATH.fullmatch(value):
            self.wrong(field, "must begin with a slash and hold what a URL's path may, encoded")
        elif path.startswith("//") or "\\" in path:
            self.wrong(field, "must be a path alone, without a host")
        elif ".." in path.split("/"):
            self.wrong(field, "must not have '..' in it")
        elif not path.isprintable():
            self.wrong(field, "must not have control characters in it")
        return value

    def seconds(
        self,
        field: str,
        value: Duration | None,
        low: float,
        high: float,
        *,
        whole: bool = False,
    ) -> float | None:
        """A duration in seconds; None where it is not set."""
        if value is None:
            return None
        seconds = value.seconds + value.nanos / 1e9
        # Signs that differ, or more than a second of nanos, are no duration (protobuf's own rule).
        if not low <= seconds <= high or not 0 <= value.nanos < 1_000_000_000:
            self.wrong(field, f"must be between {low:g} s and {high:g} s")
        elif whole and value.nanos:
            self.wrong(field, "must be in whole seconds")
        return seconds

    def labels(self, field: str, labels: Mapping[str, str]) -> dict[str, str]:
        """Labels to set or to look for."""
        if len(labels) > LABEL_COUNT_LIMIT:
            self.wrong(field, f"must be at most {LABEL_COUNT_LIMIT}")
            return {}
        for key, value in labels.items():
            if not _LABEL_KEY.fullmatch(key):
                rule = "must have a key of up to 64 letters, digits, '_', '.' or '-'"
                self.wrong(item(field, key), rule)
            elif len(value) > LABEL_VALUE_LIMIT or not value.isprintable():
                rule = f"must be at most {LABEL_VALUE_LIMIT} printable characters"
                self.wrong(item(field, key), rule)
        return dict(labels)

    def env(self, field: str, env: Mapping[str, str]) -> dict[str, str]:
        """Environment variables."""
        if len(env) > ENV_COUNT_LIMIT:
            self.wrong(field, f"must be at most {ENV_COUNT_LIMIT}")
            return {}
        for key, value in env.items():
            if not _ENV_KEY.fullmatch(key):
                rule = "must have a key of up to 256 letters, digits or '_', no digit first"
                self.wrong(item(field, key), rule)
            elif len(value) > ENV_VALUE_LIMIT or "\0" in value:
                rule = f"must be at most {ENV_VALUE_LIMIT} characters, none of them NUL"
                self.wrong(item(field, key), rule)
        return dict(env)

    def command(
        self, field: str, words: Sequence[str], *, required: bool = False
    ) -> tuple[str, ...]:
        """A command and its arguments."""
        if required and not (words and words[0]):
            self.wrong(field, "must not be empty")
        if len(words) > ARGUMENT_COUNT_LIMIT:
            self.wrong(field, f"must be at most {ARGUMENT_COUNT_LIMIT} words")
            return ()
        for index, word in enumerate(words):
            if len(word) > ARGUMENT_LIMIT or "\0" in word:
                rule = f"must be at most {ARGUMENT_LIMIT} characters, none of them NUL"
                self.wrong(f"{field}[{index}]", rule)
        return tuple(words)

    def _match(self, field: str, value: str, pattern: re.Pattern[str], rule: str) -> str:
        if not pattern.fullmatch(value):
            self.wrong(field, f"must be {rule}" if value else f"is empty: must be {rule}")
        return value


def item(field: str, key: str) -> str:
    """The path of a map's entry. The key is the caller's: cut short, and in ASCII."""
    return f"{field}[{json.dumps(key[:64])}]"
