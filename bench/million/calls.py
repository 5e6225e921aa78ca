"""The documented calls whose cost is compared, as data: each with its requests and its target.

A call must have an answer of the same size in both databases, so that only what exists differs;
else its target is a number of milliseconds. To add one, add a line to `CALLS`.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from google.protobuf.timestamp_pb2 import Timestamp

from roost.agent.v1 import agent_session_pb2 as agent_pb
from roost.agent.v1 import agent_session_service_pb2 as agent
from roost.session.v1 import session_pb2 as session_pb
from roost.session.v1 import session_service_pb2 as session

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.message import Message

SESSION, AGENT = "roost.session.v1.SessionService", "roost.agent.v1.AgentSessionService"
#: Rows of a page, as many as both databases have of what is asked for.
PAGE = 10


#: The target of a list whose filter no index serves, in ms. A page reads a bounded number of
#: sessions, and has what it finds among them: not the same in both databases.
_BOUNDED = 25.0


@dataclass(frozen=True, slots=True)
class Rows:
    """What is known of a database: its ACTIVE sessions, by id and by key."""

    count: int
    active: list[tuple[str, str, str]]
    """Session id, project, user."""
    sparse: list[str]
    """Agent sessions without a turn in the last five minutes, a new one for each call."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call that is made again and again. Any: messages of every type."""

    name: str
    method: str
    request: Callable[[Rows, int], Message]
    """The request of a round, by the number of the round."""
    answers: Any
    """The type of the response."""
    milliseconds: float | None = None
    """The target at a million rows. None: at most 1.2 times what it takes at a thousand."""
    table: str = ""
    """The table whose rows it updates, by heap-only tuples."""
    hot: float = 0.95
    """The least fraction of them. In 47 updates two may meet a page without room, which a statement
    in flight keeps from being pruned.
    """
    check: Callable[[Any], bool] = field(default=lambda answer: True)
    """Whether the answer is the expected one."""


def _sessions(
    name: str,
    filter_: str,
    order: str = "create_time desc",
    milliseconds: float | None = None,
) -> Call:
    return Call(
        f"ListSessions {name}",
        f"/{SESSION}/ListSessions",
        lambda rows, round_: session.ListSessionsRequest(
            filter=filter_, page_size=PAGE, order_by=order
        ),
        session.ListSessionsResponse,
        milliseconds,
    )


def _time(moment: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp


def _agents(name: str, milliseconds: float | None = None, **wanted: Any) -> Call:
    return Call(
        f"ListAgentSessions {name}",
        f"/{AGENT}/ListAgentSessions",
        lambda rows, round_: agent.ListAgentSessionsRequest(
            filter=agent.AgentSessionFilter(**wanted), page_size=PAGE
        ),
        agent.ListAgentSessionsResponse,
        milliseconds,
    )


def _context(turns: int, **limit: Any) -> Call:
    words = "20 turns" if "last_turns" in limit else "5,000 tokens"
    return Call(
        f"GetContext of {turns}: {words}",
        f"/{AGENT}/GetContext",
        lambda rows, round_: agent.GetContextRequest(session_id=f"c{turns}", **limit),
        agent.GetContextResponse,
    )


def _search(name: str, query: str, **filters: Any) -> Call:
    return Call(
        f"SearchTurns {name}",
        f"/{AGENT}/SearchTurns",
        lambda rows, round_: agent.SearchTurnsRequest(query=query, page_size=PAGE, **filters),
        agent.SearchTurnsResponse,
        milliseconds=25,
    )


_NOW = datetime.now(UTC)
_WEEK, _QUARTER = _NOW - timedelta(days=7), _NOW - timedelta(days=90)


def _figures(name: str, since: datetime, **project: str) -> Call:
    return Call(
        f"GetSessionStats {name}",
        f"/{SESSION}/GetSessionStats",
        lambda rows, round_: session.GetSessionStatsRequest(
            from_time=_time(since), to_time=_time(_NOW), **project
        ),
        session.GetSessionStatsResponse,
        milliseconds=30,
    )


def _agent_figures(name: str, since: datetime) -> Call:
    return Call(
        f"GetAgentStats {name}",
        f"/{AGENT}/GetAgentStats",
        lambda rows, round_: agent.GetAgentStatsRequest(
            from_time=_time(since), to_time=_time(_NOW)
        ),
        agent.GetAgentStatsResponse,
        milliseconds=30,
    )


def _start(rows: Rows, round_: int) -> Message:
    _, project, user = rows.active[round_ % len(rows.active)]
    key = session_pb.SessionKey(project_id=project, user_id=user)
    return session.StartSessionRequest(request_id=str(uuid.uuid4()), key=key)


def _new(rows: Rows, round_: int) -> Message:
    key = session_pb.SessionKey(project_id="nest", user_id=f"new-{uuid.uuid4()}")
    return session.StartSessionRequest(request_id=str(uuid.uuid4()), key=key)


def _active(rows: Rows, round_: int) -> str:
    return rows.active[round_ % len(rows.active)][0]


def _append(session_id: str) -> Message:
    message = agent_pb.Message(role="user", content="one more turn", tokens=250)
    return agent.AppendTurnRequest(
        request_id=str(uuid.uuid4()), session_id=session_id, messages=[message]
    )


_SINCE = (_NOW - timedelta(hours=2)).strftime("%Y-%m-%dT%H:%M:%SZ")
CALLS: tuple[Call, ...] = (
    _sessions("all", ""),
    _sessions("of a user", 'user_id = "u7"'),
    _sessions("of a project", 'project_id = "nest"'),
    _sessions("of a user of a project", 'project_id = "nest" AND user_id = "u0"'),
    _sessions("of a user: none", 'user_id = "nobody"'),
    _sessions("of a user: only the oldest", 'user_id = "oldest"'),
    _sessions("in a rare state", "state = PAUSING"),
    _sessions("in a rare state, oldest first", "state = PAUSING", "create_time"),
    _sessions("in a state of few", "state = ACTIVE"),
    _sessions("live", "live = true"),
    _sessions("not live", "live = false"),
    _sessions("at a rare slot", 'slot = "attic"', milliseconds=_BOUNDED),
    _sessions("active lately", f'last_active_time >= "{_SINCE}"'),
    _sessions("not active lately", f'last_active_time < "{_SINCE}"'),
    *(
        _context(turns, **limit)
        for turns in (20, 5_000, 50_000)
        for limit in ({"last_turns": 20}, {"max_tokens": 5_000})
    ),
    _search("a word of most", "w1"),
    _search("a common word", "w20"),
    _search("a word of some", "w700"),
    _search("a rare word", "w150000"),
    _search("an absent word", "wnever"),
    _search("two words", "w20 w700"),
    _search("a common word of a role", "w20", agent_role="role-1"),
    _search("a common word of a rare role", "w20", agent_role="rare"),
    _search("a common word by tools", "w20", message_roles=["tool"]),
    _search("a common word in a session", "w20", session_id="c5000"),
    _search("a common word of the last day", "w20", from_time=_time(_NOW - timedelta(days=1))),
    _search("a common word of the first days", "w20", to_time=_time(_NOW - timedelta(days=78))),
    _agents("all"),
    _agents("of a role", agent_role="role-1"),
    _agents("of a label", labels={"team": "t1"}),
    _agents(
        "of a label and a state",
        labels={"team": "t1"},
        states=[agent_pb.AgentSession.State.STATE_ACTIVE],
    ),
    _agents(
        "of a rare label and a state",
        _BOUNDED,
        labels={"team": "t450"},
        states=[agent_pb.AgentSession.State.STATE_ACTIVE],
    ),
    _agents("active lately", active_since_time=_time(_NOW - timedelta(hours=2))),
    _figures("of a project, a week", _WEEK, project_id="nest"),
    _figures("of all, a week", _WEEK),
    _figures("of a project, 90 days", _QUARTER, project_id="nest"),
    _figures("of all, 90 days", _QUARTER),
    _agent_figures("a week", _WEEK),
    _agent_figures("90 days", _QUARTER),
    Call(
        "StartSession: REUSED", f"/{SESSION}/StartSession", _start, session.StartSessionResponse,
        table="sessions",
        check=lambda answer: bool(answer.outcome == session_pb.START_OUTCOME_REUSED),
    ),
    Call(
        "StartSession: CREATED, beside a tenth live", f"/{SESSION}/StartSession", _new,
        session.StartSessionResponse,
        check=lambda answer: bool(answer.outcome == session_pb.START_OUTCOME_CREATED),
    ),
    Call(
        "GetSession", f"/{SESSION}/GetSession",
        lambda rows, round_: session.GetSessionRequest(session_id=_active(rows, round_)),
        session.GetSessionResponse,
    ),
    Call(
        "TouchSession", f"/{SESSION}/TouchSession",
        lambda rows, round_: session.TouchSessionRequest(session_id=_active(rows, round_)),
        session.TouchSessionResponse, table="sessions",
    ),
    Call(
        "AppendTurn", f"/{AGENT}/AppendTurn", lambda rows, round_: _append("c0"),
        agent.AppendTurnResponse, table="llm_sessions",
    ),
    Call(
        "AppendTurn to 50,000 turns", f"/{AGENT}/AppendTurn",
        lambda rows, round_: _append("c50000"), agent.AppendTurnResponse, table="llm_sessions",
    ),
    Call(
        "AppendTurn after a while", f"/{AGENT}/AppendTurn",
        lambda rows, round_: _append(rows.sparse.pop()), agent.AppendTurnResponse,
        table="llm_sessions",
    ),
)  # fmt: skip
