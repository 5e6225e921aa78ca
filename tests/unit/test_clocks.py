"""Database time rules: no module of session_service reads a replica's own wall clock."""

from __future__ import annotations

import ast
from pathlib import Path

import session_service

ROOT = Path(session_service.__file__).parent
READS = {("datetime", "now"), ("datetime", "utcnow"), ("datetime", "today"), ("time", "time")}
#: The seconds in the id of a generated agent session are part of a name, and decide nothing. The
#: command that prints figures asks for those up to the time at its operator's machine.
NAMES_ONLY = {"agents/conversations.py", "cli/stats.py"}


def wall_clock_reads(source: str) -> list[int]:
    """Lines that read the wall clock: `datetime.now()` and its like, and `time.time()`."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and (node.func.value.id, node.func.attr) in READS
    ]


def test_the_check_finds_wall_clock_reads() -> None:
    """A module that reads the clock would be reported."""
    assert wall_clock_reads("import time\nx = time.time()\ny = datetime.now(UTC)") == [2, 3]


def test_no_wall_clock_is_read() -> None:
    """Times come from the database, as `now()` or with the row; budgets are monotonic."""
    modules = {path.relative_to(ROOT).as_posix(): path for path in ROOT.rglob("*.py")}
    assert modules.keys() > NAMES_ONLY
    reads = {
        name: wall_clock_reads(path.read_text())
        for name, path in modules.items()
        if name not in NAMES_ONLY
    }
    assert {name: lines for name, lines in reads.items() if lines} == {}
