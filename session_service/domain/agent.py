"""Agent sessions: what a conversation is, and the arithmetic of its turns."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime, timedelta

    from session_service.domain.decision import Request

#: Who can say something.
ROLES = ("system", "developer", "user", "assistant", "tool")
#: A rough token: this many bytes of text. Only where the caller gave no count, and marked so.
BYTES_PER_TOKEN = 4


class AgentState(StrEnum):
    """Where a session stands."""

    ACTIVE = "ACTIVE"
    EXPIRED = "EXPIRED"
    ENDED = "ENDED"


@dataclass(frozen=True, slots=True)
class AgentSession:
    """A session's row. `idle_timeout` None: it never expires."""

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
    """None where it was not read."""

    @property
    def expire_time(self) -> datetime | None:
        """When it may expire unless a turn comes; None where it never does, or has."""
        if self.idle_timeout is None or self.state is not AgentState.ACTIVE:
            return None
        return max(self.last_query_at, self.idle_from) + self.idle_timeout

    @property
    def estimated_startup_tokens(self) -> int:
        """The estimate for a startup context that was read and came without a count."""
        text = self.startup_context
        return estimate(len(text.encode())) if text and self.startup_tokens is None else 0


@dataclass(frozen=True, slots=True)
class Part:
    """Something in a message that is not text."""

    mime_type: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Message:
    """What one party said. `tokens` None: the caller gave no count."""

    role: str
    content: str
    tokens: int | None = None
    # Any: JSON.
    extra: Mapping[str, Any] | None = None
    """What few messages have: tool_calls, tool_call_id, name, metadata."""
    parts: tuple[Part, ...] = ()

    @property
    def estimated_tokens(self) -> int:
        """The estimate where no count was given, else 0."""
        if self.tokens is not None:
            return 0
        calls = (self.extra or {}).get("tool_calls", ())
        size = len(self.content.encode()) + sum(len(each["arguments"].encode()) for each in calls)
        return estimate(size)


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn's row."""

    branch_id: int
    turn_number: int
    tokens: int
    estimated_tokens: int
    total_tokens: int
    create_time: datetime
    messages: tuple[Message, ...] = ()


@dataclass(frozen=True, slots=True)
class NewTurn:
    """A turn to append. `size` is what it takes in a reply, in bytes."""

    messages: tuple[Message, ...]
    size: int
    tokens: int = field(init=False)
    estimated_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        """Count once: the sums go into the turn and into the session."""
        object.__setattr__(self, "tokens", sum(each.tokens or 0 for each in self.messages))
        estimated = sum(each.estimated_tokens for each in self.messages)
        object.__setattr__(self, "estimated_tokens", estimated)


@dataclass(frozen=True, slots=True)
class Opening:
    """A new session as asked for. `session_id` None: one is drawn."""

    session_id: str | None
    agent_role: str
    startup_context: str
    startup_tokens: int | None
    labels: str
    idle_timeout: timedelta | None


@dataclass(frozen=True, slots=True)
class Append:
    """An append as asked for."""

    request: Request
    session_id: str
    turn: NewTurn
    expected_turn_count: int | None
    revive: bool


@dataclass(frozen=True, slots=True)
class Imported:
    """A session of a dump. Times that are None are the import's."""

    session_id: str
    opening: Opening
    created_at: datetime | None
    last_query_at: datetime | None


@dataclass(frozen=True, slots=True)
class ImportedTurn:
    """A turn of a dump, and which record of the dump it is."""

    record: int
    session_id: str
    turn_number: int
    turn: NewTurn
    create_time: datetime | None


@dataclass(frozen=True, slots=True)
class Budget:
    """How much of a conversation to read: at most so many tokens, turns and bytes."""

    max_bytes: int
    max_tokens: int | None = None
    last_turns: int | None = None
    estimates_count: bool = True


@dataclass(frozen=True, slots=True)
class SessionFilter:
    """Which sessions: those that satisfy all that is set."""

    agent_role: str | None = None
    labels: str | None = None
    """A JSON object; the session has all of them."""
    active_since: datetime | None = None
    states: tuple[AgentState, ...] = ()
    session_ids: tuple[str, ...] = ()


def estimate(size: int) -> int:
    """How many tokens so many bytes of text roughly are."""
    return -(-size // BYTES_PER_TOKEN)


def session_id(agent_role: str, unix_seconds: int, draw: int) -> str:
    """An id to give to a session: role, seconds, and six digits out of `draw`."""
    return f"{agent_role}_{unix_seconds}_{draw % 1_000_000:06d}"


def dump_extras(messages: Sequence[Message]) -> str | None:
    """The messages' extras and the kinds of their parts as one JSON array; None for none at all."""
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
    """A turn's messages from the arrays of its row."""
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
