"""The streaming calls about agent sessions: watching, and dumps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from roost.agent.v1 import agent_session_pb2 as pb
from roost.agent.v1 import agent_session_service_pb2 as rpc_pb
from session_service.agents.dumps import Refusal
from session_service.agents.watching import Rewound
from session_service.domain.agent import (
    AgentSession,
    Imported,
    ImportedTurn,
    Opening,
    SessionFilter,
    Turn,
)
from session_service.errors import InvalidField
from session_service.rpc import agent_fields, agent_messages, agent_render
from session_service.rpc.agent_listings import parse_filter
from session_service.rpc.fields import Fields

if TYPE_CHECKING:
    from datetime import datetime

    from google.protobuf.timestamp_pb2 import Timestamp

    from session_service.agents.dumps import Import, Report
    from session_service.agents.watching import Event

IDS_LIMIT = 1000


def parse_watch(message: rpc_pb.WatchTurnsRequest) -> tuple[str, int | None, int | None]:
    """The session, and the branch and number of the turn that was seen last."""
    fields = Fields()
    session_id = agent_fields.session_id(fields, "session_id", message.session_id)
    branch = agent_fields.count(fields, "branch_id", message.branch_id)
    after = None
    if message.HasField("after_turn"):
        after = agent_fields.count(fields, "after_turn", message.after_turn)
    elif branch:
        fields.wrong("after_turn", "must be set with branch_id")
    fields.done()
    return session_id, branch or None, after


def render_event(event: Event) -> rpc_pb.WatchTurnsResponse:
    """Something that happened to a session."""
    if isinstance(event, Turn):
        return rpc_pb.WatchTurnsResponse(turn=agent_render.turn(event))
    if isinstance(event, Rewound):
        rewind = rpc_pb.Rewind(to_turn=event.to_turn, branch_id=event.branch_id)
        return rpc_pb.WatchTurnsResponse(rewind=rewind)
    return rpc_pb.WatchTurnsResponse(state=agent_render.state(event))


def parse_record(record: int, message: pb.AgentSessionRecord) -> Imported | ImportedTurn:
    """A line of a dump. Raises InvalidField."""
    fields = Fields()
    if message.HasField("session"):
        session = _session(fields, "record.session", message.session)
        fields.done()
        return session
    if message.HasField("turn"):
        turn = _turn(fields, "record.turn", record, message.turn)
        fields.done()
        return turn
    fields.wrong("record", "must be a session or a turn")
    fields.done()
    raise AssertionError("a fault was noted")


async def take(importing: Import, number: int, record: pb.AgentSessionRecord) -> None:
    """Give a line to the import; one that cannot be read is refused there."""
    try:
        parsed = parse_record(number, record)
    except InvalidField as error:
        session_id = record.turn.session_id or record.session.session_id
        turn = record.turn.turn.turn_number
        importing.report.refuse(Refusal(number, session_id, turn, error.reason, error.message))
        return
    if isinstance(parsed, Imported):
        await importing.session(number, parsed)
    else:
        await importing.turn(parsed)


def _session(fields: Fields, name: str, message: pb.AgentSession) -> Imported:
    idle = None
    if message.HasField("idle_timeout"):
        idle = agent_fields.idle_timeout(fields, f"{name}.idle_timeout", message.idle_timeout)
    tokens = None
    if message.HasField("startup_tokens"):
        limit = agent_fields.TOKENS_LIMIT
        tokens = agent_fields.count(fields, f"{name}.startup_tokens", message.startup_tokens, limit)
    startup = agent_fields.body(fields, f"{name}.startup_context", message.startup_context)
    if len(startup.encode()) > agent_fields.TEXT_LIMIT:
        fields.wrong(f"{name}.startup_context", f"must be at most {agent_fields.TEXT_LIMIT} bytes")
    session_id = agent_fields.session_id(fields, f"{name}.session_id", message.session_id)
    opening = Opening(
        session_id,
        agent_fields.agent_role(fields, f"{name}.agent_role", message.agent_role),
        startup,
        tokens,
        agent_fields.labels(fields, f"{name}.labels", message.labels),
        idle,
    )
    created = _time(fields, f"{name}.create_time", message.create_time, message)
    queried = _time(fields, f"{name}.last_query_time", message.last_query_time, message)
    return Imported(session_id, opening, created, queried)


def _turn(fields: Fields, name: str, record: int, message: pb.SessionTurn) -> ImportedTurn:
    session_id = agent_fields.session_id(fields, f"{name}.session_id", message.session_id)
    turn = message.turn
    if turn.turn_number < 1:
        fields.wrong(f"{name}.turn.turn_number", "must be 1 or more")
    parsed = agent_messages.parse_turn(fields, f"{name}.turn.messages", turn.messages)
    time = _time(fields, f"{name}.turn.create_time", turn.create_time, turn)
    return ImportedTurn(record, session_id, turn.turn_number, parsed, time)


def _time(
    fields: Fields, name: str, value: Timestamp, of: pb.AgentSession | pb.Turn
) -> datetime | None:
    if not of.HasField(name.rpartition(".")[2]):  # type: ignore[arg-type]  # a name of its fields
        return None
    return agent_fields.time(fields, name, value)


def render_report(report: Report) -> rpc_pb.ImportAgentSessionsResponse:
    """What came of a dump."""
    return rpc_pb.ImportAgentSessionsResponse(
        imported_session_count=report.imported_sessions,
        imported_turn_count=report.imported_turns,
        existing_session_count=report.existing_sessions,
        existing_turn_count=report.existing_turns,
        refused_count=report.refused,
        refusals=[_refusal(each) for each in report.refusals],
    )


def _refusal(refusal: Refusal) -> rpc_pb.ImportRefusal:
    return rpc_pb.ImportRefusal(
        record_number=refusal.record,
        session_id=refusal.session_id[:128],
        turn_number=refusal.turn_number,
        reason=refusal.reason,
        message=refusal.message[:400],
    )


def parse_export(message: rpc_pb.ExportAgentSessionsRequest) -> SessionFilter:
    """Which sessions to give out."""
    fields = Fields()
    wanted = parse_filter(fields, "filter", message.filter)
    if len(message.session_ids) > IDS_LIMIT:
        fields.wrong("session_ids", f"must be at most {IDS_LIMIT}")
    for i, session_id in enumerate(message.session_ids[:IDS_LIMIT]):
        agent_fields.session_id(fields, f"session_ids[{i}]", session_id)
    fields.done()
    return SessionFilter(
        wanted.agent_role,
        wanted.labels,
        wanted.active_since,
        wanted.states,
        tuple(message.session_ids),
    )


def render_record(record: AgentSession | tuple[str, Turn]) -> rpc_pb.ExportAgentSessionsResponse:
    """A line of a dump."""
    if isinstance(record, AgentSession):
        line = pb.AgentSessionRecord(session=agent_render.session(record))
    else:
        session_id, turn = record
        line = pb.AgentSessionRecord(
            turn=pb.SessionTurn(session_id=session_id, turn=agent_render.turn(turn))
        )
    return rpc_pb.ExportAgentSessionsResponse(record=line)
