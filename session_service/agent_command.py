"""`python -m session_service agent {import,export}`: dumps as JSON lines, over gRPC."""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, cast

import grpc
from google.protobuf import json_format

from roost.agent.v1 import agent_session_pb2 as pb
from roost.agent.v1 import agent_session_service_pb2 as rpc_pb
from session_service.agent_lines import BadLine, read_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_SERVICE = "/roost.agent.v1.AgentSessionService"
#: Between two drawings of the progress bar, in s.
DRAW_SECONDS = 0.1
WIDTH = 30


def main(argv: Sequence[str]) -> int:
    """Status 0 if all went in or out; 1 if records were refused; 2 if the call failed."""
    arguments = _parser().parse_args(argv)
    try:
        with grpc.insecure_channel(arguments.target) as channel:
            if arguments.command == "import":
                return _import(channel, arguments.file)
            return _export(channel, arguments.file, _wanted(arguments))
    except grpc.RpcError as error:
        details = cast("grpc.Call", error).details()  # every error of a call is one
        return _failed(f"{arguments.target}: {details}; an import may be repeated from the start")
    except OSError as error:
        return _failed(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except BadLine as error:
        return _failed(str(error))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m session_service agent",
        description="Moves agent sessions in and out of a running service, as JSON lines: a line"
        " for each session, then one for each of its turns.",
    )
    parser.add_argument("--target", default="127.0.0.1:50051", help="where the service answers")
    commands = parser.add_subparsers(dest="command", required=True)
    taking = commands.add_parser(
        "import",
        help="take a dump in; what is there already is left as it is",
        description="Takes a dump in. A line may also be a whole session with its"
        " conversation_history, as llm_session_history and many in-memory stores have it.",
    )
    taking.add_argument("file", help="the dump; - for standard input")
    giving = commands.add_parser("export", help="give a dump out")
    giving.add_argument("file", help="where to write it; - for standard output")
    giving.add_argument("--role", default="", help="of this agent role only")
    giving.add_argument(
        "--label", action="append", default=[], metavar="KEY=VALUE", help="with this label only"
    )
    giving.add_argument(
        "--session", action="append", default=[], metavar="ID", help="this session only"
    )
    return parser


def _wanted(arguments: argparse.Namespace) -> rpc_pb.ExportAgentSessionsRequest:
    labels = dict(label.partition("=")[::2] for label in arguments.label)
    return rpc_pb.ExportAgentSessionsRequest(
        filter=rpc_pb.AgentSessionFilter(agent_role=arguments.role, labels=labels),
        session_ids=arguments.session,
    )


class Progress:
    """A bar on standard error, where that is a terminal. `total` is in bytes; 0: not known."""

    def __init__(self, total: int, out: TextIO = sys.stderr) -> None:
        self.records = 0
        self.done = 0
        self._total = total
        self._out = out if out.isatty() else None
        self._drawn = 0.0

    def add(self, size: int) -> None:
        """A record of so many bytes went by."""
        self.records += 1
        self.done += size
        if self._out is not None and time.monotonic() - self._drawn > DRAW_SECONDS:
            self.draw()

    def draw(self) -> None:
        """Show how far it is."""
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
        """The last state, and a new line."""
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
    _tell(report)
    return 1 if report.refused_count else 0


def _requests(
    file: TextIO, progress: Progress, faults: list[BadLine]
) -> Iterator[rpc_pb.ImportAgentSessionsRequest]:
    """The file's records, up to a line that cannot be read: the stream itself could not say why."""
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            records = read_line(line)
        except BadLine as fault:
            faults.append(BadLine(f"line {number}: {fault}; the lines before it were taken in"))
            return
        for record in records:
            yield rpc_pb.ImportAgentSessionsRequest(record=record)
        progress.add(len(line.encode()))


def _tell(report: rpc_pb.ImportAgentSessionsResponse) -> None:
    """What came of it, on standard error."""
    say = sys.stderr.write
    say(
        f"{report.imported_session_count} sessions and {report.imported_turn_count} turns came in;"
        f" {report.existing_session_count} and {report.existing_turn_count} were there already\n"
    )
    for refusal in report.refusals:
        say(
            f"refused record {refusal.record_number}, session {refusal.session_id!r}"
            f" turn {refusal.turn_number}: {refusal.reason}: {refusal.message}\n"
        )
    told = len(report.refusals)
    if report.refused_count > told:
        say(f"and {report.refused_count - told} more were refused\n")


def _export(channel: grpc.Channel, name: str, wanted: rpc_pb.ExportAgentSessionsRequest) -> int:
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
        for response in call(wanted):
            line = write_line(response.record)
            file.write(line)
            progress.add(len(line))
    progress.finish()
    return 0


def write_line(record: pb.AgentSessionRecord) -> str:
    """A record as one line of JSON."""
    text = json_format.MessageToJson(
        record, preserving_proto_field_name=True, indent=None, ensure_ascii=False
    )
    return text + "\n"


def _failed(message: str) -> int:
    sys.stderr.write(f"session_service agent: {message}\n")
    return 2
