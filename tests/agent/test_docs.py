"""docs/agents.md does what it says: its two programs are run as they stand there."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from session_service.cli.agent import read_line

if TYPE_CHECKING:
    from tests.agent.harness import Replica

TEXT = (Path(__file__).parents[2] / "docs" / "agents.md").read_text()


def blocks(language: str) -> list[str]:
    """The text's examples in a language."""
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


async def run(program: str, *arguments: str) -> str:
    """Run it as a process of its own; what it prints."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, *arguments), stdout=subprocess.PIPE
    )
    out, _ = await asyncio.wait_for(process.communicate(), 50)
    assert process.returncode == 0
    return out.decode()


async def test_the_two_programs_continue_one_conversation(agents: Replica) -> None:
    first, second = (block.replace("127.0.0.1:50051", agents.target) for block in blocks("python"))
    session_id, turn, tokens = (await run(first)).split()
    assert (turn, tokens) == ("1", "10")
    lines = (await run(second, session_id)).splitlines()
    assert lines == [
        "You are the CEO.",
        "user: What do we build first?",
        "assistant: A roost.",
        f"{session_id} 2 16",
    ]


def test_the_examples_of_requests_and_dumps_can_be_read() -> None:
    for data in re.findall(r"-d '(.*?)'", TEXT):
        json.loads(data)
    (dump,) = blocks("json")
    assert len(read_line(dump.replace("\n", " "))) == 2


async def test_the_analysts_query_runs(agents: Replica) -> None:
    await agents.create("ceo", session_id="a")
    await agents.append("a", "hello")
    (query,) = blocks("sql")
    ((session_id, role, turns, *_),) = await agents.rows(query)
    assert (session_id, role, turns) == ("a", "ceo", 1)
