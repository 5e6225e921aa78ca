"""Split a JSON list of objects as it arrives, so that a long list is never in memory as a whole.

Each character is looked at a constant number of times, however the list is cut into pieces.
"""

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
#: What changes where an object ends, outside of a string and inside of one.
_BRACES = re.compile(r'["{}]')
_QUOTES = re.compile(r'["\\]')


class _Unfinished:
    """An object that is cut off: its pieces so far, and whether its end has come.

    A decoder that fails cannot tell whether the object is cut off or wrong, and trying it again
    with each piece reads the first pieces again and again. So the braces are counted instead.
    """

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._depth = 0
        self._quoted = False
        self._escaped = False
        self.size = 0
        self.ended = False

    def add(self, piece: str) -> None:
        """Add the next characters; the first of all is `{`. More than the object may follow."""
        self._pieces.append(piece)
        self.size += len(piece)
        position = 0
        while position < len(piece) and not self.ended:
            if self._escaped:
                self._escaped = False
                position += 1
                continue
            found = (_QUOTES if self._quoted else _BRACES).search(piece, position)
            if found is None:
                return
            position = found.end()
            match found[0]:
                case "\\":
                    self._escaped = True
                case '"':
                    self._quoted = not self._quoted
                case "{":
                    self._depth += 1
                case _:
                    self._depth -= 1
                    self.ended = self._depth == 0

    def text(self) -> str:
        """All that was added."""
        return "".join(self._pieces)


class JsonListReader:
    """Takes the bytes of a JSON list in pieces, and gives its objects.

    The list is complete only after `close` has returned.
    """

    def __init__(self) -> None:
        self._characters = codecs.getincrementaldecoder("utf-8")()
        self._unfinished: _Unfinished | None = None
        self._expected = "["
        """The next character must be one of these, `{` for an object; empty after the list."""

    def feed(self, piece: bytes) -> Iterator[dict[str, Any]]:
        """The objects that this piece completes. Any: JSON. Read them all before the next piece.

        Raises ProviderUnavailable if the bytes are not a JSON list of objects.
        """
        text = self._decoded(piece)
        if self._unfinished is not None:
            self._unfinished.add(text)
            if not self._unfinished.ended:
                self._check_size(self._unfinished)
                return
            text, self._unfinished = self._unfinished.text(), None
        position = 0
        while (start := self._skip(text, position)) < len(text):
            position = start
            character = text[position]
            if not self._expected or character not in self._expected:
                raise _malformed()
            if character != "{":
                position += 1
                self._expected = {"[": "{]", ",": "{", "]": ""}[character]
                continue
            found = self._object(text, position)
            if found is None:
                return
            yield found[0]
            position = found[1]
            self._expected = ",]"

    def close(self) -> None:
        """Raises ProviderUnavailable if the list is not complete."""
        self._decoded(b"", final=True)
        if self._expected or self._unfinished is not None:
            raise _malformed()

    def _decoded(self, piece: bytes, *, final: bool = False) -> str:
        try:
            return self._characters.decode(piece, final)
        except UnicodeDecodeError as error:
            raise _malformed() from error

    @staticmethod
    def _skip(text: str, position: int) -> int:
        space = _SPACE.match(text, position)
        return position if space is None else space.end()

    def _object(self, text: str, position: int) -> tuple[dict[str, Any], int] | None:
        """The object that begins here, and where it ends; None if it is not complete."""
        try:
            value, end = _DECODER.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            unfinished = _Unfinished()
            unfinished.add(text[position:])
            if unfinished.ended:
                raise _malformed() from error
            self._check_size(unfinished)
            self._unfinished = unfinished
            return None
        return value, end

    @staticmethod
    def _check_size(unfinished: _Unfinished) -> None:
        if unfinished.size > OBJECT_LIMIT:
            raise _malformed()


def _malformed() -> ProviderUnavailable:
    return ProviderUnavailable("the provider answered a list request without a list: retry")
