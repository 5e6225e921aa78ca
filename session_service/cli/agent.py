"""`python -m session_service agent {import,export}`: dumps as JSON lines, over gRPC.

A line of a dump is an AgentSessionRecord of the contract, as `export` writes it, or a whole session
with its conversation_history, as the view llm_session_history and many in-memory stores have it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

import grpc
from google.protobuf import json_format

from grpc_edge import tls
from grpc_edge.certificates import CertificateError, Files
from roost.agent.v1 import agent_session_pb2 as pb
from roost.agent.v1 import agent_session_service_pb2 as rpc_pb

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_SERVICE = "/roost.agent.v1.AgentSessionService"
#: Seconds between two drawings of the progress bar, and its width in characters.
DRAW_SECONDS = 0.1
WIDTH = 30
#: The names that a line of a whole session has for fields of the contract.
_TIMES = {"created_at": "create_time", "last_query_at": "last_query_time"}
_SESSION = ("session_id", "agent_role", "startup_context", "labels")
_MESSAGE = ("role", "content", "tokens", "tool_calls", "tool_call_id", "name", "metadata")


class BadLine(Exception):
    """A line that is neither a record nor a whole session; the message says why."""


def main(argv: Sequence[str]) -> int:
    """Exit status 0: all was imported or exported; 1: records were refused; 2: the call failed."""
    arguments = _parser().parse_args(argv)
    try:
        with _channel(arguments) as channel:
            if arguments.command == "import":
                return _import(channel, arguments.file)
            return _export(channel, arguments.file, _export_request(arguments))
    except grpc.RpcError as error:
        details = cast("grpc.Call", error).details()  # every error of a call is a call too
        return _fail(f"{arguments.target}: {details}; an import may be repeated from the start")
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except (BadLine, CertificateError) as error:
        return _fail(str(error))


def _channel(arguments: argparse.Namespace) -> grpc.Channel:
    """A channel to the service: with TLS if --ca names its authorities."""
    options = {"authorities": "--ca", "certificate": "--cert", "key": "--key"}
    files = Files(arguments.cert, arguments.key, arguments.ca, options)
    if wrong := files.lacking() or files.unused("certificate", "authorities"):
        raise CertificateError(wrong)
    if not files.authorities:
        return grpc.insecure_channel(arguments.target)
    return grpc.secure_channel(arguments.target, tls.credentials(files))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m session_service agent",
        description="Imports agent sessions into a running service and exports them from it, as"
        " JSON lines: a line for each session, then one for each of its turns.",
    )
    parser.add_argument(
        "--target", default="127.0.0.1:50051", help="the service's address (%(default)s)"
    )
    parser.add_argument("--ca", default="", help="file of the authorities of its certificate (TLS)")
    parser.add_argument("--cert", default="", help="file of a certificate to show it")
    parser.add_argument("--key", default="", help="file of that certificate's key")
    commands = parser.add_subparsers(dest="command", required=True)
    importing = commands.add_parser(
        "import",
        help="import a dump; sessions and turns that exist are left as they are",
        description="Imports a dump. A line may also be a whole session with its"
        " conversation_history, as llm_session_history and many in-memory stores have it.",
    )
    importing.add_argument("file", help="the dump; - for standard input")
    exporting = commands.add_parser("export", help="export a dump")
    exporting.add_argument("file", help="the file to write; - for standard output")
    exporting.add_argument("--role", default="", help="only sessions of this agent role")
    exporting.add_argument(
        "--label",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="only sessions with this label (may be repeated: with all of them)",
    )
    exporting.add_argument(
        "--session",
        action="append",
        default=[],
        metavar="ID",
        help="only this session (may be repeated: any of them)",
    )
    return parser


def _export_request(arguments: argparse.Namespace) -> rpc_pb.ExportAgentSessionsRequest:
    labels = dict(label.partition("=")[::2] for label in arguments.label)
    return rpc_pb.ExportAgentSessionsRequest(
        filter=rpc_pb.AgentSessionFilter(agent_role=arguments.role, labels=labels),
        session_ids=arguments.session,
    )


class Progress:
    """A progress bar on standard error, if that is a terminal. `total`: bytes; 0: unknown."""

    def __init__(self, total: int, out: TextIO = sys.stderr) -> None:
        self.records = 0
        self.done = 0
        self._total = total
        self._out = out if out.isatty() else None
        self._drawn = 0.0

    def add(self, size: int) -> None:
        """Count a record of `size` bytes."""
        self.records += 1
        self.done += size
        if self._out is not None and time.monotonic() - self._drawn > DRAW_SECONDS:
            self.draw()

    def draw(self) -> None:
        """Draw the bar."""
        if self._out is None:
            return
        self._drawn = time.monotonic()
        bar = ""
        if self._total:
            part = min(1.0, self.done / self._total)
            bar = f"[{'#' * round(WIDTH * part):<{WIDTH}}] {part:4.0%} "
        self._out.write(f"\r{bar}{self.records} records")
        self._out.flush()

    def finish(self) -> None:
        """Draw the bar for the last time, and end its line."""
        if self._out is not None:
            self.draw()
            self._out.write("\n")


def _import(channel: grpc.Channel, name: str) -> int:
    call = channel.stream_unary(
        f"{_SERVICE}/ImportAgentSessions",
        request_serializer=rpc_pb.ImportAgentSessionsRequest.SerializeToString,
        response_deserializer=rpc_pb.ImportAgentSessionsResponse.FromString,
    )
    with ExitStack() as stack:
        file, total = sys.stdin, 0
        if name != "-":
            file = stack.enter_context(Path(name).open(encoding="utf-8", newline="\n"))
            total = Path(name).stat().st_size
        progress = Progress(total)
        faults: list[BadLine] = []
        report: rpc_pb.ImportAgentSessionsResponse = call(_requests(file, progress, faults))
        progress.finish()
    if faults:
        raise faults[0]
    _print_report(report)
    return 1 if report.refused_count else 0


def _requests(
    file: TextIO, progress: Progress, faults: list[BadLine]
) -> Iterator[rpc_pb.ImportAgentSessionsRequest]:
    """The file's records, up to a line that cannot be read, which goes into `faults`.

    gRPC reports an exception of this generator as a cancelled call, without its message.
    """
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            records = read_line(line)
        except BadLine as fault:
            faults.append(BadLine(f"line {number}: {fault}; the lines before it were imported"))
            return
        for record in records:
            yield rpc_pb.ImportAgentSessionsRequest(record=record)
        progress.add(len(line.encode()))


def _print_report(report: rpc_pb.ImportAgentSessionsResponse) -> None:
    """Print the result on standard error."""
    write = sys.stderr.write
    write(
        f"{report.imported_session_count} sessions and {report.imported_turn_count} turns imported;"
        f" {report.existing_session_count} and {report.existing_turn_count} existed already\n"
    )
    for refusal in report.refusals:
        write(
            f"refused record {refusal.record_number}, session {refusal.session_id!r}"
            f" turn {refusal.turn_number}: {refusal.reason}: {refusal.message}\n"
        )
    more = report.refused_count - len(report.refusals)
    if more > 0:
        write(f"and {more} more were refused\n")


def _export(channel: grpc.Channel, name: str, request: rpc_pb.ExportAgentSessionsRequest) -> int:
    call = channel.unary_stream(
        f"{_SERVICE}/ExportAgentSessions",
        request_serializer=rpc_pb.ExportAgentSessionsRequest.SerializeToString,
        response_deserializer=rpc_pb.ExportAgentSessionsResponse.FromString,
    )
    progress = Progress(0)
    with ExitStack() as stack:
        file = sys.stdout
        if name != "-":
            file = stack.enter_context(Path(name).open("w", encoding="utf-8", newline="\n"))
        for response in call(request):
            line = write_line(response.record)
            file.write(line)
            progress.add(len(line))
    progress.finish()
    return 0


def write_line(record: pb.AgentSessionRecord) -> str:
    """The record as one line of JSON."""
    text = json_format.MessageToJson(
        record, preserving_proto_field_name=True, indent=None, ensure_ascii=False
    )
    return text + "\n"


def read_line(line: str) -> list[pb.AgentSessionRecord]:
    """The records of a line: one, or those of a whole session. Raises BadLine."""
    try:
        value = json.loads(line)
        if not isinstance(value, dict):
            raise BadLine("is not a JSON object")
        if "conversation_history" in value:
            return list(_whole_session(value))
        return [json_format.ParseDict(value, pb.AgentSessionRecord())]
    except json_format.ParseError as error:
        # Only the first line of its text: the others list the fields of one message type.
        why = str(error).partition("\n")[0]
        raise BadLine(f"is neither a record nor a session with its history: {why}") from None
    except (ValueError, RecursionError) as error:
        raise BadLine(f"cannot be read: {error}") from None
    except (TypeError, AttributeError, KeyError) as error:
        raise BadLine(f"is not a session with its conversation_history: {error!r}") from None


def _whole_session(value: dict[str, Any]) -> Iterator[pb.AgentSessionRecord]:
    """The records of a session and its turns. Any: JSON.

    A turn without a time gets that of the session's last query, and not that of the import.
    """
    session = {name: value[name] for name in _SESSION if value.get(name)}
    session |= {field: _time(value[name]) for name, field in _TIMES.items() if value.get(name)}
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
    """The history's messages, by turn.

    Messages with the same `turn` number are one turn. Without numbers, each user message begins a
    turn, except the first of the history: a system message before it belongs to the same turn.
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
    """A time as RFC 3339; a number is seconds since 1970, a time without a zone UTC. Any: JSON."""
    if isinstance(value, (int, float)):
        return datetime.fromtimestamp(value, UTC).isoformat().replace("+00:00", "Z")
    text = str(value).replace(" ", "T")
    zoned = text.endswith("Z") or "+" in text[10:] or "-" in text[10:]
    return text if zoned else text + "Z"


def _fail(message: str) -> int:
    sys.stderr.write(f"session_service agent: {message}\n")
    return 2
