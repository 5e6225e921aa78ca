"""The demo's third part: a conversation begun in one process continues in another."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from local.report import Report
    from local.stack import Stack

FIRST, SECOND = "What do we build first?", "And what comes next?"
FIRST_TOKENS, SECOND_TOKENS = 793, 207
SECONDS = 30.0


class TalkFailed(Exception):
    """A process that talks ended with an error; the message is its last line."""


@dataclass(frozen=True)
class Told:
    """What a process told before it ended, and the milliseconds that it took, start included."""

    session_id: str
    turn: int
    tokens: int
    said: list[str]
    milliseconds: float


class AgentDemo:
    """Plays the two-process case against a running stack."""

    def __init__(self, stack: Stack, report: Report) -> None:
        self._stack = stack
        self._report = report

    async def play(self) -> None:
        """Process 1 talks and ends; session_service is killed; process 2 continues by id."""
        self._report.say("")
        self._report.say("A conversation of an agent, begun in one process, continued in another.")
        try:
            await self._story()
        except TalkFailed as failed:
            self._report.row("(the process)", str(failed), 0, {"answer": ("none", str(failed))})

    async def _story(self) -> None:
        one = await self._talk("--say", FIRST, "--tokens", str(FIRST_TOKENS))
        self._row("process 1 begins, appends, ends", one, 1, FIRST_TOKENS, [FIRST])
        await self._crash()
        two = await self._talk(
            *("--session", one.session_id, "--say", SECOND, "--tokens", str(SECOND_TOKENS))
        )
        total = FIRST_TOKENS + SECOND_TOKENS
        self._row("process 2 appends to it by its id", two, 2, total, [FIRST, SECOND])

    def _row(self, call: str, told: Told, turn: int, tokens: int, said: list[str]) -> None:
        answer = f"session={told.session_id},turn={told.turn},tokens={told.tokens}"
        self._report.row(
            call,
            answer,
            told.milliseconds,
            {"turn": (turn, told.turn), "tokens": (tokens, told.tokens), "said": (said, told.said)},
        )

    async def _crash(self) -> None:
        began = time.monotonic()
        await self._stack.kill("session_service")
        await self._stack.start("session_service")
        spent = 1000 * (time.monotonic() - began)
        self._report.row("kill -9 session_service, start it anew", "it serves", spent, {})

    async def _talk(self, *arguments: str) -> Told:
        """Run the process to its end. Raises TalkFailed."""
        began = time.monotonic()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "local.agent_talk", self._stack.session_targets[0]),
            *arguments,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            out, err = await asyncio.wait_for(process.communicate(), SECONDS)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            raise TalkFailed(err.decode().strip().rpartition("\n")[2])
        spent = 1000 * (time.monotonic() - began)
        return Told(**json.loads(out), milliseconds=spent)
