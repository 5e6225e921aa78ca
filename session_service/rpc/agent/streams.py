"""The calls with streams (watch, import, export): parse and render."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from roost.agent.v1 import agent_session_pb2 as pb
from roost.agent.v1 import agent_session_service_pb2 as rpc_pb
from session_service.agents.dumps import Refusal
from session_service.agents.watch import Quiet, Rewound
from session_service.domain.agent import (
    AgentSession,
    ImportedSession,
    ImportedTurn,
    NewSession,
    SessionFilter,
    Turn,
)
from session_service.errors import InvalidField
from session_service.rpc.agent import fields as checks
from session_service.rpc.agent import render
from session_service.rpc.agent.listings import parse_filter
from session_service.rpc.fields import Fields

if TYPE_CHECKING:
    from datetime import datetime

    from google.protobuf.timestamp_pb2 import Timestamp

    from session_service.agents.dumps import Import, ImportReport
    from session_service.agents.watch import Event

IDS_LIMIT = 1000


def parse_watch(
    message: rpc_pb.WatchTurnsRequest,
) -> tuple[str, int | None, int | None, float | None]:
    """WatchTurns: a session's id, the branch and number of the last turn that was seen, and the
    interval of heartbeats in s.
    """
    fields = Fields()
    session_id = checks.session_id(fields, "session_id", message.session_id)
    branch = checks.count(fields, "branch_id", message.branch_id)
    after = None
    if message.HasField("after_turn"):
        after = checks.count(fields, "after_turn", message.after_turn)
    elif branch:
        fields.wrong("after_turn", "must be set with branch_id")
    heartbeat = None
    if message.HasField("heartbeat_interval"):
        heartbeat = fields.heartbeat(message.heartbeat_interval)
    fields.done()
    return session_id, branch or None, after, heartbeat


def position(quiet: Quiet) -> tuple[tuple[str, str], ...]:
    """The trailing metadata of a watch that ends without an error: where to resume it."""
    branch = str(quiet.branch_id or 0)
    return (("roost-branch-id", branch), ("roost-after-turn", str(quiet.turn)))


def render_event(event: Event) -> rpc_pb.WatchTurnsResponse:
    """An event of a watch."""
    if isinstance(event, Turn):
        return rpc_pb.WatchTurnsResponse(turn=render.turn(event))
    if isinstance(event, Rewound):
        rewind = rpc_pb.Rewind(to_turn=event.to_turn, branch_id=event.branch_id)
        return rpc_pb.WatchTurnsResponse(rewind=rewind)
    if isinstance(event, Quiet):
        beat = rpc_pb.Heartbeat(branch_id=event.branch_id or 0, turn_number=event.turn)
        return rpc_pb.WatchTurnsResponse(heartbeat=beat)
    return rpc_pb.WatchTurnsResponse(state=render.state(event))


async def import_record(importing: Import, number: int, record: pb.AgentSessionRecord) -> None:
    """Import a record of a dump. One with a wrong field is refused, and does not end the import."""
    try:
        parsed = parse_record(number, record)
    except InvalidField as error:
        session_id = record.turn.session_id or record.session.session_id
        turn = record.turn.turn.turn_number
        importing.report.refuse(Refusal(number, session_id, turn, error.reason, error.message))
        return
    if isinstance(parsed, ImportedSession):
        await importing.session(number, parsed)
    else:
        await importing.turn(parsed)


def parse_record(record: int, message: pb.AgentSessionRecord) -> ImportedSession | ImportedTurn:
    """A record of a dump. Raises InvalidField."""
    fields = Fields()
    if message.HasField("session"):
        session = _session(fields, "record.session", message.session)
        fields.done()
        return session
    if message.HasField("turn"):
        turn = _turn(fields, "record.turn", record, message.turn)
        fields.done()
        return turn
    raise InvalidField.of("record", "must be a session or a turn")


def _session(fields: Fields, name: str, message: pb.AgentSession) -> ImportedSession:
    idle = None
    if message.HasField("idle_timeout"):
        idle = checks.idle_timeout(fields, f"{name}.idle_timeout", message.idle_timeout)
    tokens = None
    if message.HasField("startup_tokens"):
        limit = checks.TOKENS_LIMIT
        tokens = checks.count(fields, f"{name}.startup_tokens", message.startup_tokens, limit)
    startup = checks.startup_context(fields, f"{name}.startup_context", message.startup_context)
    session_id = checks.session_id(fields, f"{name}.session_id", message.session_id)
    new = NewSession(
        session_id,
        checks.agent_role(fields, f"{name}.agent_role", message.agent_role),
        startup,
        tokens,
        checks.labels(fields, f"{name}.labels", message.labels),
        idle,
    )
    created = _time(fields, f"{name}.create_time", message.create_time, message)
    queried = _time(fields, f"{name}.last_query_time", message.last_query_time, message)
    return ImportedSession(session_id, new, created, queried)


def _turn(fields: Fields, name: str, record: int, message: pb.SessionTurn) -> ImportedTurn:
    session_id = checks.session_id(fields, f"{name}.session_id", message.session_id)
    turn = message.turn
    if turn.turn_number < 1:
        fields.wrong(f"{name}.turn.turn_number", "must be 1 or more")
    parsed = checks.new_turn(fields, f"{name}.turn.messages", turn.messages)
    time = _time(fields, f"{name}.turn.create_time", turn.create_time, turn)
    return ImportedTurn(record, session_id, turn.turn_number, parsed, time)


def _time(
    fields: Fields, name: str, value: Timestamp, parent: pb.AgentSession | pb.Turn
) -> datetime | None:
    """A time; None if the parent message does not have it."""
    if not parent.HasField(name.rpartition(".")[2]):  # type: ignore[arg-type]  # one of its fields
        return None
    return checks.time(fields, name, value)


def render_report(report: ImportReport) -> rpc_pb.ImportAgentSessionsResponse:
    """ImportAgentSessions' reply."""
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
    """ExportAgentSessions."""
    fields = Fields()
    wanted = parse_filter(fields, "filter", message.filter)
    if len(message.session_ids) > IDS_LIMIT:
        fields.wrong("session_ids", f"must have at most {IDS_LIMIT} ids")
    for i, session_id in enumerate(message.session_ids[:IDS_LIMIT]):
        checks.session_id(fields, f"session_ids[{i}]", session_id)
    fields.done()
    return replace(wanted, session_ids=tuple(message.session_ids))


def render_record(record: AgentSession | tuple[str, Turn]) -> rpc_pb.ExportAgentSessionsResponse:
    """A record of a dump: a session, or a turn with its session's id."""
    reply = rpc_pb.ExportAgentSessionsResponse()
    if isinstance(record, AgentSession):
        reply.record.session.CopyFrom(render.session(record))
    else:
        session_id, turn = record
        reply.record.turn.session_id = session_id
        render.write_turn(reply.record.turn.turn, turn)
    return reply
