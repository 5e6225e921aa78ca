"""The processes of a guest, read from /proc."""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from local.fly.go_json import JsonObject

PROCESS_SERVER = "process_server.py"
TCP_TABLE = "/proc/net/tcp"
"""Linux's list of TCP sockets; with a `6` appended, of those over IPv6."""

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")


SORTABLE = ("pid", "stime", "rtime", "command", "directory", "cpu", "rss")
"""The members by which processes can be sorted: those that are text or a number."""


def sorted_by(found: list[JsonObject], member: str, *, descending: bool) -> list[JsonObject]:
    """The processes sorted by one member, then by pid."""
    by_pid = sorted(found, key=lambda one: _key(one["pid"]))
    return sorted(by_pid, key=lambda one: _key(one[member]), reverse=descending)


def _key(value: object) -> tuple[int, str]:
    return (value, "") if isinstance(value, int) else (0, str(value))


def processes(session: int, argv: Sequence[str]) -> list[JsonObject]:
    """The processes of a session as Fly's `ps` renders them: seconds, and memory in bytes.

    `argv` is the command of the session's leader. A leader that is a fork of the process server
    has the server's command line in /proc.
    """
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            # A process may end while we read it.
            with contextlib.suppress(OSError):
                process = _read(entry, session)
                if process is not None:
                    if process["pid"] == session and PROCESS_SERVER in str(process["command"]):
                        process["command"] = " ".join(argv)
                    found.append(process)
    return found


def _read(entry: Path, session: int) -> JsonObject | None:
    # The command's name is in parentheses and may contain any character but the last `)`.
    values = (entry / "stat").read_text().rpartition(")")[2].split()
    if int(values[3]) != session:
        return None
    command = (entry / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    return {
        "pid": int(entry.name),
        "stime": int(values[12]) // _TICKS,
        "rtime": (int(values[11]) + int(values[12])) // _TICKS,
        "command": b" ".join(command).decode(errors="replace"),
        "directory": os.readlink(entry / "cwd"),
        "cpu": 0,
        "rss": int(values[21]) * _PAGE,
        "listen_sockets": [],
    }


def write_tcp_tables(folder: Path, port: int, shown: int) -> Path:
    """Write the guest's own TCP tables and return the path that replaces `TCP_TABLE`.

    Guests share the host's network, so the host's tables list all sockets. Those on the guest's
    `port` are its own; they are listed with the port `shown`, which is the one of its config.
    """
    for version in ("", "6"):
        table = Path(TCP_TABLE + version)
        found = table.read_text() if table.exists() else ""
        (folder / f"net_tcp{version}").write_text(_own_sockets(found, port, shown))
    return folder / "net_tcp"


def _own_sockets(table: str, port: int, shown: int) -> str:
    """The table's header, and the lines whose local port is `port`, changed to `shown`."""
    lines = table.splitlines(keepends=True)
    own = [line for line in lines[1:] if line.split()[1].endswith(f":{port:04X}")]
    return "".join(
        [*lines[:1], *(line.replace(f":{port:04X}", f":{shown:04X}", 1) for line in own)]
    )
