"""Split a JSON list of objects as it arrives, so that a long list is never in memory as a whole."""

from __future__ import annotations

import codecs
import json
import re
from typing import TYPE_CHECKING, Any

from container_service.containers.errors import ProviderUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

#: The most characters of one object. Fly's machines have a few thousand.
OBJECT_LIMIT = 1024 * 1024
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


class JsonListReader:
    """Takes the bytes of a JSON list in pieces, and gives its objects.

    The list is complete only after `close` has returned.
    """

    def __init__(self) -> None:
        self._characters = codecs.getincrementaldecoder("utf-8")()
        self._text = ""
        self._expected = "["
        """The next character must be one of these, `{` for an object; empty after the list."""

    def feed(self, piece: bytes) -> Iterator[dict[str, Any]]:
        """The objects that this piece completes. Any: JSON.

        Raises ProviderUnavailable if the bytes are not a JSON list of objects.
        """
        try:
            more = self._characters.decode(piece)
        except UnicodeDecodeError as error:
            raise _malformed() from error
        self._text += more
        if "}" not in more and self._text.startswith("{") and len(self._text) <= OBJECT_LIMIT:
            # Still inside of an object: nothing to decode.
            return
        position = 0
        try:
            while (start := self._skip(position)) < len(self._text):
                position = start
                character = self._text[position]
                if not self._expected or character not in self._expected:
                    raise _malformed()
                if character != "{":
                    position += 1
                    self._expected = {"[": "{]", ",": "{", "]": ""}[character]
                    continue
                found = self._object(position)
                if found is None:
                    break
                yield found[0]
                position = found[1]
                self._expected = ",]"
        finally:
            self._text = self._text[position:]

    def close(self) -> None:
        """Raises ProviderUnavailable if the list is not complete."""
        if self._expected or self._text.strip():
            raise _malformed()

    def _skip(self, position: int) -> int:
        space = _SPACE.match(self._text, position)
        return position if space is None else space.end()

    def _object(self, position: int) -> tuple[dict[str, Any], int] | None:
        """The object that begins here, and where it ends; None if it is not complete.

        A decoder that fails cannot tell an object that is cut off from one that is wrong: it tries
        again with more text, and gives up at OBJECT_LIMIT.
        """
        try:
            value, end = _DECODER.raw_decode(self._text, position)
        except (ValueError, RecursionError) as error:
            if len(self._text) - position > OBJECT_LIMIT:
                raise _malformed() from error
            return None
        return value, end


def _malformed() -> ProviderUnavailable:
    return ProviderUnavailable("the provider answered a list request without a list: retry")
