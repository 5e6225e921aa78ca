"""Database time rules: no module of session_service reads a replica's own wall clock."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import session_service

ROOT = Path(session_service.__file__).parent
READS = {("datetime", "now"), ("datetime", "utcnow"), ("datetime", "today"), ("time", "time")}
#: The seconds in a generated agent session's id are part of a name, and a request to S3 is signed
#: with the time that it is sent at; nothing is decided by either. The command that prints figures
#: asks for those up to the time of the person who types it.
NAMES_ONLY = {"agents/conversations.py", "clients/bucket.py", "stats_command.py"}


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


def test_the_check_sees_what_it_looks_for() -> None:
    """It would fail if somebody did read it."""
    assert wall_clock_reads("import time\nx = time.time()\ny = datetime.now(UTC)") == [2, 3]


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: path.name)
def test_no_wall_clock_is_read(path: Path) -> None:
    """Times come from the database, as `now()` or with the row; budgets are monotonic."""
    if path.relative_to(ROOT).as_posix() in NAMES_ONLY:
        return
    assert wall_clock_reads(path.read_text()) == []
