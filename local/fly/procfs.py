"""The processes of a guest, read from /proc."""

import contextlib
import os
from pathlib import Path

from local.fly.wire import JsonObject

TCP_TABLE = "/proc/net/tcp"
"""Where Linux lists a guest's TCP sockets; those of IPv6 are in the file of that name and a 6."""

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")


SORTABLE = ("pid", "stime", "rtime", "command", "directory", "cpu", "rss")
"""The members that processes can be sorted by: all that are text or a number."""


def sorted_by(found: list[JsonObject], member: str, *, descending: bool) -> list[JsonObject]:
    """The processes in the order of one member, those that are equal in it by their ids."""
    by_pid = sorted(found, key=lambda one: _key(one["pid"]))
    return sorted(by_pid, key=lambda one: _key(one[member]), reverse=descending)


def _key(value: object) -> tuple[int, str]:
    return (value, "") if isinstance(value, int) else (0, str(value))


def processes(session: int) -> list[JsonObject]:
    """What runs in the session, as `ps` shows it: times in seconds, memory in bytes."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            # A process may end while it is looked at.
            with contextlib.suppress(OSError):
                process = _read(entry, session)
                if process is not None:
                    found.append(process)
    return found


def _read(entry: Path, session: int) -> JsonObject | None:
    # The command's name is in parentheses and may hold blanks: the numbers follow the last one.
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
    """Write what a guest would find of its server's sockets; the path to name in place of
    `TCP_TABLE`, with the 6 or without.

    Guests share the host's network, so its tables have everybody's: of them only sockets at the
    guest's `port` are its own, and are `shown` at the port that its config has.
    """
    for version in ("", "6"):
        table = Path(TCP_TABLE + version)
        found = table.read_text() if table.exists() else ""
        (folder / f"net_tcp{version}").write_text(_own_sockets(found, port, shown))
    return folder / "net_tcp"


def _own_sockets(table: str, port: int, shown: int) -> str:
    """The table's head, and the lines whose local address ends in the port, in hex."""
    lines = table.splitlines(keepends=True)
    own = [line for line in lines[1:] if line.split()[1].endswith(f":{port:04X}")]
    return "".join(
        [*lines[:1], *(line.replace(f":{port:04X}", f":{shown:04X}", 1) for line in own)]
    )
