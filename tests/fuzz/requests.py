"""Requests that no client of ours sends: random bytes, damaged messages, odd values, huge headers.

No request leads to a program that a container runs: no image of theirs exists, and no container id.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from google.protobuf import message_factory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    #: Any: descriptors are of one class at run time, and of another in the stubs.
    Method = Any
    Descriptor = Any
    Field = Any

#: Longer than gRPC's limit of a message, which is 4 MiB.
TOO_LONG = 4 * 1024 * 1024 + 1
#: One request of so many is too long: each costs as much as a hundred others.
TOO_LONG_ONE_OF = 2_000
#: How often an odd message is sent, with other damage each time. To make one is what costs most.
USES = 6
#: Valid in UTF-8, unlike what replaces it.
PLACEHOLDER = b"<!utf8!>"
NOT_UTF8 = (b"\xff\xfe\xff\xfe\xff\xfe\xff\xfe", b"\xc0\xaf" * 4, b"\xed\xa0\x80\xed\xbf\xbf!!")
#: Start of the group with the number 1, which no message of ours has: a parser must skip it.
GROUP = b"\x0b"
#: Texts that are right in many fields, and such that are right in few or none.
PLAIN_TEXTS = ("nest", "wren", "ceo", "user", "00000000-0000-4000-8000-000000000000")
ODD_TEXTS = (
    *("", "nest", "wren", "ceo", "mine", "default", "roost/none", "user", "900s", "*", "{}", "0"),
    *("00000000-0000-4000-8000-000000000000", "01a202bb-7485-73e5-b9b9-03c766390d10", "a" * 129),
    *(
        "a" * 5_000,
        "\x00",
        "a\nb",
        "é" * 300,
        "😀" * 1_000,
        "../../etc",
        "%s{0}",
        "\u202e",
        "'; --",
    ),
    *('project_id = "nest"', "live = true AND (", "(" * 300, "/state", "a=b", "persistence"),
)
PLAIN_NUMBERS = (1, 2, 7)
NUMBERS = (0, 1, 2, 7, 100, 501, 65_536, 2**31 - 1, -1, -(2**31))
LONG_NUMBERS = (*NUMBERS, 2**31, 253_402_300_799, 253_402_300_800, 2**63 - 1, -(2**63))
#: How likely each value is odd. In a message of the first kind it is one value or none, so that the
#: others lead deep into the code; in one of the second kind all are.
ODDNESS = (0.08, 1.0)
REALS = (0.0, -0.0, 1.5, 1e308, -1e308, float("inf"), float("nan"))


@dataclass(frozen=True, slots=True)
class Request:
    """One request: `messages` are the bytes that are sent, one unless the client streams."""

    method: Method
    kind: str
    messages: Sequence[bytes]
    metadata: tuple[tuple[str, str | bytes], ...] = ()


@dataclass
class Fuzzer:
    """Makes requests to these methods. The seed decides which. `texts` are additional strings that
    the messages have, such as ids of sessions that exist.
    """

    seed: int
    methods: Sequence[Method]
    texts: Iterable[str] = ()
    _left: dict[str, tuple[int, bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._plain = (*PLAIN_TEXTS, *self.texts)
        self._oddness = 1.0
        self._kinds: dict[str, Callable[[Method], Sequence[bytes]]] = {
            "random bytes": self._random_bytes,
            "damaged": self._damaged,
            "odd values": lambda method: [self._fresh(method)],
            "deep": self._deep,
            "no UTF-8": self._not_utf8,
            "many messages": self._many,
        }

    def next(self) -> Request:
        """The next request, to any method."""
        method = self._random.choice(self.methods)
        if self._random.randrange(TOO_LONG_ONE_OF) == 0:
            return Request(method, "too long", [bytes(TOO_LONG)])
        kind = self._random.choice((*self._kinds, "headers"))
        if kind == "headers":
            return Request(method, kind, [self._message(method)], self._headers())
        return Request(method, kind, self._kinds[kind](method))

    def _random_bytes(self, _: Method) -> list[bytes]:
        return [self._random.randbytes(self._random.choice((0, 1, 2, 8, 30, 200, 5_000)))]

    def _damaged(self, method: Method) -> list[bytes]:
        return [self._damage(self._message(method))]

    def _damage(self, message: bytes) -> bytes:
        data = bytearray(message)
        for _ in range(self._random.randint(1, 4)):
            place = self._random.randrange(len(data) + 1)
            match self._random.randrange(6):
                case 0:
                    data[place:place] = self._random.randbytes(self._random.randint(1, 8))
                case 1:
                    del data[place : place + self._random.randint(1, 8)]
                case 2 if place < len(data):
                    data[place] ^= 1 << self._random.randrange(8)
                case 3:
                    del data[place:]
                case 4:
                    # Twice the same: the last one counts, and a list has both.
                    data += data[place:]
                case _:
                    # A length or a number that is longer than any.
                    data[place:place] = b"\xff" * self._random.randint(1, 11)
        return bytes(data[:50_000])

    def _deep(self, method: Method) -> list[bytes]:
        depth = self._random.choice((50, 101, 1_000, 20_000))
        match self._random.randrange(4):
            case 0:
                return [GROUP * depth]
            case 1:
                return [GROUP * depth + b"\x0c" * depth]
            case 2:
                return [_nested(self._random.randint(1, 20), b"", depth)]
            case _:
                return [_nested_values(method.input_type, depth) or self._message(method)]

    def _not_utf8(self, method: Method) -> list[bytes]:
        data = self._fresh(method, PLACEHOLDER.decode())
        return [data.replace(PLACEHOLDER, self._random.choice(NOT_UTF8))]

    def _many(self, method: Method) -> list[bytes]:
        """None, or several, of a stream. Only one otherwise."""
        count = self._random.randint(0, 4) if method.client_streaming else 1
        made = [self._message(method) for _ in range(count)]
        return [self._damage(each) if self._random.random() < 0.3 else each for each in made]

    def _headers(self) -> tuple[tuple[str, str | bytes], ...]:
        some = self._random
        size = some.choice((10, 1_000, 7_000, 20_000, 100_000))
        match some.randrange(4):
            case 0:
                return (("x-request-id", "r" * size),)
            case 1:
                return (("x-odd-bin", some.randbytes(size)),)
            case 2:
                return tuple((f"x-odd-{number}", "v" * 20) for number in range(size // 50))
            case _:
                odd = ("Bearer " + "~" * size, " ", "!\"#$%&'()*+,-./:;<=>?@[]^_`{|}")
                return (("authorization", some.choice(odd)), ("x-request-id", some.choice(odd)))

    def _message(self, method: Method) -> bytes:
        """A message with odd values, which is used several times."""
        left, message = self._left.get(method.full_name, (0, b""))
        if left == 0:
            left, message = USES, self._fresh(method)
        self._left[method.full_name] = (left - 1, message)
        return message

    def _fresh(self, method: Method, *texts: str) -> bytes:
        """A message of the method's type, with these texts only if any are given."""
        self._oddness = self._random.choice(ODDNESS)
        data: bytes = self._fill(method.input_type, 0, texts).SerializeToString()
        return data

    def _fill(self, descriptor: Descriptor, depth: int, texts: Sequence[str]) -> Any:
        """A message with random fields set. Any: messages of every type."""
        message: Any = message_factory.GetMessageClass(descriptor)()
        # Some have all fields, and some few: else no request would be valid.
        likely = self._random.choice((0.3, 0.6, 1.0))
        for each in descriptor.fields:
            if depth > 5 or self._random.random() > likely:
                continue
            if each.message_type and each.message_type.GetOptions().map_entry:
                self._fill_map(getattr(message, each.name), each.message_type, depth, texts)
            elif each.is_repeated:
                values = [
                    self._value(each, depth, texts) for _ in range(self._random.randint(0, 3))
                ]
                getattr(message, each.name).extend(values)
            elif each.message_type:
                getattr(message, each.name).CopyFrom(self._value(each, depth, texts))
            else:
                setattr(message, each.name, self._value(each, depth, texts))
        return message

    def _fill_map(self, target: Any, entry: Descriptor, depth: int, texts: Sequence[str]) -> None:
        value = entry.fields_by_name["value"]
        for _ in range(self._random.randint(0, 2)):
            key = self._value(entry.fields_by_name["key"], depth, texts)
            if value.message_type:
                target[key].CopyFrom(self._value(value, depth, texts))
            else:
                target[key] = self._value(value, depth, texts)

    def _value(self, described: Field, depth: int, texts: Sequence[str]) -> Any:
        """A value of the field's type."""
        some, kind = self._random, described.cpp_type
        odd = some.random() < self._oddness
        if kind == described.CPPTYPE_MESSAGE:
            return self._fill(described.message_type, depth + 1, texts)
        if kind == described.CPPTYPE_STRING:
            text = some.choice(texts or (ODD_TEXTS if odd else self._plain))
            return text.encode() if described.type == described.TYPE_BYTES else text
        if kind == described.CPPTYPE_BOOL:
            return some.random() < 0.5
        if kind == described.CPPTYPE_ENUM:
            known = [value.number for value in described.enum_type.values]
            return some.choice((99, -1, 2**31 - 1) if odd else known)
        if kind in (described.CPPTYPE_DOUBLE, described.CPPTYPE_FLOAT):
            return some.choice(REALS)
        long = kind in (described.CPPTYPE_INT64, described.CPPTYPE_UINT64)
        unsigned = kind in (described.CPPTYPE_UINT32, described.CPPTYPE_UINT64)
        number = some.choice((LONG_NUMBERS if long else NUMBERS) if odd else PLAIN_NUMBERS)
        return abs(number) if unsigned else number


def _varint(number: int) -> bytes:
    """The number in the encoding of protobuf: seven bits in each byte, the lowest first."""
    data = bytearray()
    while number > 0x7F:
        data.append(number & 0x7F | 0x80)
        number >>= 7
    data.append(number)
    return bytes(data)


@cache
def _nested(number: int, data: bytes, depth: int) -> bytes:
    """Messages in each other, as the field `number`. Those without such a field skip it."""
    # A thousand is ten times what parsers allow, and the message grows with the square.
    for _ in range(min(depth, 1_000)):
        data = _varint(number << 3 | 2) + _varint(len(data)) + data
    return data


@cache
def _nested_values(descriptor: Descriptor, depth: int) -> bytes:
    """A message whose google.protobuf.Struct has so deep values; empty if it can have none."""
    path = _path_to_struct(descriptor, ())
    if path is None:
        return b""
    value = b""
    for _ in range(min(depth, 1_000)):
        # Value.list_value, and in it ListValue.values.
        inner = b"\x0a" + _varint(len(value)) + value
        value = b"\x32" + _varint(len(inner)) + inner
    entry = b"\x0a\x01k\x12" + _varint(len(value)) + value
    data: bytes = b"\x0a" + _varint(len(entry)) + entry
    for number in reversed(path):
        data = _nested(number, data, 1)
    return data


def _path_to_struct(descriptor: Descriptor, above: tuple[int, ...]) -> tuple[int, ...] | None:
    if descriptor.full_name == "google.protobuf.Struct":
        return above
    for each in descriptor.fields if len(above) < 4 else ():
        if each.message_type:
            found = _path_to_struct(each.message_type, (*above, each.number))
            if found is not None:
                return found
    return None
