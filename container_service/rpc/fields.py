"""Check the fields of a message and collect all violations, so that one error lists them all."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING
from urllib.parse import unquote

from container_service.containers.errors import FieldViolation, InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from google.protobuf.duration_pb2 import Duration

_APP = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_VOLUME_NAME = re.compile(r"[a-z0-9_]{1,30}")
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NONCE = re.compile(r"[!-~]{1,128}")
_LABEL_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
# The characters of a URL's path and query (RFC 3986), encoded; no fragment and no backslash.
_HTTP_PATH = re.compile(r"/(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*")
_ENV_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,255}")

LABEL_VALUE_LIMIT = 256
LABEL_COUNT_LIMIT = 64
ENV_VALUE_LIMIT = 32_768
ENV_COUNT_LIMIT = 256
ARGUMENT_LIMIT = 32_768
ARGUMENT_COUNT_LIMIT = 256


class Fields:
    """The violations found so far in one message.

    Each check returns the value. After a violation it returns some value of the right type, so that
    the caller can go on to check the other fields; `done` then raises.
    """

    def __init__(self) -> None:
        self._violations: list[FieldViolation] = []

    def wrong(self, field: str, description: str) -> None:
        """Add a violation."""
        self._violations.append(FieldViolation(field, description))

    def done(self) -> None:
        """Raise InvalidRequest if there is any violation."""
        if self._violations:
            raise InvalidRequest(*self._violations)

    def app(self, value: str, default: str) -> str:
        """The app of the message, or the default if it names none."""
        if not value and not default:
            self.wrong("app", "is empty, and ROOST_FLY_APP sets no default: set one of the two")
        elif value and not _APP.fullmatch(value):
            self.wrong("app", "must be up to 63 lower-case letters, digits and hyphens")
        return value or default

    def container_id(self, value: str) -> str:
        """A container's id. It becomes part of a URL's path, so only safe characters pass."""
        return self._match("container_id", value, _ID, "1 to 64 letters, digits, '-' or '_'")

    def name(self, value: str) -> str:
        """A container's name."""
        rule = "1 to 63 lower-case letters, digits and hyphens, no hyphen at either end"
        return self._match("name", value, _NAME, rule)

    def volume_id(self, field: str, value: str) -> str:
        """A volume's id."""
        return self._match(field, value, _ID, "1 to 64 letters, digits, '-' or '_'")

    def volume_name(self, value: str) -> str:
        """A volume's name."""
        rule = "1 to 30 lower-case letters, digits and underscores"
        return self._match("name", value, _VOLUME_NAME, rule)

    def nonce(self, value: str, *, required: bool = False) -> str:
        """A lease nonce: printable ASCII without spaces, because it becomes an HTTP header."""
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
            self.wrong(field, "must contain printable characters only")
        return value

    def http_path(self, field: str, value: str, limit: int) -> str:
        """An absolute URL path that can change neither the host nor the directory it is in."""
        path = unquote(value.partition("?")[0])
        if not value or len(value) > limit:
            self.wrong(field, f"must be 1 to {limit} characters")
        elif not _HTTP_PATH.fullmatch(value):
            self.wrong(field, "must begin with a slash and be a percent-encoded URL path")
        elif path.startswith("//") or "\\" in path:
            self.wrong(field, "must be a path without a host")
        elif ".." in path.split("/"):
            self.wrong(field, "must not contain '..'")
        elif not path.isprintable():
            self.wrong(field, "must not contain control characters")
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
        """A duration in seconds; None if it is not set."""
        if value is None:
            return None
        seconds = value.seconds + value.nanos / 1e9
        # Protobuf allows neither different signs of the two fields nor a second or more of nanos.
        if not low <= seconds <= high or not 0 <= value.nanos < 1_000_000_000:
            self.wrong(field, f"must be between {low:g} s and {high:g} s")
        elif whole and value.nanos:
            self.wrong(field, "must be in whole seconds")
        return seconds

    def labels(self, field: str, labels: Mapping[str, str]) -> dict[str, str]:
        """Labels to set or to filter by."""
        if len(labels) > LABEL_COUNT_LIMIT:
            self.wrong(field, f"must have at most {LABEL_COUNT_LIMIT} entries")
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
            self.wrong(field, f"must have at most {ENV_COUNT_LIMIT} entries")
            return {}
        for key, value in env.items():
            if not _ENV_KEY.fullmatch(key):
                rule = (
                    "must have a key of up to 256 letters, digits or '_', not starting with a digit"
                )
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
    """The path of a map entry. The key is the caller's input, so it is shortened and escaped."""
    return f"{field}[{json.dumps(key[:64])}]"
