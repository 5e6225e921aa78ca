"""Lines of a dump: our own records, or whole sessions as in-memory stores have them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from google.protobuf import json_format

from roost.agent.v1 import agent_session_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator

#: What a whole session's line calls our fields.
_TIMES = {"created_at": "create_time", "last_query_at": "last_query_time"}
_SESSION = ("session_id", "agent_role", "startup_context", "labels")
_MESSAGE = ("role", "content", "tokens", "tool_calls", "tool_call_id", "name", "metadata")


class BadLine(Exception):
    """A line that is no record; the message says why."""


def read_line(line: str) -> list[pb.AgentSessionRecord]:
    """The records that a line stands for. Raises BadLine."""
    try:
        value = json.loads(line)
        if not isinstance(value, dict):
            raise BadLine("is not a JSON object")
        if "conversation_history" in value:
            return list(_whole(value))
        return [json_format.ParseDict(value, pb.AgentSessionRecord())]
    except json_format.ParseError as error:
        # Its first line: others list the fields of one of the two.
        why = str(error).partition("\n")[0]
        raise BadLine(f"is neither a record nor a session with its history: {why}") from None
    except (ValueError, RecursionError) as error:
        raise BadLine(f"cannot be read: {error}") from None
    except (TypeError, AttributeError, KeyError) as error:
        raise BadLine(f"is not a session with its conversation_history: {error!r}") from None


def _whole(value: dict[str, Any]) -> Iterator[pb.AgentSessionRecord]:
    """A session and its turns: one without a time is as old as its session's last query, and not as
    the import. Any: JSON.
    """
    session = {name: value[name] for name in _SESSION if value.get(name)}
    session |= {ours: _time(value[name]) for name, ours in _TIMES.items() if value.get(name)}
    yield json_format.ParseDict({"session": session}, pb.AgentSessionRecord())
    for number, messages in enumerate(_turns(value["conversation_history"]), start=1):
        turn: dict[str, Any] = {
            "turn_number": number,
            "messages": [_message(message) for message in messages],
        }
        if at := messages[0].get("created_at"):
            turn["create_time"] = _time(at)
        elif known := session.get("last_query_time") or session.get("create_time"):
            turn["create_time"] = known
        record = {"turn": {"session_id": value["session_id"], "turn": turn}}
        yield json_format.ParseDict(record, pb.AgentSessionRecord())


def _turns(history: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The history's messages by turn: by their own number, or else each user's message after the
    first begins one.
    """
    turns: list[list[dict[str, Any]]] = []
    for message in history:
        if not turns:
            turns.append([message])
        elif "turn" in message or "turn" in turns[-1][-1]:
            if message.get("turn") == turns[-1][-1].get("turn"):
                turns[-1].append(message)
            else:
                turns.append([message])
        elif message["role"] == "user" and any(each["role"] == "user" for each in turns[-1]):
            turns.append([message])
        else:
            turns[-1].append(message)
    return turns


def _message(message: dict[str, Any]) -> dict[str, Any]:
    known = {name: message[name] for name in _MESSAGE if message.get(name) is not None}
    if not isinstance(known.get("content", ""), str):
        known["content"] = json.dumps(known["content"], ensure_ascii=False)
    return known


def _time(value: Any) -> str:
    """A time as RFC 3339; a number is seconds since 1970. Any: JSON."""
    if isinstance(value, (int, float)):
        return datetime.fromtimestamp(value, UTC).isoformat().replace("+00:00", "Z")
    text = str(value).replace(" ", "T")
    zoned = text.endswith("Z") or "+" in text[10:] or "-" in text[10:]
    return text if zoned else text + "Z"
