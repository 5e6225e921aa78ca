"""Agent sessions (conversations of LLM agents): their values, and their token counts."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime, timedelta

    from session_service.domain.decision import Request

#: The roles that a message can have.
ROLES = ("system", "developer", "user", "assistant", "tool")
#: Bytes of UTF-8 text for one token, in estimates. An estimate replaces only a count that the
#: caller did not give, and is stored separately from the counts (`estimated_tokens`).
BYTES_PER_TOKEN = 4


class AgentState(StrEnum):
    """Whether a session accepts turns. EXPIRED: idle for too long. ENDED: by EndAgentSession."""

    ACTIVE = "ACTIVE"
    EXPIRED = "EXPIRED"
    ENDED = "ENDED"


@dataclass(frozen=True, slots=True)
class AgentSession:
    """A session's row.

    Turns are numbered 1, 2, 3 … without a gap; `turn_count` is the newest turn's number. The sums
    (`total_tokens`, `estimated_tokens`, `total_bytes`) are over the turns that the session has now,
    so a rewind lowers them. `idle_timeout` None: the session never expires.
    """

    tenant: str
    session_id: str
    agent_role: str
    startup_tokens: int | None
    state: AgentState
    labels: str
    """A JSON object of strings."""
    head_branch: int
    turn_count: int
    total_tokens: int
    estimated_tokens: int
    total_bytes: int
    idle_timeout: timedelta | None
    created_at: datetime
    last_query_at: datetime
    idle_from: datetime
    ended_at: datetime | None
    purge_at: datetime | None
    parent_session_id: str | None
    parent_turn: int | None
    startup_context: str | None
    """None if the statement did not read it: it may be large."""

    @property
    def expire_time(self) -> datetime | None:
        """When it may expire without another turn; None if it never expires or is not ACTIVE."""
        if self.idle_timeout is None or self.state is not AgentState.ACTIVE:
            return None
        return max(self.last_query_at, self.idle_from) + self.idle_timeout

    @property
    def estimated_startup_tokens(self) -> int:
        """The startup context's estimate; 0 if the caller gave a count, or if it was not read."""
        text = self.startup_context
        return estimate(len(text.encode())) if text and self.startup_tokens is None else 0


@dataclass(frozen=True, slots=True)
class Part:
    """An attachment of a message: an image, a sound, a file."""

    mime_type: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a turn. `tokens` None: the caller gave no count."""

    role: str
    content: str
    tokens: int | None = None
    # Any: JSON.
    extra: Mapping[str, Any] | None = None
    """The rare fields, by name: tool_calls, tool_call_id, name, metadata. None if it has none."""
    parts: tuple[Part, ...] = ()

    @property
    def estimated_tokens(self) -> int:
        """The estimate of content and tool calls; 0 if the caller gave a count."""
        if self.tokens is not None:
            return 0
        calls = (self.extra or {}).get("tool_calls", ())
        size = len(self.content.encode()) + sum(len(each["arguments"].encode()) for each in calls)
        return estimate(size)


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn's row. `total_tokens`: the conversation's sum up to and including this turn."""

    branch_id: int
    turn_number: int
    tokens: int
    estimated_tokens: int
    total_tokens: int
    create_time: datetime
    messages: tuple[Message, ...] = ()


@dataclass(frozen=True, slots=True)
class NewTurn:
    """A turn to append. `size`: the bytes that it takes in a reply."""

    messages: tuple[Message, ...]
    size: int
    tokens: int = field(init=False)
    estimated_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        """Sum once: the turn's row and the session's row both need the sums."""
        object.__setattr__(self, "tokens", sum(each.tokens or 0 for each in self.messages))
        estimated = sum(each.estimated_tokens for each in self.messages)
        object.__setattr__(self, "estimated_tokens", estimated)


@dataclass(frozen=True, slots=True)
class NewSession:
    """A session to create. `session_id` None: the service generates one."""

    session_id: str | None
    agent_role: str
    startup_context: str
    startup_tokens: int | None
    labels: str
    idle_timeout: timedelta | None


@dataclass(frozen=True, slots=True)
class Append:
    """A turn to append to a session.

    `expected_turn_count` None: append after however many turns there are. `revive`: append to an
    EXPIRED session too, which makes it ACTIVE.
    """

    request: Request
    session_id: str
    turn: NewTurn
    expected_turn_count: int | None
    revive: bool


@dataclass(frozen=True, slots=True)
class ImportedSession:
    """A session of a dump. A time that is None becomes the time of the import."""

    session_id: str
    new: NewSession
    created_at: datetime | None
    last_query_at: datetime | None


@dataclass(frozen=True, slots=True)
class ImportedTurn:
    """A turn of a dump. `record`: its number in the dump, from 1, for error reports."""

    record: int
    session_id: str
    turn_number: int
    turn: NewTurn
    create_time: datetime | None


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits of a context: bytes, tokens, turns; None is no limit.

    `estimates_count`: estimated tokens count towards `max_tokens`.
    """

    max_bytes: int
    max_tokens: int | None = None
    last_turns: int | None = None
    estimates_count: bool = True


@dataclass(frozen=True, slots=True)
class SessionFilter:
    """Conditions on sessions, joined by AND; None or empty is no condition."""

    agent_role: str | None = None
    labels: str | None = None
    """A JSON object of strings; the session has all of these labels."""
    active_since: datetime | None = None
    states: tuple[AgentState, ...] = ()
    session_ids: tuple[str, ...] = ()


def estimate(size: int) -> int:
    """The estimated tokens of `size` bytes of text, rounded up."""
    return -(-size // BYTES_PER_TOKEN)


def session_id(agent_role: str, unix_seconds: int, random_number: int) -> str:
    """A generated session id: role, seconds since 1970, the last six digits of a random number."""
    return f"{agent_role}_{unix_seconds}_{random_number % 1_000_000:06d}"


def dump_extras(messages: Sequence[Message]) -> str | None:
    """The column `extras`: a JSON array with one object (or null) for each message.

    An object has the message's `extra`, and the type and length of its parts, whose bytes are in
    the column `attachments`. None if no message has either.
    """
    if not any(each.extra or each.parts for each in messages):
        return None
    return json.dumps([_dump_extra(each) for each in messages])


def _dump_extra(message: Message) -> dict[str, Any] | None:
    found = dict(message.extra or {})
    if message.parts:
        found["parts"] = [
            {"mime_type": part.mime_type, "bytes": len(part.data)} for part in message.parts
        ]
    return found or None


def load_messages(
    roles: Sequence[str],
    contents: Sequence[str],
    counts: Sequence[int | None],
    extras: str | None,
    attachments: Sequence[bytes] | None,
) -> tuple[Message, ...]:
    """A turn's messages from the arrays of its row: the inverse of `dump_extras`.

    JSON numbers become floats, as google.protobuf.Struct has them.
    """
    if extras is None:
        return tuple(map(Message, roles, contents, counts))
    data = iter(attachments or ())
    messages = []
    for role, content, count, extra in zip(
        roles, contents, counts, json.loads(extras, parse_int=float), strict=True
    ):
        parts: tuple[Part, ...] = ()
        if extra and "parts" in extra:
            kinds = extra.pop("parts")
            parts = tuple(Part(kind["mime_type"], next(data)) for kind in kinds)
        messages.append(Message(role, content, count, extra or None, parts))
    return tuple(messages)
